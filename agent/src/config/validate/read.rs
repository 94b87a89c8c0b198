//! What was read, as warnings look at it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Service};

use crate::{
    config::{
        MeshSettings,
        compile::{Facts, Key},
        facts::{Mode, ServiceFacts, Target, match_labels},
        manifest::Manifests,
        object::{Object, named},
        service::is_tcp,
        template::Template,
    },
    mesh::{AppProtocol, DATAPLANE_MODE},
};

/// Everything that was read.
pub(super) struct Read<'a> {
    pub(super) manifests: &'a Manifests,
    pub(super) facts: &'a Facts,
    pub(super) settings: &'a MeshSettings,
    /// Pods, and what makes some.
    pub(super) runners: Vec<Runner<'a>>,
}

/// A pod, or a template of pods.
pub(super) struct Runner<'a> {
    /// `Deployment shop/order`.
    pub(super) what: String,
    pub(super) namespace: &'a str,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) account: &'a str,
    /// The TCP ports its containers declare, with their names.
    pub(super) ports: Vec<(&'a str, u16)>,
    /// Whether it is of the mesh; `None` where its namespace was not read.
    pub(super) meshed: Option<bool>,
}

/// A port of a pod, as a Service speaks of it.
pub(super) struct Served<'a> {
    pub(super) service: &'a Key,
    /// The Service's port.
    pub(super) port: u16,
    /// The pod's port.
    pub(super) target: u16,
    pub(super) protocol: AppProtocol,
}

impl<'a> Read<'a> {
    pub(super) fn new(
        manifests: &'a Manifests,
        templates: &'a [Template],
        facts: &'a Facts,
        settings: &'a MeshSettings,
    ) -> Self {
        let pods = manifests
            .pods
            .iter()
            .map(|pod| Runner::of(named::<Pod>(pod.namespace(), pod.name()), pod, facts));
        let templates = templates
            .iter()
            .map(|template| Runner::of(template.what.clone(), &template.pod, facts));
        Self { manifests, facts, settings, runners: pods.chain(templates).collect() }
    }

    /// Those of `namespace`; of all namespaces where it is the root one.
    pub(super) fn in_scope(&self, namespace: &str) -> impl Iterator<Item = &Runner<'a>> {
        let everywhere = self.settings.root_namespace.as_str() == namespace;
        self.runners.iter().filter(move |runner| everywhere || runner.namespace == namespace)
    }

    /// Those that a selector of a policy in `namespace` selects.
    pub(super) fn selected(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<&Runner<'a>> {
        self.in_scope(namespace).filter(|runner| match_labels(labels, &runner.labels)).collect()
    }

    /// The ports of `runner` that Services lead to.
    pub(super) fn served<'r>(
        &'r self,
        runner: &'r Runner<'a>,
    ) -> impl Iterator<Item = Served<'a>> + 'r {
        let services = self.facts.services.iter();
        let selecting = services.filter(|((namespace, _), service)| {
            **namespace == *runner.namespace && service.selects(&runner.labels)
        });
        selecting.flat_map(move |(key, service)| {
            service.ports.iter().filter_map(move |port| {
                let target = runner.target(&port.target)?;
                Some(Served { service: key, port: port.number, target, protocol: port.protocol })
            })
        })
    }

    /// The Service of that name.
    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&'a ServiceFacts> {
        self.facts.services.get(&(namespace.into(), name.into()))
    }

    /// The namespaces that something was read of.
    pub(super) fn namespaces(&self) -> BTreeSet<&str> {
        let named = self.manifests.namespaces.iter().map(Object::name);
        let services = self.manifests.services.iter().map(Object::<Service>::namespace);
        named.chain(services).chain(self.runners.iter().map(|runner| runner.namespace)).collect()
    }
}

impl<'a> Runner<'a> {
    fn of(what: String, pod: &'a Object<Pod>, facts: &Facts) -> Self {
        let spec = pod.body.spec.as_ref();
        let containers = spec.into_iter().flat_map(|spec| &spec.containers);
        let ports = containers
            .flat_map(|container| container.ports.iter().flatten())
            .filter(|port| is_tcp(port.protocol.as_deref()))
            .filter_map(|port| {
                let number = u16::try_from(port.container_port).ok()?;
                Some((port.name.as_deref().unwrap_or_default(), number))
            });
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        let namespace = facts.namespaces.get(&("".into(), pod.namespace().into()));
        let on_host = spec.is_some_and(|spec| spec.host_network == Some(true));
        let meshed = match pod.label(DATAPLANE_MODE).and_then(Mode::of) {
            _ if on_host => Some(false),
            Some(mode) => Some(mode == Mode::Ambient),
            None => namespace.map(|namespace| namespace.mode == Some(Mode::Ambient)),
        };
        Self {
            what,
            namespace: pod.namespace(),
            labels: pod.body.metadata.labels.clone().unwrap_or_default(),
            account: account.filter(|name| !name.is_empty()).unwrap_or("default"),
            ports: ports.collect(),
            meshed,
        }
    }

    /// The port that a Service's port leads to.
    pub(super) fn target(&self, target: &Target) -> Option<u16> {
        match target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => {
                self.ports.iter().find(|(of, _)| of == name).map(|(_, number)| *number)
            }
            Target::Nowhere => None,
        }
    }

    /// Its labels: `app=order, version=v1`.
    pub(super) fn labels_in_words(&self) -> String {
        let labels: Vec<_> =
            self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") }
    }
}
