//! What the agents know of the mesh: the Kubernetes YAML they read.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::pod::Pod;

/// A directory of Kubernetes YAML, one file per pod and service. Files appear and change at
/// once, never by halves, so an agent that follows the directory sees no torn one.
#[derive(Debug)]
pub struct MeshConfig {
    directory: PathBuf,
}

/// A service, as a test writes it down.
#[derive(Clone, Debug)]
pub struct Service<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its cluster IPs, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port<'a>>,
    /// The pods behind it, all of them ready.
    pub endpoints: Vec<&'a Pod>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// Its name, whose prefix says what it speaks: `http`, `tcp-echo`.
    pub name: &'a str,
    /// The service's port.
    pub port: u16,
    /// The pods' port.
    pub target: u16,
}

impl MeshConfig {
    pub(crate) fn create(directory: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// What an agent is told with `--config-dir`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Declares a pod and its service account.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn pod(&self, pod: &Pod) -> anyhow::Result<()> {
        self.pod_with(pod, pod.labels())
    }

    /// Declares a pod with `labels` in place of its own, or changes them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn pod_with(&self, pod: &Pod, labels: BTreeMap<&str, &str>) -> anyhow::Result<()> {
        let account = format!(
            "apiVersion: v1\n\
             kind: ServiceAccount\n\
             metadata: {{name: {}, namespace: {}}}\n",
            pod.service_account(),
            pod.namespace(),
        );
        self.write(
            &format!("serviceaccount-{}-{}", pod.namespace(), pod.service_account()),
            &account,
        )?;
        let labels: String =
            labels.iter().map(|(key, value)| format!("    {key}: {value}\n")).collect();
        let ips: String = pod.ips().iter().map(|ip| format!("  - ip: \"{ip}\"\n")).collect();
        let text = format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {uid}\n  labels:\n{labels}  \
             annotations:\n    sluice.dev/netns: {netns}\n\
             spec:\n  nodeName: {node}\n  serviceAccountName: {account}\n  \
             containers:\n  - name: {app}\n\
             status:\n  phase: Running\n  podIP: {ip}\n  podIPs:\n{ips}",
            name = pod.name(),
            namespace = pod.namespace(),
            uid = pod.uid(),
            netns = pod.netns_path().display(),
            node = pod.node(),
            account = pod.service_account(),
            app = pod.app(),
            ip = pod.ip(),
        );
        self.write(&pod_file(pod), &text)
    }

    /// Removes a pod, as when it is deleted.
    ///
    /// # Errors
    /// When it was not declared.
    pub fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        self.remove(&pod_file(pod))
    }

    /// Declares a service and its endpoints, or changes them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn service(&self, service: &Service<'_>) -> anyhow::Result<()> {
        let Service { name, namespace, ips, ports, endpoints } = service;
        let listed = |items: Vec<String>| items.join(", ");
        let cluster_ips = listed(ips.iter().map(|ip| format!("\"{ip}\"")).collect());
        let first = ips.first().map_or("None".to_owned(), |ip| format!("\"{ip}\""));
        let port_lines: String = ports
            .iter()
            .map(|Port { name, port, target }| {
                format!("  - {{name: {name}, protocol: TCP, port: {port}, targetPort: {target}}}\n")
            })
            .collect();
        let mut text = format!(
            "apiVersion: v1\n\
             kind: Service\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  clusterIP: {first}\n  clusterIPs: [{cluster_ips}]\n  ports:\n{port_lines}"
        );
        let targets: String = ports
            .iter()
            .map(|Port { name, target, .. }| {
                format!("- {{name: {name}, protocol: TCP, port: {target}}}\n")
            })
            .collect();
        for (family, is_it) in
            [("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("IPv6", IpAddr::is_ipv6)]
        {
            // As in a cluster, a service has endpoints of the families it has addresses of.
            if !ips.iter().any(is_it) {
                continue;
            }
            let lines: String = endpoints
                .iter()
                .flat_map(|pod| pod.ips().into_iter().filter(is_it).map(move |ip| (pod, ip)))
                .map(|(pod, ip)| {
                    format!(
                        "- addresses: [\"{ip}\"]\n  conditions: {{ready: true}}\n  nodeName: {}\n  \
                         targetRef: {{kind: Pod, name: {}, namespace: {}}}\n",
                        pod.node(),
                        pod.name(),
                        pod.namespace(),
                    )
                })
                .collect();
            let lines = if lines.is_empty() {
                "endpoints: []\n".into()
            } else {
                format!("endpoints:\n{lines}")
            };
            text += &format!(
                "---\n\
                 apiVersion: discovery.k8s.io/v1\n\
                 kind: EndpointSlice\n\
                 metadata:\n  name: {name}-{slice}\n  namespace: {namespace}\n  \
                 labels: {{kubernetes.io/service-name: {name}}}\n\
                 addressType: {family}\nports:\n{targets}{lines}",
                slice = family.to_lowercase(),
            );
        }
        self.write(&format!("service-{namespace}-{name}"), &text)
    }

    /// Removes a service with its endpoints.
    ///
    /// # Errors
    /// When it was not declared.
    pub fn remove_service(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        self.remove(&format!("service-{namespace}-{name}"))
    }

    /// Writes any other YAML into the directory, as `NAME.yaml`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        let draft = self.directory.join(format!(".{name}.draft"));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("could not write {}", path.display()))
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        let removed: io::Result<()> = fs::remove_file(&path);
        removed.with_context(|| format!("could not remove {}", path.display()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.yaml"))
    }
}

fn pod_file(pod: &Pod) -> String {
    format!("pod-{}-{}", pod.namespace(), pod.name())
}
