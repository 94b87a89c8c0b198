//! A Pod as a workload.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use sha2::{Digest, Sha256};

use super::{
    error::Problem,
    facts::{Condition, Mode, NamespaceFacts, PodFacts},
    object::Object,
    service::{ip, is_tcp},
    shared::Shared,
    yaml::Step,
};
use crate::{
    jwt::Authentication,
    mesh::{
        DATAPLANE_MODE, MutualTls, Owner, PodUid, Principal, REDIRECTION, REDIRECTION_ENABLED,
        TrustDomain, Workload,
    },
    policy::Authorization,
};

/// Annotation of a pod in a file: where its network namespace is.
const NETNS: &str = "sluice.dev/netns";
/// Annotation by which Istio's injector tells that it gave the pod a proxy of its own.
const SIDECAR: &str = "sidecar.istio.io/status";
/// Annotations with this prefix are resource attributes of the pod's spans.
const RESOURCE_ATTRIBUTE: &str = "resource.opentelemetry.io/";

/// Reads one Pod; `None` when it ended, and its address may be another pod's by now. What its
/// namespace asks for is settled later: that changes on its own.
///
/// A pod of another node than `node` is not told about more than its peers need to know.
pub(super) fn read(
    pod: &Object<Pod>,
    trust_domain: &TrustDomain,
    node: &str,
    shared: &mut Shared,
) -> Result<Option<PodFacts>, Problem> {
    let (meta, spec) = (&pod.body.metadata, pod.body.spec.as_ref());
    let status = pod.body.status.as_ref();
    if matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return Ok(None);
    }
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let (ips, host_addresses) = match (addresses(pod)?, host_network) {
        (addresses, true) => (Vec::new(), addresses.into()),
        (addresses, false) => (addresses, Box::default()),
    };
    let labels = meta.labels.clone().unwrap_or_default();
    let mode = labels.get(DATAPLANE_MODE).and_then(|mode| Mode::of(mode));
    let annotations = meta.annotations.as_ref();
    let sidecar = annotations.is_some_and(|all| all.contains_key(SIDECAR));
    let its_node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let is_here = its_node == node;
    let netns = netns(pod)?;
    let workload = Workload {
        uid: uid(pod)?,
        name: shared.text(pod.name()),
        namespace: shared.text(pod.namespace()),
        owner: shared.owner(owner(
            pod.name(),
            meta.owner_references.as_deref().unwrap_or_default(),
            &labels,
        )),
        node: shared.text(its_node),
        ips,
        principal: shared.principal(principal(pod, trust_domain)?),
        sidecar,
        meshed: false,
        captured: captured(pod),
        policed: None,
        mtls: MutualTls::none(),
        authorization: Authorization::none(),
        authentication: Authentication::none(),
        starts: if is_here { starts(pod) } else { 0 },
        netns: netns.filter(|_| is_here),
        resource_attributes: annotations
            .into_iter()
            .flatten()
            .filter(|_| is_here)
            .filter_map(|(key, value)| {
                Some((key.strip_prefix(RESOURCE_ATTRIBUTE)?.to_owned(), value.clone()))
            })
            .collect(),
        labels: shared.labels(labels),
    };
    Ok(Some(PodFacts {
        workload: Arc::new(workload),
        host_addresses,
        node_addresses: shared.addresses(node_addresses(pod)?),
        mode,
        host_network,
        condition: condition(pod),
        ports: shared.ports(ports(pod)),
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
    }))
}

/// Whether the agent of the pod's node tells that it is captured. No agent writes to files: there
/// a pod that is to be captured is, unless they say otherwise.
fn captured(pod: &Object<Pod>) -> bool {
    let told = pod.body.metadata.annotations.as_ref().and_then(|all| all.get(REDIRECTION));
    told.map_or(pod.is_of_file(), |told| told == REDIRECTION_ENABLED)
}

/// The dataplane mode that a Namespace asks for.
pub(super) fn read_namespace(namespace: &Object<Namespace>) -> NamespaceFacts {
    NamespaceFacts { mode: namespace.label(DATAPLANE_MODE).and_then(Mode::of) }
}

