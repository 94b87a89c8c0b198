//! A Pod as a workload.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use sha2::{Digest, Sha256};

use super::{error::Problem, manifest::Object, yaml::Step};
use crate::mesh::{Owner, PodUid, Principal, TrustDomain, Workload};

/// Label of namespaces and pods: whether they belong to the mesh.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Annotation of a pod in a file: where its network namespace is.
const NETNS: &str = "sluice.dev/netns";
/// Annotations with this prefix are resource attributes of the pod's spans.
const RESOURCE_ATTRIBUTE: &str = "resource.opentelemetry.io/";

/// What the agent has to do with a Pod.
#[derive(Debug)]
pub(super) enum Reading {
    /// It takes part, under these addresses; they are its own unless it uses the host's network.
    Workload(Box<Workload>, Vec<IpAddr>),
    /// It ended, and its address may be another pod's by now.
    Over,
    /// It has no address yet.
    NoAddress,
}

/// Reads one Pod. `namespace_mode` is the dataplane mode its namespace asks for.
pub(super) fn read(
    pod: &Object<Pod>,
    namespace_mode: Option<&str>,
    trust_domain: &TrustDomain,
) -> Result<Reading, Problem> {
    let (meta, spec) = (&pod.body.metadata, pod.body.spec.as_ref());
    let status = pod.body.status.as_ref();
    if matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return Ok(Reading::Over);
    }
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let addresses = addresses(pod)?;
    if addresses.is_empty() {
        return Ok(Reading::NoAddress);
    }

    let labels = meta.labels.clone().unwrap_or_default();
    let annotations = meta.annotations.as_ref();
    let mode = labels.get(DATAPLANE_MODE).map(String::as_str).or(namespace_mode);
    let workload = Workload {
        uid: uid(pod)?,
        name: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        owner: owner(pod.name(), meta.owner_references.as_deref().unwrap_or_default(), &labels),
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        ips: if host_network { Vec::new() } else { addresses.clone() },
        principal: principal(pod, trust_domain)?,
        meshed: mode == Some("ambient") && !host_network,
        netns: netns(pod)?,
        resource_attributes: annotations
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| {
                Some((key.strip_prefix(RESOURCE_ATTRIBUTE)?.to_owned(), value.clone()))
            })
            .collect(),
        labels,
    };
    Ok(Reading::Workload(Box::new(workload), addresses))
}

/// The dataplane mode the labels of a namespace ask for.
pub(super) fn dataplane_mode(labels: Option<&BTreeMap<String, String>>) -> Option<&str> {
    labels?.get(DATAPLANE_MODE).map(String::as_str)
}

/// `metadata.uid`; without one, as in files written by hand, a hash of namespace and name, as
/// the kubelet makes one for static pods: it stays the same as long as the pod is the same.
fn uid(pod: &Object<Pod>) -> Result<PodUid, Problem> {
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
    let parse = |text: &str, steps: &[Step<'_>]| {
        text.parse::<IpAddr>().map_err(|_| {
            pod.problem(steps, format_args!("`{}` is not an IP address", text.escape_debug()))
        })
    };
    let mut ips = Vec::new();
    for (index, entry) in status.pod_ips.iter().flatten().enumerate() {
        let steps = ["status".into(), "podIPs".into(), index.into(), "ip".into()];
        pod.require(&steps)?;
        ips.push(parse(&entry.ip, &steps)?);
    }
    if let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty()) {
        let ip = parse(ip, &["status".into(), "podIP".into()])?;
        if !ips.contains(&ip) {
            ips.insert(0, ip);
        }
    }
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

fn netns(pod: &Object<Pod>) -> Result<Option<PathBuf>, Problem> {
    let Some(path) = pod.body.metadata.annotations.as_ref().and_then(|all| all.get(NETNS)) else {
        return Ok(None);
    };
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
