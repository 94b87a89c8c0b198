//! Reads Services and EndpointSlices.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    Metadata,
    api::{
        core::v1::{Service, ServiceSpec},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{
    error::Problem,
    facts::{Condition, EndpointFacts, Hints, PortFacts, ServiceFacts, SliceFacts, Target},
    object::Object,
    protocol,
    shared::Shared,
    yaml::Step,
};

/// Label of an EndpointSlice: the Service it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Reads one Service.
pub(super) fn read(service: &Object<Service>) -> Result<ServiceFacts, Problem> {
    let spec = service.body.spec.as_ref().filter(|spec| !is_name(spec));
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
        let speaks = protocol::of_port(number, &name, port.app_protocol.as_deref());
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => Target::Number(number),
            Some(IntOrString::Int(target)) => {
                u16::try_from(*target).map_or(Target::Nowhere, Target::Number)
            }
            Some(IntOrString::String(name)) => Target::Name(name.clone()),
        };
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
        let node_port = node_port.filter(|port| *port > 0);
        ports.push(PortFacts { number, node_port, name, protocol: speaks, target });
    }
    let selector = spec.and_then(|spec| spec.selector.as_ref()).into_iter().flatten();
    Ok(ServiceFacts {
        vips: vips(service)?,
        external: external_addresses(service)?,
        lacks_vip: lacks_cluster_ip(service),
        selector: selector
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect(),
        publish_not_ready: spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false),
        affinity: affinity(service)?,
        stays_on_node: spec
            .and_then(|spec| spec.internal_traffic_policy.as_deref())
            .is_some_and(|policy| policy == "Local"),
        ports,
    })
}

/// Whether the Service is a name for DNS alone, whatever else is said of it.
fn is_name(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("ExternalName")
}

/// How long a client is sent to the same endpoint. Kubernetes' default is three hours.
fn affinity(service: &Object<Service>) -> Result<Option<Duration>, Problem> {
    const USUAL: i32 = 10_800;
    let Some(spec) = &service.body.spec else { return Ok(None) };
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Ok(None);
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = seconds.unwrap_or(USUAL);
    match u64::try_from(seconds) {
        Ok(seconds @ 1..=86_400) => Ok(Some(Duration::from_secs(seconds))),
        _ => {
            let steps = ["sessionAffinityConfig", "clientIP", "timeoutSeconds"].map(Step::Field);
            let steps: Vec<Step<'_>> = [Step::Field("spec")].into_iter().chain(steps).collect();
            Err(service
                .problem(&steps, format_args!("`{seconds}` is too short or too long"))
                .hint("1 to 86400 seconds"))
        }
    }
}

/// Reads one EndpointSlice, as `node` sees it; `None` when it has nothing to say about a Service.
pub(super) fn read_slice(
    slice: &Object<EndpointSlice>,
    node: &str,
    shared: &mut Shared,
) -> Result<Option<SliceFacts>, Problem> {
    let Some(service) = slice.label(SERVICE_NAME) else { return Ok(None) };
    if slice.body.address_type == "FQDN" {
        return Ok(None);
    }
    let mut ports = Vec::new();
    for (index, port) in slice.body.ports.iter().flatten().enumerate() {
        // A port without a number means every port, which no Service port can lead to.
        let Some(number) = port.port else { continue };
        if is_tcp(port.protocol.as_deref()) {
            let steps = ["ports".into(), index.into(), "port".into()];
            let number = port_number(slice, number, &steps)?;
            ports.push((port.name.as_deref().unwrap_or_default().into(), number));
        }
    }
    let all = slice.body.endpoints.as_deref().unwrap_or_default();
    let is_here = |endpoint: &Endpoint| endpoint.node_name.as_deref() == Some(node);
    let mut endpoints = Vec::with_capacity(all.len());
    for (index, endpoint) in all.iter().enumerate() {
        slice.require(&["endpoints".into(), index.into(), "addresses".into()])?;
        let pod = pod(slice, endpoint).map(|name| shared.text(name));
        let hints = hints(endpoint, node).map(|hints| shared.hints(hints));
        // All are the same endpoint's: no controller writes more than one, and nobody reads more.
        let Some(address) = addresses(slice, index, endpoint)?.into_iter().next() else { continue };
        let (condition, is_here) = (condition(endpoint), is_here(endpoint));
        endpoints.push(EndpointFacts { address, pod, condition, is_here, hints });
    }
    let mut zones = all.iter().filter(|one| is_here(one)).filter_map(|one| one.zone.as_deref());
    let zone = zones.next().map(|zone| shared.text(zone));
    let (service, ports) = (shared.text(service), shared.ports(ports));
    Ok(Some(SliceFacts { service, ports, endpoints: endpoints.into(), zone }))
}

fn addresses(
    slice: &Object<EndpointSlice>,
    index: usize,
    endpoint: &Endpoint,
) -> Result<Vec<IpAddr>, Problem> {
    let addresses = endpoint.addresses.iter().enumerate().map(|(address, text)| {
        let steps: [Step<'_>; 4] =
            ["endpoints".into(), index.into(), "addresses".into(), address.into()];
        ip(slice, text, &steps)
    });
    addresses.collect()
}

/// The name of the pod that an endpoint is said to be. No controller makes endpoints of pods of
/// other namespaces.
fn pod<'a>(slice: &Object<EndpointSlice>, endpoint: &'a Endpoint) -> Option<&'a str> {
    let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"))?;
    let is_here = target.namespace.as_deref().is_none_or(|other| other == slice.namespace());
    target.name.as_deref().filter(|_| is_here)
}

