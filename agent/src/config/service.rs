//! A Service and its endpoints.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{error::Problem, manifest::Object, protocol, yaml::Step};
use crate::mesh::{self, Workload};

/// Label of an EndpointSlice: the Service it belongs to.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The pods of one load, as endpoints find them.
#[derive(Debug, Default)]
pub(super) struct Pods<'a> {
    /// Those with an address of their own.
    pub(super) by_ip: HashMap<IpAddr, Arc<Workload>>,
    /// Those on the host's network, by namespace and name.
    pub(super) on_host: HashMap<(&'a str, &'a str), Arc<Workload>>,
    /// All of them, in the order of their names.
    pub(super) all: Vec<Candidate<'a>>,
}

/// A pod that a selector may select.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) pod: &'a Object<Pod>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) workload: Arc<Workload>,
}

/// Reads one Service with the slices that belong to it. Without a slice, the endpoints of a
/// Service with a selector are the ready pods it selects: the API server's endpoint slice
/// controller would make the same of them, and files written by hand seldom have slices.
pub(super) fn read(
    service: &Object<Service>,
    slices: &[&Object<EndpointSlice>],
    pods: &Pods<'_>,
) -> Result<mesh::Service, Problem> {
    let spec = service.body.spec.as_ref();
    let mut ports = Vec::new();
    for (index, port) in spec.and_then(|spec| spec.ports.as_ref()).into_iter().flatten().enumerate()
    {
        let steps = ["spec".into(), "ports".into(), index.into(), "port".into()];
        service.require(&steps)?;
        let number = port_number(service, port.port, &steps)?;
        if !is_tcp(port.protocol.as_deref()) {
            continue;
        }
        let name = port.name.clone().unwrap_or_default();
        let mut endpoints = match spec.and_then(|spec| spec.selector.as_ref()) {
            Some(selector) if slices.is_empty() && !selector.is_empty() => {
                selected(service, port, number, selector, pods)
            }
            _ => sliced(&name, slices, pods)?,
        };
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        let speaks = protocol::of_port(number, &name, port.app_protocol.as_deref());
        ports.push(Arc::new(mesh::ServicePort::new(number, name, speaks, endpoints)));
    }
    Ok(mesh::Service {
        name: service.name().to_owned(),
        namespace: service.namespace().to_owned(),
        vips: vips(service)?,
        ports,
    })
}

fn vips(service: &Object<Service>) -> Result<Vec<IpAddr>, Problem> {
    let Some(spec) = &service.body.spec else { return Ok(Vec::new()) };
    let several = spec.cluster_ips.iter().flatten().enumerate().map(|(index, ip)| {
        (ip, vec![Step::Field("spec"), Step::Field("clusterIPs"), Step::Item(index)])
    });
    let one =
        spec.cluster_ip.iter().map(|ip| (ip, vec![Step::Field("spec"), Step::Field("clusterIP")]));
    let mut vips = Vec::new();
    for (ip, steps) in one.chain(several).filter(|(ip, _)| !ip.is_empty() && *ip != "None") {
        let ip = ip.parse().map_err(|_| {
            service
                .problem(&steps, format_args!("`{}` is not an IP address", ip.escape_debug()))
                .hint("write `None` for a headless Service")
        })?;
        if !vips.contains(&ip) {
            vips.push(ip);
        }
    }
    Ok(vips)
}

/// Whether the Service is one that is given a cluster IP by the API server but has none here.
pub(super) fn lacks_cluster_ip(service: &Object<Service>) -> bool {
    service.body.spec.as_ref().is_some_and(|spec| {
        let unset = |ip: Option<&String>| ip.is_none_or(String::is_empty);
        spec.type_.as_deref() != Some("ExternalName")
            && unset(spec.cluster_ip.as_ref())
            && unset(spec.cluster_ips.as_ref().and_then(|ips| ips.first()))
    })
}

