//! Who asks, and what is dialled.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::Unclear;
use crate::mesh::{Destination, Endpoint, Principal, Service, ServicePort, Snapshot, Workload};

/// An address that is nobody's (RFC 5737), for whoever has none that is known.
const NOBODYS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// The namespace where none is named, as with `kubectl`.
pub(super) const USUAL_NAMESPACE: &str = "default";

/// Whoever asks.
pub(super) struct Source {
    pub(super) words: String,
    pub(super) pod: Option<Arc<Workload>>,
    /// Who it can prove to be.
    pub(super) principal: Option<Principal>,
    pub(super) ip: IpAddr,
    /// What is taken for granted of it.
    pub(super) note: Option<String>,
}

impl Source {
    pub(super) fn resolve(snapshot: &Snapshot, text: &str) -> Result<Self, Unclear> {
        if text == "outside" {
            let note = format!(
                "the client outside has no address: rules about addresses are judged as for {NOBODYS} \
                 (hint: name its address in place of `outside`)"
            );
            let words = "a client outside the mesh, in plaintext".to_owned();
            return Ok(Self { words, pod: None, principal: None, ip: NOBODYS, note: Some(note) });
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(match snapshot.workload(ip) {
                Some(pod) => Self::pod(pod, ip),
                None => Self {
                    words: format!("{ip}, which is no pod's: in plaintext"),
                    pod: None,
                    principal: None,
                    ip,
                    note: None,
                },
            });
        }
        if let Some(principal) = principal(snapshot, text)? {
            let mut pods = snapshot.workloads();
            let pod = pods.find(|pod| pod.principal == principal && !pod.ips.is_empty());
            let note = pod.is_none().then(|| {
                format!(
                    "no pod runs as {principal}: rules about addresses are judged as for {NOBODYS}"
                )
            });
            return Ok(Self {
                words: format!("whoever is {principal}"),
                ip: pod.map_or(NOBODYS, |pod| pod.ips[0]),
                pod: None,
                principal: Some(principal),
                note,
            });
        }
        let (namespace, name) = text.split_once('/').unwrap_or((USUAL_NAMESPACE, text));
        let pod = pod(snapshot, namespace, name).ok_or_else(|| {
            Unclear(format!(
                "there is no pod {namespace}/{name} (hint: namespace/pod, a principal, \
                 sa:namespace/account, an address, or `outside`{})",
                there(snapshot, namespace)
            ))
        })?;
        Ok(Self::pod(pod, pod.ips.first().copied().unwrap_or(NOBODYS)))
    }

    fn pod(pod: &Arc<Workload>, ip: IpAddr) -> Self {
        let Workload { namespace, name, principal, .. } = &**pod;
        let proves = pod.meshed && pod.captured;
        let who = match (pod.meshed, pod.captured) {
            (true, true) => format!("as {principal}"),
            (true, false) => "which is not captured yet: in plaintext".to_owned(),
            (false, _) => "which is not in the mesh: in plaintext".to_owned(),
        };
        Self {
            words: format!("pod {namespace}/{name} ({ip}), {who}"),
            principal: proves.then(|| principal.clone()),
            pod: Some(pod.clone()),
            ip,
            note: None,
        }
    }
}

/// The principal that `text` is written as, if it is one.
fn principal(snapshot: &Snapshot, text: &str) -> Result<Option<Principal>, Unclear> {
    let unclear = |why: &dyn ToString| Unclear(why.to_string());
    if let Some(account) = text.strip_prefix("sa:") {
        let (namespace, name) = account.split_once('/').unwrap_or((USUAL_NAMESPACE, account));
        let principal = Principal::new(snapshot.trust_domain.clone(), namespace, name);
        return principal.map(Some).map_err(|why| unclear(&why));
    }
    let with_scheme = match text.contains("/ns/") {
        _ if text.starts_with("spiffe://") => text.to_owned(),
        true => format!("spiffe://{text}"),
        false => return Ok(None),
    };
    with_scheme.parse().map(Some).map_err(|why| unclear(&why))
}