/// What nobody says of an endpoint is as the fields' documentation has it: it is ready, serves, and
/// stays.
fn condition(endpoint: &Endpoint) -> Condition {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let said = |condition: Option<bool>, unless_said| condition.unwrap_or(unless_said);
    let (serving, terminating) = (conditions.serving, conditions.terminating);
    match (said(conditions.ready, true), said(serving, true), said(terminating, false)) {
        (true, ..) => Condition::Ready,
        (false, true, true) => Condition::Leaving,
        _ => Condition::NotReady,
    }
}

fn hints(endpoint: &Endpoint, node: &str) -> Option<Hints> {
    let hints = endpoint.hints.as_ref()?;
    let nodes = hints.for_nodes.as_deref().unwrap_or_default();
    let zones = hints.for_zones.as_deref().unwrap_or_default();
    Some(Hints {
        for_nodes: !nodes.is_empty(),
        for_this_node: nodes.iter().any(|one| one.name == node),
        for_zones: zones.iter().map(|zone| zone.name.clone()).collect(),
    })
}

fn vips(service: &Object<Service>) -> Result<Vec<IpAddr>, Problem> {
    let spec = service.body.spec.as_ref().filter(|spec| !is_name(spec));
    let Some(spec) = spec else { return Ok(Vec::new()) };
    let several = spec.cluster_ips.iter().flatten().enumerate().map(|(index, ip)| {
        (ip, vec![Step::Field("spec"), Step::Field("clusterIPs"), Step::Item(index)])
    });
    let one =
        spec.cluster_ip.iter().map(|ip| (ip, vec![Step::Field("spec"), Step::Field("clusterIP")]));
    let mut vips = Vec::new();
    for (text, steps) in one.chain(several).filter(|(ip, _)| !ip.is_empty() && *ip != "None") {
        let ip = ip(service, text, &steps)
            .map_err(|problem| problem.hint("write `None` for a headless Service"))?;
        if !vips.contains(&ip) {
            vips.push(ip);
        }
    }
    Ok(vips)
}

/// The addresses by which the Service is reached from outside the cluster, and which every node
/// leads to its endpoints without asking anybody outside. That is kube-proxy's rule, with its
/// exception: a load balancer of `ipMode: Proxy` (Kubernetes 1.29) wants to see what is sent to
/// it.
fn external_addresses(service: &Object<Service>) -> Result<Vec<IpAddr>, Problem> {
    let spec = service.body.spec.as_ref();
    if spec.is_some_and(is_name) {
        return Ok(Vec::new());
    }
    let listed = spec.and_then(|spec| spec.external_ips.as_ref()).into_iter().flatten();
    let listed = listed.enumerate().map(|(index, text)| {
        (text.as_str(), vec!["spec".into(), "externalIPs".into(), index.into()])
    });
    let balancer = service.body.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let ingress = ingress.enumerate().filter_map(|(index, ingress)| {
        let text = ingress.ip.as_deref().filter(|text| !text.is_empty())?;
        (ingress.ip_mode.as_deref() != Some("Proxy")).then_some(())?;
        let steps = ["status".into(), "loadBalancer".into(), "ingress".into(), index.into()];
        Some((text, steps.into_iter().chain(["ip".into()]).collect::<Vec<Step<'_>>>()))
    });
    let mut addresses = Vec::new();
    for (text, steps) in listed.chain(ingress) {
        let ip = ip(service, text, &steps)?;
        if leads_outside(ip) && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    Ok(addresses)
}

/// Whether an address may be that of something on a network: what a pod dials on itself is never
/// a Service's.
fn leads_outside(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// Whether the Service is one that is given a cluster IP by the API server but has none here.
fn lacks_cluster_ip(service: &Object<Service>) -> bool {
    service.body.spec.as_ref().is_some_and(|spec| {
        let unset = |ip: Option<&String>| ip.is_none_or(String::is_empty);
        !is_name(spec)
            && unset(spec.cluster_ip.as_ref())
            && unset(spec.cluster_ips.as_ref().and_then(|ips| ips.first()))
    })
}

pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// An address at `steps` below `object`.
pub(super) fn ip<T: Metadata<Ty = ObjectMeta>>(
    object: &Object<T>,
    text: &str,
    steps: &[Step<'_>],
) -> Result<IpAddr, Problem> {
    text.parse().map_err(|_| {
        object.problem(steps, format_args!("`{}` is not an IP address", text.escape_debug()))
    })
}

fn port_number<T: Metadata<Ty = ObjectMeta>>(
    object: &Object<T>,
    port: i32,
    steps: &[Step<'_>],
) -> Result<u16, Problem> {
    u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| {
        object.problem(steps, format_args!("`{port}` is not a port")).hint("1 to 65535")
    })
}
