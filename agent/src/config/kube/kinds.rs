//! The kinds that are watched, and what is kept of each.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{
    Metadata, Resource,
    api::{
        core::v1::{ConfigMap, Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    arrival::{Arrival, Unfit},
    tables::{Change, Delta, Instead, Unread, Verdict},
};
use crate::config::{
    MeshSettings,
    authorization_policy::{self, AuthorizationPolicy},
    compile::{Fact, Key},
    error::{Place, Problem},
    facts::{
        AuthorizationPolicyFacts, MeshConfigFacts, NamespaceFacts, NetworkPolicyFacts,
        PeerAuthenticationFacts, PodFacts, RequestAuthenticationFacts, ServiceFacts, SliceFacts,
    },
    mesh_config, network_policy,
    object::{Object, named},
    peer_authentication::{self, PeerAuthentication},
    request_authentication::{self, RequestAuthentication},
    selection, service,
    shared::Shared,
    workload,
};

/// The facts of one kind.
pub(super) trait Kind: Fact + Send + 'static {
    /// The kind itself.
    type Object: kube::Resource<DynamicType = ()>
        + Metadata<Ty = ObjectMeta>
        + DeserializeOwned
        + Clone
        + Debug
        + Send;

    /// Its name in URLs.
    const PLURAL: &'static str;
    /// For a kind that need not be installed: the versions it is read in, the one to ask for first.
    /// Empty for those that every server has.
    const OPTIONAL_VERSIONS: &'static [&'static str] = &[];
    /// The one name whose objects are asked for, in the root namespace; otherwise all, in every one.
    const ONLY: Option<&'static str> = None;

    /// What is to be kept of an object, if anything.
    fn read(object: &Object<Self::Object>, reader: &Reader) -> Result<Option<Self>, Problem>;

    /// What is in force of an object that cannot be read, because of `why`; where it does not even have
    /// the form of its kind, there is its selector.
    fn instead(
        _key: &Key,
        _object: Result<&Object<Self::Object>, &Value>,
        _why: &Problem,
    ) -> Instead<Self> {
        Instead::LastGood
    }

    /// Whether it is a version that could be read once, and not what is in force instead of one.
    fn was_read(&self) -> bool {
        true
    }

    /// A change of this kind among those of all kinds.
    fn change(delta: Delta<Self>) -> Change;
}

/// What reading needs beside the objects. A copy has what objects have in common in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Reader {
    settings: MeshSettings,
    shared: Arc<Mutex<Shared>>,
}

impl Reader {
    pub(super) fn new(settings: MeshSettings) -> Self {
        Self { settings, shared: Arc::default() }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads an object; what cannot be obeyed is its problem, with its name and the field.
    pub(super) fn read<F: Kind>(&self, arrival: Arrival<F::Object>) -> (Key, Verdict<F>) {
        let Arrival { namespace, name, object, version: _ } = arrival;
        let mut shared = self.shared();
        let key = (shared.text(&namespace), shared.text(&name));
        drop(shared);
        let verdict = match object {
            Ok(body) => {
                let object = Object::of_cluster(body);
                F::read(&object, self).map_err(|problem| {
                    let instead = F::instead(&key, Ok(&object), &problem);
                    Unread { problem, instead }
                })
            }
            Err(Unfit { why, selector }) => {
                let place = Place::object(&named::<F::Object>(&key.0, &key.1));
                let problem = Problem::new(place, why)
                    .hint("this version of the agent reads another form of the kind");
                let instead = F::instead(&key, Err(&selector), &problem);
                Err(Unread { problem, instead })
            }
        };
        (key, verdict)
    }

    /// The namespace whose policies hold for all.
    pub(super) fn root_namespace(&self) -> &str {
        self.settings.root_namespace.as_str()
    }

    /// Lets go of what no object has in common any more.
    pub(super) fn sweep(&self) {
        self.shared().sweep();
    }
}

impl Kind for NamespaceFacts {
    type Object = Namespace;

    const PLURAL: &'static str = "namespaces";

    fn read(namespace: &Object<Namespace>, _: &Reader) -> Result<Option<Self>, Problem> {
        Ok(Some(workload::read_namespace(namespace)))
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::Namespaces(delta)
    }
}

impl Kind for PodFacts {
    type Object = Pod;

    const PLURAL: &'static str = "pods";

    fn read(pod: &Object<Pod>, reader: &Reader) -> Result<Option<Self>, Problem> {
        let MeshSettings { trust_domain, node, .. } = &reader.settings;
        workload::read(pod, trust_domain, node, &mut reader.shared())
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::Pods(delta)
    }
}

impl Kind for ServiceFacts {
    type Object = Service;

