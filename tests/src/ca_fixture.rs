//! A cluster's CA in a lab: an API server, `sluice ca` on nodes of its own, and the volumes that
//! agents find roots and tokens in.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use http::{Uri, uri::PathAndQuery};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpSocket, task::JoinSet};
use tokio_rustls::TlsConnector;
use tonic::{Request, Status, body::Body, client::Grpc};
use tonic_prost::ProstCodec;

use crate::{
    agent::Agent,
    api_server::{ApiServer, Token},
    ask::ask,
    hbone_client::TestCertificate,
    mesh_fixture::{Mesh, PATIENCE, eventually},
    netns::Netns,
    node::Node,
    output::Output,
    pod::Pod,
    process::Process,
    programs::agent_program,
    tunnel_fixture::within,
};

/// The audience of tokens for the CA.
const AUDIENCE: &str = "sluice-ca";
/// The agents' service account.
const AGENT_ACCOUNT: &str = "sluice-system/sluice-agent";
const PORT: u16 = 15012;
const SECRET: &str = "/api/v1/namespaces/sluice-system/secrets/sluice-ca";
const CONFIG_MAP: &str = "/api/v1/namespaces/sluice-system/configmaps/sluice-ca-root";

/// A [`Mesh`] whose pods an API server knows, and what its agents need to have a CA.
#[derive(Debug)]
pub struct Cluster {
    /// The API server.
    pub api: ApiServer,
    volume: PathBuf,
    _kubelet: JoinSet<()>,
    /// Nodes, pods, services.
    pub mesh: Mesh,
}

/// A replica of `sluice ca`. Killed when dropped.
#[derive(Debug)]
pub struct Ca {
    process: Process,
    ip: IpAddr,
    node: Node,
}

impl Cluster {
    /// Makes the mesh and an API server that knows its pods.
    ///
    /// # Errors
    /// As [`Mesh::new`].
    pub fn new() -> anyhow::Result<Self> {
        let mesh = Mesh::new()?;
        let api = ApiServer::start(&mesh.lab)?;
        for pod in [&mesh.client, &mesh.near, &mesh.far, &mesh.outsider] {
            api.pod(pod);
        }
        let volume = mesh.lab.directory().join("roots");
        fs::create_dir(&volume)?;
        let mut kubelet = JoinSet::new();
        kubelet.spawn(mount(api.changes(), api.reader(CONFIG_MAP), volume.clone()));
        Ok(Self { api, volume, _kubelet: kubelet, mesh })
    }