/// Whether the pod takes traffic; one without conditions was written by hand.
fn condition(pod: &Object<Pod>) -> Condition {
    let conditions = pod.body.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready");
    match (ready.is_none_or(|ready| ready.status == "True"), &pod.body.metadata.deletion_timestamp)
    {
        (true, None) => Condition::Ready,
        (true, Some(_)) => Condition::Leaving,
        (false, _) => Condition::NotReady,
    }
}

/// How often containers of the pod have started, restarts included.
fn starts(pod: &Object<Pod>) -> u32 {
    let status = pod.body.status.as_ref();
    let of = |statuses: Option<&Vec<ContainerStatus>>| -> u32 {
        let started = statuses.into_iter().flatten().filter(|container| {
            let state = container.state.as_ref();
            state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        });
        started.map(|container| 1 + container.restart_count.try_into().unwrap_or(0)).sum()
    };
    of(status.and_then(|status| status.init_container_statuses.as_ref()))
        + of(status.and_then(|status| status.container_statuses.as_ref()))
}

/// The TCP ports that containers give a name.
fn ports(pod: &Object<Pod>) -> Vec<(Box<str>, u16)> {
    let containers = pod.body.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| is_tcp(port.protocol.as_deref()))
        .filter_map(|port| {
            Some((port.name.as_deref()?.into(), u16::try_from(port.container_port).ok()?))
        })
        .collect()
}

/// Annotations of the object that stands for a static pod in the API server, which the kubelet makes
/// from a file of its node: that it does, and the UID that the kubelet and the runtime know the pod
/// by. The object has another one.
const MIRROR: &str = "kubernetes.io/config.mirror";
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// The UID by which the node knows a static pod. Anybody who creates pods can write annotations:
/// it has to have a form that no UID of the API server has.
fn static_uid(pod: &Object<Pod>) -> Option<PodUid> {
    let annotations = pod.body.metadata.annotations.as_ref()?;
    let hash = annotations.get(MIRROR).and_then(|_| annotations.get(STATIC_UID))?;
    PodUid::new(hash).filter(PodUid::is_static)
}

/// That of a static pod, or `metadata.uid`; without one, as in files written by hand, a hash of namespace and name, as
/// the kubelet makes one for static pods: it stays the same as long as the pod is the same.
fn uid(pod: &Object<Pod>) -> Result<PodUid, Problem> {
    if let Some(uid) = static_uid(pod) {
        return Ok(uid);
    }
    let Some(uid) = &pod.body.metadata.uid else {
        let hash = Sha256::digest(format!("{}/{}", pod.namespace(), pod.name()));
        let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        return Ok(PodUid::new(&hex).expect("32 hexadecimal digits are a UID"));
    };
    PodUid::new(uid).ok_or_else(|| {
        pod.problem(
            &["metadata".into(), "uid".into()],
            format_args!("`{}` is not a UID", uid.escape_debug()),
        )
        .hint("letters, digits and `-`, at most 64; without a uid, one is made from the name")
    })
}

fn addresses(pod: &Object<Pod>) -> Result<Vec<IpAddr>, Problem> {
    let Some(status) = &pod.body.status else { return Ok(Vec::new()) };
    let all = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    status_addresses(pod, status.pod_ip.as_deref(), "podIP", all, "podIPs")
}

/// The addresses of the pod's node. A kubelet tells one of each family, those inside the cluster
/// before those outside; so whoever reads pods needs no right to read nodes.
fn node_addresses(pod: &Object<Pod>) -> Result<Vec<IpAddr>, Problem> {
    let Some(status) = &pod.body.status else { return Ok(Vec::new()) };
    let all = status.host_ips.iter().flatten().map(|entry| entry.ip.as_str());
    status_addresses(pod, status.host_ip.as_deref(), "hostIP", all, "hostIPs")
}

