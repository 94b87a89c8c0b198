//! The kinds that are watched, and what is kept of each.

use std::{collections::BTreeMap, fmt::Debug};

use k8s_openapi::{
    Metadata, Resource,
    api::{
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;

use super::{
    arrival::Arrival,
    tables::{Change, Delta, Verdict},
};
use crate::{
    config::{
        compile::{Facts, Key},
        error::{Place, Problem},
        facts::{
            NamespaceFacts, NetworkPolicyFacts, PeerAuthenticationFacts, PodFacts, ServiceFacts,
            SliceFacts,
        },
        network_policy,
        object::{Object, named},
        peer_authentication::{self, PeerAuthentication},
        service,
        shared::Shared,
        workload,
    },
    mesh::TrustDomain,
};

/// The facts of one kind.
pub(super) trait Kind: Sized + Send + 'static {
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

    /// What is to be kept of an object, if anything.
    fn read(object: &Object<Self::Object>, reader: &mut Reader) -> Result<Option<Self>, Problem>;

    /// What is in force of an object that cannot be read, whatever was before; `None` for those
    /// whose last good version stays.
    fn of_unreadable() -> Option<Self> {
        None
    }

    /// What is kept of all objects of the kind.
    fn table(facts: &mut Facts) -> &mut BTreeMap<Key, Self>;

    /// A change of this kind among those of all kinds.
    fn change(delta: Delta<Self>) -> Change;
}

/// What reading needs beside the objects.
#[derive(Debug)]
pub(super) struct Reader {
    trust_domain: TrustDomain,
    shared: Shared,
}

impl Reader {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, shared: Shared::default() }
    }

    /// Reads an object; what cannot be obeyed is its problem, with its name and the field.
    pub(super) fn read<F: Kind>(&mut self, arrival: Arrival<F::Object>) -> (Key, Verdict<F>) {
        let Arrival { key, object, version: _ } = arrival;
        let verdict = match object {
            Ok(body) => F::read(&Object::of_cluster(body), self),
            Err(why) => {
                let place = Place::object(&named::<F::Object>(&key.0, &key.1));
                Err(Problem::new(place, why)
                    .hint("this version of the agent reads another form of the kind"))
            }
        };
        (key, verdict)
    }

    /// Lets go of what no object has in common any more.
    pub(super) fn sweep(&mut self) {
        self.shared.sweep();
    }
}

impl Kind for NamespaceFacts {
    type Object = Namespace;

    const PLURAL: &'static str = "namespaces";

    fn read(namespace: &Object<Namespace>, _: &mut Reader) -> Result<Option<Self>, Problem> {
        Ok(Some(workload::read_namespace(namespace)))
    }

    fn table(facts: &mut Facts) -> &mut BTreeMap<Key, Self> {
        &mut facts.namespaces
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::Namespaces(delta)
    }
}

impl Kind for PodFacts {
    type Object = Pod;

    const PLURAL: &'static str = "pods";

    fn read(pod: &Object<Pod>, reader: &mut Reader) -> Result<Option<Self>, Problem> {
        workload::read(pod, &reader.trust_domain, &mut reader.shared)
    }

    fn table(facts: &mut Facts) -> &mut BTreeMap<Key, Self> {
        &mut facts.pods
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::Pods(delta)
    }
}

impl Kind for ServiceFacts {
    type Object = Service;

    const PLURAL: &'static str = "services";

    fn read(object: &Object<Service>, _: &mut Reader) -> Result<Option<Self>, Problem> {
        service::read(object).map(Some)
    }

    fn table(facts: &mut Facts) -> &mut BTreeMap<Key, Self> {
        &mut facts.services
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::Services(delta)
    }
}

impl Kind for SliceFacts {
    type Object = EndpointSlice;

    const PLURAL: &'static str = "endpointslices";

    fn read(slice: &Object<EndpointSlice>, reader: &mut Reader) -> Result<Option<Self>, Problem> {
        service::read_slice(slice, &mut reader.shared)
    }

    fn table(facts: &mut Facts) -> &mut BTreeMap<Key, Self> {
        &mut facts.slices
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

    fn read(policy: &Object<PeerAuthentication>, _: &mut Reader) -> Result<Option<Self>, Problem> {
        peer_authentication::read(policy).map(Some)
    }

    fn table(facts: &mut Facts) -> &mut BTreeMap<Key, Self> {
        &mut facts.peer_authentications
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::PeerAuthentications(delta)
    }
}

impl Kind for NetworkPolicyFacts {
    type Object = NetworkPolicy;

    const PLURAL: &'static str = "networkpolicies";

    fn read(policy: &Object<NetworkPolicy>, _: &mut Reader) -> Result<Option<Self>, Problem> {
        network_policy::read(policy).map(Some)
    }

    /// Whom it selects is not known: it may be everybody in its namespace.
    fn of_unreadable() -> Option<Self> {
        Some(Self::default())
    }

    fn table(facts: &mut Facts) -> &mut BTreeMap<Key, Self> {
        &mut facts.network_policies
    }

    fn change(delta: Delta<Self>) -> Change {
        Change::NetworkPolicies(delta)
    }
}
