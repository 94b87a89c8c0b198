//! Reads Services and EndpointSlices.

use std::net::IpAddr;

use k8s_openapi::{
    Metadata,
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{
    error::Problem,
    facts::{EndpointFacts, PortFacts, ServiceFacts, SliceFacts, Target},
    object::Object,
    protocol,
    shared::Shared,
    yaml::Step,
};

/// Label of an EndpointSlice: the Service it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Reads one Service.
pub(super) fn read(service: &Object<Service>) -> Result<ServiceFacts, Problem> {
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
    Ok(ServiceFacts {
        vips: vips(service)?,
        external: external_addresses(service)?,
        lacks_vip: lacks_cluster_ip(service),
        selector: spec.and_then(|spec| spec.selector.clone()).unwrap_or_default(),
        publish_not_ready: spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false),
        ports,
    })
}

/// Reads one EndpointSlice; `None` when it has nothing to say about a Service.
pub(super) fn read_slice(
    slice: &Object<EndpointSlice>,
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
    let mut endpoints = Vec::new();
    for (index, endpoint) in slice.body.endpoints.iter().flatten().enumerate() {
        slice.require(&["endpoints".into(), index.into(), "addresses".into()])?;
        // Nothing said means ready, as the field's documentation has it.
        if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true) {
            endpoints.push(read_endpoint(slice, index, endpoint, shared)?);
        }
    }
    Ok(Some(SliceFacts { service: shared.text(service), ports, endpoints }))
}

fn read_endpoint(
    slice: &Object<EndpointSlice>,
    index: usize,
    endpoint: &Endpoint,
    shared: &mut Shared,
) -> Result<EndpointFacts, Problem> {
    let addresses = endpoint.addresses.iter().enumerate().map(|(address, text)| {
        let steps: [Step<'_>; 4] =
            ["endpoints".into(), index.into(), "addresses".into(), address.into()];
        ip(slice, text, &steps)
    });
    let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
    let pod = target.and_then(|target| {
        let namespace = target.namespace.as_deref().unwrap_or(slice.namespace());
        Some((shared.text(namespace), target.name.as_deref()?.into()))
    });
    Ok(EndpointFacts { addresses: addresses.collect::<Result<_, _>>()?, pod })
}

fn vips(service: &Object<Service>) -> Result<Vec<IpAddr>, Problem> {
    let Some(spec) = &service.body.spec else { return Ok(Vec::new()) };
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
        spec.type_.as_deref() != Some("ExternalName")
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