/// What the fields `first` and `rest` of the status hold, of which the former repeats one of the
/// latter where both are there.
fn status_addresses<'a>(
    pod: &Object<Pod>,
    one: Option<&str>,
    first: &str,
    all: impl Iterator<Item = &'a str>,
    rest: &str,
) -> Result<Vec<IpAddr>, Problem> {
    let mut ips = Vec::new();
    for (index, text) in all.enumerate() {
        let steps = ["status".into(), Step::Field(rest), index.into(), "ip".into()];
        pod.require(&steps)?;
        ips.push(ip(pod, text, &steps)?);
    }
    if let Some(text) = one.filter(|text| !text.is_empty()) {
        let ip = ip(pod, text, &["status".into(), Step::Field(first)])?;
        if !ips.contains(&ip) {
            ips.insert(0, ip);
        }
    }
    ips.shrink_to_fit();
    Ok(ips)
}

fn principal(pod: &Object<Pod>, trust_domain: &TrustDomain) -> Result<Principal, Problem> {
    let account = pod
        .body
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref().filter(|name| !name.is_empty()))
        .unwrap_or("default");
    Principal::new(trust_domain.clone(), pod.namespace(), account).map_err(|_| {
        pod.problem(
            &["spec".into(), "serviceAccountName".into()],
            format_args!("`{}` is not the name of a service account", account.escape_debug()),
        )
        .hint("lower-case letters, digits, `-` and `.`")
    })
}

/// What a file says about the pod's network namespace. In a cluster whoever may create a pod
/// writes its annotations, so there the node alone is asked.
fn netns(pod: &Object<Pod>) -> Result<Option<PathBuf>, Problem> {
    let annotations = pod.body.metadata.annotations.as_ref().filter(|_| pod.is_of_file());
    let Some(path) = annotations.and_then(|all| all.get(NETNS)) else { return Ok(None) };
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        let steps = ["metadata".into(), "annotations".into(), NETNS.into()];
        return Err(pod
            .problem(&steps, format_args!("`{}` is not an absolute path", path.display()))
            .hint("/run/netns/<name> for one that `ip netns add` made"));
    }
    Ok(Some(path))
}

/// The controller, with what stands between it and the pod folded away: a `Deployment` owns
/// its pods through a `ReplicaSet`, a `CronJob` through a `Job`.
fn owner(pod: &str, references: &[OwnerReference], labels: &BTreeMap<String, String>) -> Owner {
    let Some(controller) = references.iter().find(|owner| owner.controller == Some(true)) else {
        return Owner { kind: "Pod".to_owned(), name: pod.to_owned() };
    };
    let OwnerReference { kind, name, .. } = controller;
    let folded = match kind.as_str() {
        "ReplicaSet" => labels
            .get("pod-template-hash")
            .and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'))
            .map(|name| ("Deployment", name)),
        // The name's end is the scheduled time, in minutes since 1970.
        "Job" => name
            .rsplit_once('-')
            .filter(|(_, time)| {
                (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit())
            })
            .map(|(name, _)| ("CronJob", name)),
        _ => None,
    };
    let (kind, name) =
        folded.filter(|(_, name)| !name.is_empty()).unwrap_or((kind.as_str(), name.as_str()));
    Owner { kind: kind.to_owned(), name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(kind: &str, name: &str, hash: Option<&str>) -> (String, String) {
        let reference = OwnerReference {
            kind: kind.to_owned(),
            name: name.to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let labels = hash.map(|hash| ("pod-template-hash".to_owned(), hash.to_owned()));
        let owner = owner("pod", &[reference], &labels.into_iter().collect());
        (owner.kind, owner.name)
    }

    #[test]
    fn what_stands_between_a_controller_and_its_pods_is_folded_away() {
        let owner = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
        let hash = Some("5d89f");
        assert_eq!(folded("ReplicaSet", "order-5d89f", hash), owner("Deployment", "order"));
        assert_eq!(folded("ReplicaSet", "order-5d89f", None), owner("ReplicaSet", "order-5d89f"));
        assert_eq!(folded("ReplicaSet", "-5d89f", hash), owner("ReplicaSet", "-5d89f"));
        assert_eq!(folded("Job", "report-29384756", None), owner("CronJob", "report"));
        assert_eq!(folded("Job", "report-once", None), owner("Job", "report-once"));
        assert_eq!(folded("StatefulSet", "db", None), owner("StatefulSet", "db"));
    }
}