/// The pod of that name, or else one of the controller of that name.
fn pod<'a>(snapshot: &'a Snapshot, namespace: &'a str, name: &'a str) -> Option<&'a Arc<Workload>> {
    pods(snapshot, namespace, name).next()
}

/// The pod of that name, or else those of the controller of that name.
pub(super) fn pods<'a>(
    snapshot: &'a Snapshot,
    namespace: &'a str,
    name: &'a str,
) -> impl Iterator<Item = &'a Arc<Workload>> {
    let there = move || snapshot.workloads().filter(move |pod| *pod.namespace == *namespace);
    let itself = there().find(|pod| *pod.name == *name);
    let made = there().filter(move |pod| itself.is_none() && pod.owner.name == name);
    itself.into_iter().chain(made)
}

/// Some of the pods of a namespace, for a hint.
pub(super) fn there(snapshot: &Snapshot, namespace: &str) -> String {
    let pods = snapshot.workloads().filter(|pod| *pod.namespace == *namespace);
    let mut names: Vec<_> = pods.map(|pod| &*pod.name).collect();
    names.sort_unstable();
    names.truncate(5);
    if names.is_empty() {
        return format!("; no pod of namespace {namespace} is known");
    }
    format!("; pods of namespace {namespace} are {}", names.join(", "))
}

/// What is dialled.
pub(super) struct Dialled {
    pub(super) words: String,
    pub(super) destination: Destination,
    /// What clients say whom they ask.
    pub(super) host: String,
    /// The address that is dialled; of a Service without one, any.
    address: SocketAddr,
}

