//! Turns files into Kubernetes objects of the kinds the agent understands, and those into facts.

use std::{collections::HashMap, fmt};

use k8s_openapi::{
    Metadata, Resource,
    api::{
        core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;

use super::{
    MeshSettings,
    authorization_policy::{self, AuthorizationPolicy},
    compile::{Claim, Conflict, Facts, Key, Table},
    directory::File,
    error::{Place, Problem, nearest},
    foreign::{self, Foreign},
    mesh_config, network_policy,
    object::{Object, Text, named},
    peer_authentication::{self, PeerAuthentication},
    request_authentication::{self, RequestAuthentication},
    service,
    shared::Shared,
    strict::fit,
    workload,
    yaml::{self, Entry, Node, Position, Step, Value},
};

/// Every object of every file, by kind.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    pub(super) namespaces: Vec<Object<Namespace>>,
    pub(super) service_accounts: Vec<Object<ServiceAccount>>,
    pub(super) pods: Vec<Object<Pod>>,
    pub(super) services: Vec<Object<Service>>,
    pub(super) slices: Vec<Object<EndpointSlice>>,
    pub(super) peer_authentications: Vec<Object<PeerAuthentication>>,
    pub(super) network_policies: Vec<Object<NetworkPolicy>>,
    pub(super) authorization_policies: Vec<Object<AuthorizationPolicy>>,
    pub(super) request_authentications: Vec<Object<RequestAuthentication>>,
    pub(super) config_maps: Vec<Object<ConfigMap>>,
    /// There is a policy of a kind that the CNI alone understands.
    pub(super) cni_policies: bool,
    /// What is of kinds that the agent does not read.
    pub(super) foreign: Vec<Foreign>,
}

/// Why an object is not read.
struct Unread {
    problem: Problem,
    /// Its kind is one that there is, for others than the agent.
    is_foreign: bool,
}

/// Kinds by name, with the versions each is read in, the one to be written first.
const KINDS: [(&str, &[&str]); 10] = [
    (Namespace::KIND, &[Namespace::API_VERSION]),
    (ServiceAccount::KIND, &[ServiceAccount::API_VERSION]),
    (Pod::KIND, &[Pod::API_VERSION]),
    (Service::KIND, &[Service::API_VERSION]),
    (EndpointSlice::KIND, &[EndpointSlice::API_VERSION]),
    (
        PeerAuthentication::KIND,
        &[PeerAuthentication::API_VERSION, PeerAuthentication::FORMER_API_VERSION],
    ),
    (
        AuthorizationPolicy::KIND,
        &[AuthorizationPolicy::API_VERSION, AuthorizationPolicy::FORMER_API_VERSION],
    ),
    (
        RequestAuthentication::KIND,
        &[RequestAuthentication::API_VERSION, RequestAuthentication::FORMER_API_VERSION],
    ),
    (NetworkPolicy::KIND, &[NetworkPolicy::API_VERSION]),
    ("List", &["v1"]),
];

impl Manifests {
    /// What the objects say; whatever cannot be obeyed is added to `problems`.
    pub(super) fn facts(&self, settings: &MeshSettings, problems: &mut Vec<Problem>) -> Facts {
        let MeshSettings { trust_domain, node, root_namespace } = settings;
        let mut shared = Shared::default();
        unique(&self.service_accounts, problems, |_| Ok(Some(())));
        Facts {
            namespaces: unique(&self.namespaces, problems, |namespace| {
                Ok(Some(workload::read_namespace(namespace)))
            })
            .into_iter()
            .map(|((_, name), facts)| (("".into(), name), facts))
            .collect(),
            pods: unique(&self.pods, problems, |pod| {
                workload::read(pod, trust_domain, node, &mut shared)
            }),
            services: unique(&self.services, problems, |object| service::read(object).map(Some)),
            slices: unique(&self.slices, problems, |slice| {
                service::read_slice(slice, node, &mut shared)
            }),
            peer_authentications: unique(&self.peer_authentications, problems, |policy| {
                peer_authentication::read(policy).map(Some)
            }),
            network_policies: unique(&self.network_policies, problems, |policy| {
                network_policy::read(policy).map(Some)
            }),
            authorization_policies: unique(&self.authorization_policies, problems, |policy| {
                authorization_policy::read(policy, trust_domain)
            }),
            request_authentications: unique(&self.request_authentications, problems, |object| {
                request_authentication::read(object)
            }),
            mesh_config: unique(&self.config_maps, problems, |map| {
                match mesh_config::is_it(map, root_namespace) {
                    true => mesh_config::read_strictly(map).map(Some),
                    false => Ok(None),
                }
            }),
            cni_policies: Some(self.cni_policies),
        }
    }

    /// How many objects there are of each kind.
    pub(super) fn counts(&self) -> impl Iterator<Item = (String, usize)> + use<> {
        let counts = [
            (Namespace::KIND, self.namespaces.len()),
            (ServiceAccount::KIND, self.service_accounts.len()),
            (Pod::KIND, self.pods.len()),
            (Service::KIND, self.services.len()),
            (EndpointSlice::KIND, self.slices.len()),
            (PeerAuthentication::KIND, self.peer_authentications.len()),
            (NetworkPolicy::KIND, self.network_policies.len()),
            (AuthorizationPolicy::KIND, self.authorization_policies.len()),
        ];
        counts.into_iter().map(|(kind, count)| (kind.to_owned(), count))
    }

    /// What to say about two objects that claim the same, with both places.
    pub(super) fn conflict(&self, conflict: &Conflict) -> Problem {
        let Conflict { claim, owner, claimant } = conflict;
        match claim {
            Claim::PodUid(uid) => {
                taken(&self.pods, uid, &["metadata".into(), "uid".into()], owner, claimant)
            }
            Claim::PodAddress(ip) => {
                taken(&self.pods, ip, &["status".into(), "podIPs".into()], owner, claimant)
            }
            Claim::ClusterIp(ip) => {
                taken(&self.services, ip, &["spec".into(), "clusterIP".into()], owner, claimant)
            }
        }
    }

    /// Reads `files`; whatever cannot be read is added to `problems`.
    pub(super) fn read(files: &[File], problems: &mut Vec<Problem>) -> Self {
        let mut manifests = Self::default();
        for File { path, text } in files {
            match yaml::parse(text) {
                Ok(documents) => {
                    for node in documents {
                        manifests.add(Text { node, file: path.clone() }, problems);
                    }
                }
                Err((position, what)) => {
                    problems.push(Problem::new(
                        Place::new(path, position),
                        format!("not readable as YAML: {what}"),
                    ));
                }
            }
        }
        manifests
    }

    fn add(&mut self, source: Text, problems: &mut Vec<Problem>) {
        if source.is_cni_policy() {
            self.cni_policies = true;
            return;
        }
        // Others of the kind are none of the agent's business.
        if source.is_named::<ConfigMap>(mesh_config::NAME) {
            return source.keep(&mut self.config_maps, problems, &[]);
        }
        match source.kind() {
            Ok("Namespace") => source.keep(&mut self.namespaces, problems, &[]),
            Ok("ServiceAccount") => source.keep(&mut self.service_accounts, problems, &[]),
            Ok("Pod") => source.keep(&mut self.pods, problems, &["spec"]),
            Ok("Service") => source.keep(&mut self.services, problems, &["spec"]),
            Ok("EndpointSlice") => source.keep(&mut self.slices, problems, &["addressType"]),
            Ok("PeerAuthentication") => source.keep(&mut self.peer_authentications, problems, &[]),
            Ok("NetworkPolicy") => source.keep(&mut self.network_policies, problems, &["spec"]),
            Ok("AuthorizationPolicy") => {
                source.keep(&mut self.authorization_policies, problems, &[]);
            }
            Ok("RequestAuthentication") => {
                source.keep(&mut self.request_authentications, problems, &[]);
            }
            // `KINDS` has no other name left.
            Ok(_list) => self.add_items(source, None, problems),
            Err(_) if source.listed().is_some() => {
                let listed = source.listed();
                self.add_items(source, listed, problems);
            }
            Err(Unread { problem, is_foreign: true }) => {
                self.foreign.push(Foreign { text: source, problem });
            }
            Err(Unread { problem, is_foreign: false }) => problems.push(problem),
        }
    }

    /// Adds the items of a list, which need not say that they are `listed`.
    fn add_items(
        &mut self,
        source: Text,
        listed: Option<(String, String)>,
        problems: &mut Vec<Problem>,
    ) {
        let Text { node, file } = source;
        let Value::Mapping(entries) = node.value else { return };
        for entry in entries {
            let problem = |position: Position, what: String| {
                Problem::new(Place::new(&file, Some(position)), what)
            };
            match (entry.key.as_str(), entry.value.value) {
                ("items", Value::Sequence(items)) => {
                    for mut node in items {
                        if let Some((version, kind)) = &listed {
                            say(&mut node, "apiVersion", version);
                            say(&mut node, "kind", kind);
                        }
                        self.add(Text { node, file: file.clone() }, problems);
                    }
                }
                ("apiVersion" | "kind" | "metadata", _) | ("items", Value::Null) => {}
                ("items", _) => problems
                    .push(problem(entry.value.position, "items: expected a sequence".to_owned())),
                (unknown, _) => problems.push(
                    problem(entry.position, format!("{unknown} is not a field of List"))
                        .hint("the fields are apiVersion, kind, metadata, items"),
                ),
            }
        }
    }
}

impl Text {
    /// Whether it is of that kind and name.
    fn is_named<T: Resource>(&self, name: &str) -> bool {
        let steps = ["metadata".into(), "name".into()];
        self.node.text("apiVersion") == Some(T::API_VERSION)
            && self.node.text("kind") == Some(T::KIND)
            && self.node.at(&steps).and_then(|node| node.as_text()) == Some(name)
    }

    /// Whether it keeps pods apart in a way that the CNI alone understands.
    fn is_cni_policy(&self) -> bool {
        let version = self.node.text("apiVersion").unwrap_or_default();
        let kind = self.node.text("kind").unwrap_or_default();
        network_policy::is_of_cni(group(version)) && kind.ends_with("NetworkPolicy")
    }

    /// Of a list of one kind (`PodList`), as the API server answers, the version and the kind of its items.
    fn listed(&self) -> Option<(String, String)> {
        let kind = self.node.text("kind")?.strip_suffix("List").filter(|kind| !kind.is_empty())?;
        self.node.at(&["items".into()])?;
        Some((self.node.text("apiVersion")?.to_owned(), kind.to_owned()))
    }

    /// The name of the object's kind, if it is one of [`KINDS`].
    fn kind(&self) -> Result<&str, Unread> {
        if !matches!(self.node.value, Value::Mapping(_)) {
            let problem = self.problem(&[], "not a Kubernetes object");
            return Err(problem.hint("an object starts with apiVersion and kind").into());
        }
        let required = |field| {
            self.node.text(field).ok_or_else(|| {
                self.problem(&[Step::Field(field)], format!("the object names no {field}"))
                    .hint(format!("supported kinds are {}", supported()))
            })
        };
        let (version, kind) = (required("apiVersion")?, required("kind")?);
        let unsupported = |field, what: String| self.problem(&[Step::Field(field)], what);
        let is_foreign = foreign::is_kind(group(version), kind, &KINDS.map(|(name, _)| name));
        let unread = |problem| Unread { problem, is_foreign };
        match KINDS.iter().find(|(name, _)| *name == kind) {
            Some((_, versions)) if versions.contains(&version) => Ok(kind),
            // `Service` is a name other API groups use for things of their own.
            Some((_, [expected, ..])) if group(version) == group(expected) => {
                Err(unsupported("apiVersion", format!("{version} is no version of {kind}"))
                    .hint(format!("write apiVersion: {expected}"))
                    .into())
            }
            _ if is_foreign && foreign::is_of_meshes(group(version)) => {
                let what = format!("{kind} ({version}) is not supported yet");
                let problem = unsupported("kind", what);
                Err(unread(problem.hint(format!("supported kinds are {}", supported()))))
            }
            _ => {
                let hint = match nearest(kind, KINDS.map(|(name, _)| name)) {
                    Some(near) if near != kind => format!("did you mean `{near}`?"),
                    _ => format!("supported kinds are {}", supported()),
                };
                let what = format!("{kind} ({version}) is no kind the agent knows");
                Err(unread(unsupported("kind", what).hint(hint)))
            }
        }
    }

    fn keep<T>(self, objects: &mut Vec<Object<T>>, problems: &mut Vec<Problem>, required: &[&str])
    where
        T: for<'n> Deserialize<'n> + Metadata<Ty = ObjectMeta>,
    {
        let before = problems.len();
        let name: &[Step<'_>] = &["metadata".into(), "name".into()];
        let fields = required.iter().map(|field| vec![Step::Field(field)]);
        for steps in fields.chain([name.to_vec()]) {
            if self.node.at(&steps).is_none() {
                problems.push(self.missing(&steps));
            }
        }
        match fit::<T>(&self.node) {
            Ok(body) if problems.len() == before => {
                let object = Object::of_file(body, self);
                problems.extend(object.illegal_names());
                objects.push(object);
            }
            Ok(_) => {}
            Err(misfits) => problems.extend(misfits.into_iter().map(|misfit| {
                let place = Place::new(&self.file, Some(misfit.position));
                let problem = Problem::new(place, misfit.what);
                match misfit.hint {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                }
            })),
        }
    }
}

impl From<Problem> for Unread {
    fn from(problem: Problem) -> Self {
        Self { problem, is_foreign: false }
    }
}

/// Has an object say what `field` is, where it does not.
fn say(object: &mut Node, field: &str, text: &str) {
    let said = object.at(&[field.into()]).is_some();
    let position = object.position;
    if let (Value::Mapping(entries), false) = (&mut object.value, said) {
        let value = Node { position, value: Value::String(text.to_owned()) };
        entries.push(Entry { key: field.to_owned(), position, value });
    }
}

/// The objects by name, read by `read`. A second object of a name is a problem.
fn unique<T, F>(
    objects: &[Object<T>],
    problems: &mut Vec<Problem>,
    mut read: impl FnMut(&Object<T>) -> Result<Option<F>, Problem>,
) -> Table<F>
where
    T: Metadata<Ty = ObjectMeta>,
    F: Clone,
{
    let mut first: HashMap<(&str, &str), &Object<T>> = HashMap::new();
    let mut facts = Table::new();
    for object in objects {
        let name = (object.namespace(), object.name());
        if let Some(first) = first.get(&name) {
            let steps = ["metadata".into(), "name".into()];
            let what = named::<T>(name.0, name.1);
            let what = format!("{what} is defined already at {}", first.place(&steps));
            problems.push(Problem::new(object.place(&steps), what));
            continue;
        }
        first.insert(name, object);
        match read(object) {
            Ok(Some(read)) => drop(facts.insert((name.0.into(), name.1.into()), read)),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    facts
}

/// `what` is named `steps` below both `owner` and `claimant`.
fn taken<T: Metadata<Ty = ObjectMeta>>(
    objects: &[Object<T>],
    what: &dyn fmt::Display,
    steps: &[Step<'_>],
    owner: &Key,
    claimant: &Key,
) -> Problem {
    let place = |(namespace, name): &Key| {
        let mut named =
            objects.iter().filter(|o| o.namespace() == &**namespace && o.name() == &**name);
        named.next().expect("conflicts are among the objects they were read from").place(steps)
    };
    let name = |(namespace, name): &Key| named::<T>(namespace, name);
    let (owner_name, owner_place) = (name(owner), place(owner));
    let what = format!("{what} of {} belongs to {owner_name} at {owner_place}", name(claimant));
    Problem::new(place(claimant), what)
}

/// The API group of an `apiVersion`; empty for the core group.
pub(super) fn group(version: &str) -> &str {
    version.rsplit_once('/').map_or("", |(group, _)| group)
}

fn supported() -> String {
    KINDS.map(|(kind, versions)| format!("{kind} ({})", versions[0])).join(", ")
}