    const PLURAL: &'static str = "services";

    fn read(object: &Object<Service>, _: &Reader) -> Result<Option<Self>, Problem> {
        service::read(object).map(Some)
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::Services(delta)
    }
}

impl Kind for SliceFacts {
    type Object = EndpointSlice;

    const PLURAL: &'static str = "endpointslices";

    fn read(slice: &Object<EndpointSlice>, reader: &Reader) -> Result<Option<Self>, Problem> {
        service::read_slice(slice, &reader.settings.node, &mut reader.shared())
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::Slices(delta)
    }
}

impl Kind for PeerAuthenticationFacts {
    type Object = PeerAuthentication;

    const PLURAL: &'static str = PeerAuthentication::URL_PATH_SEGMENT;
    const OPTIONAL_VERSIONS: &'static [&'static str] =
        &[PeerAuthentication::API_VERSION, PeerAuthentication::FORMER_API_VERSION];

    fn read(policy: &Object<PeerAuthentication>, _: &Reader) -> Result<Option<Self>, Problem> {
        peer_authentication::read(policy).map(Some)
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::PeerAuthentications(delta)
    }
}

impl Kind for NetworkPolicyFacts {
    type Object = NetworkPolicy;

    const PLURAL: &'static str = "networkpolicies";

    fn read(policy: &Object<NetworkPolicy>, _: &Reader) -> Result<Option<Self>, Problem> {
        network_policy::read(policy).map(Some)
    }

    /// Whom it selects is not known: it may be everybody in its namespace.
    fn instead(_: &Key, _: Result<&Object<NetworkPolicy>, &Value>, _: &Problem) -> Instead<Self> {
        Instead::This(Self::default())
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::NetworkPolicies(delta)
    }
}

impl Kind for AuthorizationPolicyFacts {
    type Object = AuthorizationPolicy;

    const PLURAL: &'static str = AuthorizationPolicy::URL_PATH_SEGMENT;
    const OPTIONAL_VERSIONS: &'static [&'static str] =
        &[AuthorizationPolicy::API_VERSION, AuthorizationPolicy::FORMER_API_VERSION];

    fn read(
        policy: &Object<AuthorizationPolicy>,
        reader: &Reader,
    ) -> Result<Option<Self>, Problem> {
        authorization_policy::read(policy, &reader.settings.trust_domain)
    }

    /// Nobody passes whom it might have kept out.
    fn instead(
        key: &Key,
        object: Result<&Object<AuthorizationPolicy>, &Value>,
        why: &Problem,
    ) -> Instead<Self> {
        let selects = match object {
            Ok(object) => authorization_policy::selects_at_most(object),
            Err(selector) => selection::at_most_by(selector),
        };
        Instead::LastGoodOr(authorization_policy::unreadable(key, selects, &why.to_string()))
    }

    fn was_read(&self) -> bool {
        self.policy.spec().unreadable.is_none()
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::AuthorizationPolicies(delta)
    }
}

impl Kind for RequestAuthenticationFacts {
    type Object = RequestAuthentication;

    const PLURAL: &'static str = RequestAuthentication::URL_PATH_SEGMENT;
    const OPTIONAL_VERSIONS: &'static [&'static str] =
        &[RequestAuthentication::API_VERSION, RequestAuthentication::FORMER_API_VERSION];

    fn read(object: &Object<RequestAuthentication>, _: &Reader) -> Result<Option<Self>, Problem> {
        request_authentication::read(object)
    }

    /// No request passes whose token it might have refused.
    fn instead(
        key: &Key,
        object: Result<&Object<RequestAuthentication>, &Value>,
        why: &Problem,
    ) -> Instead<Self> {
        let selects = match object {
            Ok(object) => request_authentication::selects_at_most(object),
            Err(selector) => selection::at_most_by(selector),
        };
        Instead::LastGoodOr(request_authentication::unreadable(key, selects, &why.to_string()))
    }

    fn was_read(&self) -> bool {
        self.authentication.spec().unreadable.is_none()
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::RequestAuthentications(delta)
    }
}

impl Kind for MeshConfigFacts {
    type Object = ConfigMap;

    const PLURAL: &'static str = "configmaps";
    const ONLY: Option<&'static str> = Some(mesh_config::NAME);

    fn read(map: &Object<ConfigMap>, reader: &Reader) -> Result<Option<Self>, Problem> {
        match mesh_config::is_it(map, &reader.settings.root_namespace) {
            true => mesh_config::read(map).map(Some),
            false => Ok(None),
        }
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::MeshConfig(delta)
    }
}