    /// Adds a node for a replica of the CA.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn ca_node(&self, name: &str) -> anyhow::Result<Node> {
        self.mesh.lab.node(name)
    }

    /// Starts a replica of the CA on `node`, and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_ca(&self, node: Node, flags: &[&str]) -> anyhow::Result<Ca> {
        let [ip, _] = node.ips();
        let mut command = self.command("ca")?;
        command.args(["--secret", "sluice-system/sluice-ca"]);
        command.args(["--config-map", "sluice-system/sluice-ca-root"]);
        command.args(["--agent-service-account", AGENT_ACCOUNT]);
        command.arg("--dns-name").arg(ip.to_string()).args(flags);
        let process = node.spawn("ca", command)?;
        Ok(Ca { process, ip, node })
    }

    /// Starts a replica of the CA on `node` and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start_ca(&self, node: Node, flags: &[&str]) -> anyhow::Result<Ca> {
        let ca = self.launch_ca(node, flags)?;
        ca.ready().await?;
        Ok(ca)
    }

    /// Runs `sluice ca rotate`, or another such command, beside `ca`; what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run(&self, ca: &Ca, what: &str) -> anyhow::Result<String> {
        let mut command = self.command("ca")?;
        command.args([what, "--secret", "sluice-system/sluice-ca"]);
        command.args(["--config-map", "sluice-system/sluice-ca-root"]);
        // Not run to its end at once: it talks to a server of this very thread.
        let mut process = ca.node.spawn(&format!("ca-{what}"), command)?;
        let status = process.exit(PATIENCE).await?;
        let said = process.output().tail(5);
        ensure!(status.success(), "`sluice ca {what}` ended with {status}: {said}");
        Ok(said)
    }

    fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(agent_program()?);
        command.arg(name).env("KUBECONFIG", self.api.kubeconfig());
        Ok(command)
    }

    /// Makes a token of the agent on `node`, and returns its text.
    pub fn agent_token(&self, node: &Node) -> String {
        self.api.token(&format!("agent-on-{}", node.name()), agent_token(node.name()))
    }

    /// Puts a token where an agent on `node` looks for it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn hand_token(&self, node: &Node, token: &str) -> anyhow::Result<PathBuf> {
        let path = self.mesh.lab.directory().join(format!("{}.token", node.name()));
        let draft = path.with_extension("draft");
        fs::write(&draft, token)?;
        fs::rename(&draft, &path)?;
        Ok(path)
    }

    /// The flags with which the agent of `node` uses `ca`, by the token it was handed.
    pub fn flags(&self, ca: &Ca, node: &Node) -> Vec<String> {
        let token = self.mesh.lab.directory().join(format!("{}.token", node.name()));
        let roots = self.volume.join("root-cert.pem");
        [
            ("--ca-address", format!("https://{}", ca.address())),
            ("--ca-root", roots.display().to_string()),
            ("--ca-token", token.display().to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Starts an agent on both nodes, each with its own token and `more` flags.
    ///
    /// # Errors
    /// When one does not become ready.
    pub async fn start_agents(&self, ca: &Ca, more: &[&str]) -> anyhow::Result<[Agent; 2]> {
        let (a, b) = (&self.mesh.a, &self.mesh.b);
        let (a, b) = (self.start_agent(ca, a, more), self.start_agent(ca, b, more));
        Ok(<[Agent; 2]>::from(tokio::try_join!(a, b)?))
    }

    async fn start_agent(&self, ca: &Ca, node: &Node, more: &[&str]) -> anyhow::Result<Agent> {
        self.hand_token(node, &self.agent_token(node))?;
        let flags = self.flags(ca, node);
        let flags: Vec<_> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.mesh.start_agent(node, &flags).await
    }

    /// The roots that are published; none before there are any.
    ///
    /// # Errors
    /// When they are no certificates.
    pub fn roots(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let Some(map) = self.api.object(CONFIG_MAP) else { return Ok(Vec::new()) };
        let pem = map["data"]["root-cert.pem"].as_str().context("no root-cert.pem")?;
        Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
    }

    /// Where the API server keeps the Secret of the CA.
    pub fn secret_path(&self) -> &'static str {
        SECRET
    }

    /// Asks `ca` for a certificate of `identity` by hand: what it issues, or why nothing.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask_ca(
        &self,
        ca: &Ca,
        token: Option<&str>,
        identity: Option<&str>,
    ) -> anyhow::Result<Result<TestCertificate, Status>> {
        let name = ServerName::from(ca.address().ip());
        ask_ca(ca.node.netns(), ca.address(), name, self.roots()?, token, identity).await
    }
}