impl Dialled {
    pub(super) fn resolve(
        snapshot: &Snapshot,
        source: &Source,
        text: &str,
    ) -> Result<Self, Unclear> {
        let (host, port) = split(text);
        let own = source.pod.as_ref().map_or(USUAL_NAMESPACE, |pod| &pod.namespace);
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Self::address(snapshot, ip, port);
        }
        let service = |namespace: &str, name: &str| snapshot.service_named(namespace, name);
        // A name alone is looked up as DNS does it for the client.
        let found = match (host.split_once('/'), host.split_once('.')) {
            (Some((namespace, name)), _) => match pod(snapshot, namespace, name) {
                Some(pod) => return Self::pod(snapshot, pod, port),
                None => service(namespace, name),
            },
            (None, Some((name, rest))) => service(rest.split('.').next().unwrap_or_default(), name),
            (None, None) => match (service(own, host), pod(snapshot, own, host)) {
                (None, Some(pod)) => return Self::pod(snapshot, pod, port),
                (service, _) => service,
            },
        };
        let service = found.ok_or_else(|| {
            Unclear(format!(
                "there is no Service and no pod {host} (hint: service.namespace, namespace/pod or an \
                 address{})",
                there(snapshot, own)
            ))
        })?;
        Self::service(service, port)
    }

    fn service(service: &Arc<Service>, port: Option<&str>) -> Result<Self, Unclear> {
        let ports = &service.ports;
        let found = match port {
            None => ports.first().filter(|_| ports.len() == 1),
            Some(text) => {
                let is = |port: &&Arc<ServicePort>| {
                    port.port.to_string() == text || (!port.name.is_empty() && port.name == text)
                };
                ports.iter().find(is)
            }
        };
        let port = found.ok_or_else(|| {
            let there: Vec<_> = ports.iter().map(|port| port.port.to_string()).collect();
            let id = &service.id;
            Unclear(match port {
                Some(port) => {
                    format!("Service {id} has no port {port} (it has {})", there.join(", "))
                }
                None => format!(
                    "Service {id} does not have one port (hint: it has {}; {}.{}:PORT)",
                    there.join(", "),
                    id.name(),
                    id.namespace()
                ),
            })
        })?;
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let address = SocketAddr::new(service.vips.first().copied().unwrap_or(any), port.port);
        Ok(Self {
            words: format!("Service {} port {}", service.id, port.port),
            host: at(&service.hostname(), port.port),
            destination: Destination::Service(service.clone(), port.clone()),
            address,
        })
    }

    fn pod(snapshot: &Snapshot, pod: &Arc<Workload>, port: Option<&str>) -> Result<Self, Unclear> {
        let Some(ip) = pod.ips.first().copied() else {
            let Workload { namespace, name, .. } = &**pod;
            return Err(Unclear(format!(
                "pod {namespace}/{name} uses its node's network: the mesh has no part in what it is sent"
            )));
        };
        Self::address(snapshot, ip, port)
    }

    fn address(snapshot: &Snapshot, ip: IpAddr, port: Option<&str>) -> Result<Self, Unclear> {
        if let (Some(id), None) = (snapshot.service_of(ip), port)
            && let Some(service) = snapshot.service(id)
        {
            return Self::service(service, None);
        }
        let pod = snapshot.workload(ip);
        let port = match port {
            Some(port) => port.parse().map_err(|_| {
                Unclear(format!("`{port}` is not the port of a pod (hint: 1 to 65535)"))
            })?,
            None => only_port(snapshot, ip).ok_or_else(|| {
                Unclear(format!("which port of {ip}? (hint: put :PORT behind it)"))
            })?,
        };
        let address = SocketAddr::new(ip, port);
        let destination = snapshot.destination(address);
        let words = match &destination {
            Destination::Service(service, port) => {
                format!("Service {} port {}, by {address}", service.id, port.port)
            }
            Destination::Workload(pod, _) => {
                format!("pod {}/{} at {address}", pod.namespace, pod.name)
            }
            Destination::Unknown => format!("{address}"),
        };
        let host = match (&destination, pod) {
            (Destination::Service(service, _), _) => at(&service.hostname(), port),
            _ => address.to_string(),
        };
        Ok(Self { words, destination, host, address })
    }

    /// Where it leads.
    pub(super) fn endpoints(&self, source: &Source) -> Vec<Endpoint> {
        match &self.destination {
            Destination::Service(service, port) => {
                let taking = service.taking(port, self.address.ip()).to_vec();
                // Who has an address of one family alone is reached by that.
                let of_family =
                    |endpoint: &&Endpoint| endpoint.address.is_ipv4() == source.ip.is_ipv4();
                let mut fitting: Vec<_> = taking.iter().filter(of_family).cloned().collect();
                if fitting.is_empty() {
                    fitting = taking;
                }
                fitting
            }
            Destination::Workload(pod, _) => {
                vec![Endpoint { address: self.address, workload: Some(pod.clone()) }]
            }
            Destination::Unknown => vec![Endpoint { address: self.address, workload: None }],
        }
    }

    /// Why it leads nowhere.
    pub(super) fn why_nowhere(&self) -> String {
        match &self.destination {
            Destination::Service(service, port) => match port.endpoints.idle.len() {
                0 => format!("no pod is behind {} (hint: see its selector)", service.id),
                idle => format!("none of the {idle} pods behind {} is ready", service.id),
            },
            Destination::Workload(..) | Destination::Unknown => "it leads nowhere".to_owned(),
        }
    }
}

/// The one port of a pod that Services lead to.
fn only_port(snapshot: &Snapshot, ip: IpAddr) -> Option<u16> {
    let services = snapshot.services_at(ip).filter_map(|id| snapshot.service(id));
    let ports = services.flat_map(|service| &service.ports);
    let mut targets: Vec<_> = ports
        .flat_map(|port| port.endpoints.all())
        .filter(|endpoint| endpoint.address.ip() == ip)
        .map(|endpoint| endpoint.address.port())
        .collect();
    targets.sort_unstable();
    targets.dedup();
    match targets[..] {
        [only] => Some(only),
        _ => None,
    }
}

fn at(host: &str, port: u16) -> String {
    if port == 80 { host.to_owned() } else { format!("{host}:{port}") }
}

/// A host, and the port behind it. Addresses of IPv6 have colons of their own.
fn split(text: &str) -> (&str, Option<&str>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) => (host.trim_start_matches('[').trim_end_matches(']'), Some(port)),
        None => (text, None),
    }
}