/// The ready endpoints that `slices` have for the port called `name`.
fn sliced(
    name: &str,
    slices: &[&Object<EndpointSlice>],
    pods: &Pods<'_>,
) -> Result<Vec<mesh::Endpoint>, Problem> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.body.address_type != "FQDN") {
        for (index, port) in slice.body.ports.iter().flatten().enumerate() {
            let EndpointPort { name: port_name, port, protocol, .. } = port;
            if port_name.as_deref().unwrap_or_default() != name || !is_tcp(protocol.as_deref()) {
                continue;
            }
            let steps = ["ports".into(), index.into(), "port".into()];
            // A port without a number means every port, which no Service port can lead to.
            let Some(port) = *port else { continue };
            let port = port_number(slice, port, &steps)?;
            for (index, endpoint) in slice.body.endpoints.iter().flatten().enumerate() {
                found.extend(addresses(slice, index, endpoint, port, pods)?);
            }
        }
    }
    Ok(found)
}

fn addresses(
    slice: &Object<EndpointSlice>,
    index: usize,
    endpoint: &Endpoint,
    port: u16,
    pods: &Pods<'_>,
) -> Result<Vec<mesh::Endpoint>, Problem> {
    slice.require(&["endpoints".into(), index.into(), "addresses".into()])?;
    // Nothing said means ready, as the field's documentation has it.
    if !endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true) {
        return Ok(Vec::new());
    }
    let host_pod = || {
        let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"))?;
        let namespace = target.namespace.as_deref().unwrap_or(slice.namespace());
        pods.on_host.get(&(namespace, target.name.as_deref()?)).cloned()
    };
    endpoint
        .addresses
        .iter()
        .enumerate()
        .map(|(address, text)| {
            let ip: IpAddr = text.parse().map_err(|_| {
                let steps = ["endpoints".into(), index.into(), "addresses".into(), address.into()];
                slice
                    .problem(&steps, format_args!("`{}` is not an IP address", text.escape_debug()))
            })?;
            // The address decides who is there; a reference may outlive the pod it names. Only
            // a host-network pod, which has no address of its own, is known by reference.
            let workload = pods.by_ip.get(&ip).cloned().or_else(host_pod);
            Ok(mesh::Endpoint { address: SocketAddr::new(ip, port), workload })
        })
        .collect()
}

/// The ready pods that `selector` selects, at the target port of `port`.
fn selected(
    service: &Object<Service>,
    port: &ServicePort,
    number: u16,
    selector: &BTreeMap<String, String>,
    pods: &Pods<'_>,
) -> Vec<mesh::Endpoint> {
    let spec = service.body.spec.as_ref();
    let also_not_ready = spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    pods.all
        .iter()
        .filter(|Candidate { pod, workload, .. }| {
            workload.namespace == service.namespace()
                && selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
                && (also_not_ready || is_ready(pod))
        })
        .filter_map(|candidate| {
            let port = target_port(candidate.pod, port.target_port.as_ref(), number)?;
            Some((candidate, port))
        })
        .flat_map(|(Candidate { addresses, workload, .. }, port)| {
            addresses.iter().map(move |ip| mesh::Endpoint {
                address: SocketAddr::new(*ip, port),
                workload: Some(workload.clone()),
            })
        })
        .collect()
}

/// Whether the pod may take traffic; one without conditions was written by hand.
fn is_ready(pod: &Object<Pod>) -> bool {
    let conditions = pod.body.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.body.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready")
            .is_none_or(|condition| condition.status == "True")
}

fn target_port(pod: &Object<Pod>, target: Option<&IntOrString>, port: u16) -> Option<u16> {
    let name = match target {
        None | Some(IntOrString::Int(0)) => return Some(port),
        Some(IntOrString::Int(number)) => return u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => name,
    };
    let containers = pod.body.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_ref() == Some(name) && is_tcp(port.protocol.as_deref()))
        .and_then(|port| u16::try_from(port.container_port).ok())
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

fn port_number<T>(object: &Object<T>, port: i32, steps: &[Step<'_>]) -> Result<u16, Problem>
where
    T: k8s_openapi::Metadata<Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>,
{
    u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| {
        object.problem(steps, format_args!("`{port}` is not a port")).hint("1 to 65535")
    })
}