/// Connects to `ca` from `pod` and asks for nothing.
///
/// # Errors
/// When there is no connection.
pub async fn idle_at(
    ca: &Ca,
    pod: &Pod,
    trusted: &[CertificateDer<'static>],
) -> anyhow::Result<CaConnection> {
    let mut roots = RootCertStore::empty();
    for root in trusted {
        roots.add(root.clone())?;
    }
    let name = ServerName::from(ca.address().ip());
    let connected = connect(pod.netns(), ca.address(), name, roots);
    within(PATIENCE, "a connection to the CA", connected).await?
}

/// What the API server says of the token of the agent on `node`.
pub fn agent_token(node: &str) -> Token {
    Token {
        audience: AUDIENCE.into(),
        account: AGENT_ACCOUNT.into(),
        pod: Some(format!("sluice-agent-{node}")),
        node: Some(node.into()),
        expired: false,
    }
}

impl Ca {
    /// Where it listens for agents.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, PORT)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or does not say so in time, with what it printed.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], 15021));
        let ready = eventually("the CA is ready", || async {
            let output = self.output();
            ensure!(!output.has_ended(), "the CA has ended:\n{}", output.tail(20));
            let answer = ask(self.node.netns(), address, "/healthz/ready", PATIENCE).await;
            Ok(answer.ok().filter(|answer| answer.status == 200))
        });
        ready.await.with_context(|| self.output().tail(20))?;
        Ok(())
    }

    /// What it has printed.
    pub fn output(&self) -> &Output {
        self.process.output()
    }

    /// A value of its metrics; 0 where there is none.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metric(&self, series: &str) -> anyhow::Result<u64> {
        let address = SocketAddr::from(([127, 0, 0, 1], 15020));
        let metrics = ask(self.node.netns(), address, "/stats/prometheus", PATIENCE).await?.body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(Ok(0), |value| value.parse().context(format!("{series} is {value}")))
    }

    /// Stops it, so that the kernel takes connections and nobody answers on them.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process.signal(nix::sys::signal::Signal::SIGSTOP)
    }

    /// Kills it, and gives its node back.
    pub fn kill(mut self) -> Node {
        self.process.kill();
        self.node
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// Asks the CA that listens at `address` as `name`, from inside `netns`, for a certificate of
/// `identity`: what it issues, or why nothing.
///
/// # Errors
/// When there is no answer.
pub async fn ask_ca(
    netns: &Netns,
    address: SocketAddr,
    name: ServerName<'static>,
    trusted: Vec<CertificateDer<'static>>,
    token: Option<&str>,
    identity: Option<&str>,
) -> anyhow::Result<Result<TestCertificate, Status>> {
    let mut roots = RootCertStore::empty();
    for root in trusted {
        roots.add(root)?;
    }
    let answer = request(netns, address, name, roots, token, identity);
    within(PATIENCE, "an answer of the CA", answer).await?
}

/// A connection to a CA, which answers its pings.
#[derive(Debug)]
pub struct CaConnection {
    sender: http2::SendRequest<Body>,
    driver: JoinSet<()>,
}

impl CaConnection {
    /// Waits until the CA closes it.
    pub async fn closed(mut self) {
        self.driver.join_next().await;
    }
}

async fn connect(
    netns: &Netns,
    address: SocketAddr,
    name: ServerName<'static>,
    roots: RootCertStore,
) -> anyhow::Result<CaConnection> {
    let socket = netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
    socket.set_nonblocking(true)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
    let (sender, connection) =
        http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    Ok(CaConnection { sender, driver })
}

async fn request(
    netns: &Netns,
    address: SocketAddr,
    name: ServerName<'static>,
    roots: RootCertStore,
    token: Option<&str>,
    identity: Option<&str>,
) -> anyhow::Result<Result<TestCertificate, Status>> {
    let CaConnection { sender, driver: _driver } = connect(netns, address, name, roots).await?;
    let service = tower::service_fn(move |request| sender.clone().send_request(request));
    let mut grpc = Grpc::with_origin(service, Uri::try_from(format!("https://{address}"))?);
    grpc.ready().await?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
    let metadata = identity.map(|identity| {
        let value = Value { kind: Some(Kind::StringValue(identity.to_owned())) };
        Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]) }
    });
    let mut request = Request::new(CertificateRequest { csr, validity_duration: 0, metadata });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    let path =
        PathAndQuery::from_static("/istio.v1.auth.IstioCertificateService/CreateCertificate");
    let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
    let answer = match grpc.unary(request, path, codec).await {
        Ok(answer) => answer.into_inner().cert_chain.concat(),
        Err(status) => return Ok(Err(status)),
    };
    let chain = CertificateDer::pem_slice_iter(answer.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Ok(TestCertificate { chain, key }))
}

/// Does with a ConfigMap what a kubelet does: puts its file into `volume`, by a link that is
/// replaced as a whole.
async fn mount(
    mut changes: tokio::sync::watch::Receiver<u64>,
    read: impl Fn() -> Option<serde_json::Value>,
    volume: PathBuf,
) {
    let mut mounted = None;
    let mut number = 0;
    loop {
        let pem = read().and_then(|map| Some(map["data"]["root-cert.pem"].as_str()?.to_owned()));
        if let Some(pem) = pem
            && mounted.as_ref() != Some(&pem)
        {
            number += 1;
            if let Err(error) = place(&volume, &pem, number) {
                eprintln!("the roots cannot be mounted: {error}");
            }
            mounted = Some(pem);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn place(volume: &Path, pem: &str, number: u32) -> io::Result<()> {
    let data = volume.join(format!("..{number}"));
    fs::create_dir(&data)?;
    fs::write(data.join("root-cert.pem"), pem)?;
    let draft = volume.join("..data_tmp");
    symlink(format!("..{number}"), &draft)?;
    fs::rename(&draft, volume.join("..data"))?;
    if number == 1 {
        symlink("..data/root-cert.pem", volume.join("root-cert.pem"))?;
    }
    Ok(())
}

/// Fails unless `answer` is a refusal with `code` whose words contain `why`.
///
/// # Errors
/// When it is not.
pub fn expect_refusal(
    answer: Result<TestCertificate, Status>,
    code: tonic::Code,
    why: &str,
) -> anyhow::Result<()> {
    match answer {
        Ok(_) => bail!("a certificate was issued, in place of: {why}"),
        Err(status) => {
            ensure!(
                status.code() == code && status.message().contains(why),
                "refused with {status:?}, in place of: {why}"
            );
            Ok(())
        }
    }
}
