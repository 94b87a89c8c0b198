//! Whether a node's agent judges requests as an Envoy does that Istio has configured with the same
//! policies: a table of requests under a table of policies, asked of both.
//!
//! Where they differ, `docs/compatibility.md` says why; the differences are listed in [`differences`].

mod differences;
mod jwt;
mod rbac;
mod table;
mod tokens;

use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::{Value, json};
use sluice_tests::{
    Agent, HboneClient, Line, Mesh, PATIENCE, Pod, PodOptions, Process, TestCa, TestCertificate,
    eventually,
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use differences::{DIFFERENCES, Difference};
use table::{ASKS, Who, cases};

const TYPES: &str = "type.googleapis.com/envoy";
/// Tells Envoy under which of the policies a request is to be judged.
const CASE: &str = "x-case";
/// How many requests are asked about at once.
const AT_ONCE: usize = 16;
/// The path that a request has gone on with.
const PATH: &str = "x-path";
/// The fields of [`SHOWN`] that it has gone on with.
const SEEN: &str = "x-seen";
/// Fields that tokens are in, and that are made of them.
const SHOWN: [&str; 4] = ["authorization", "x-jwt", "x-sub", "x-payload"];

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    status: u16,
    path: String,
    seen: String,
    /// What a refused client is told.
    text: String,
}

/// What is in force.
#[derive(Clone, Debug, Default)]
struct Case {
    /// The `spec` of each AuthorizationPolicy.
    policies: Vec<Value>,
    /// The rules of a RequestAuthentication.
    tokens: Vec<Value>,
}

/// Clients, a server behind an agent, and an Envoy.
struct Court {
    mesh: Mesh,
    dotted: Pod,
    envoy: Pod,
    certificates: [TestCertificate; 2],
    _programs: (Agent, Process, JoinSet<()>),
}

impl Court {
    async fn sit(cases: &[Case]) -> anyhow::Result<Self> {
        let mesh = Mesh::new()?;
        let account = Some("web.v1".to_owned());
        let options = PodOptions { service_account: account, ..PodOptions::default() };
        let dotted = PodOptions { namespace: "team-a".into(), ..options };
        let dotted = mesh.a.pod_with("dotted", dotted)?;
        let envoy =
            mesh.a.pod_with("envoy", PodOptions { meshed: false, ..PodOptions::default() })?;
        mesh.config.pod(&dotted)?;
        mesh.config.pod(&envoy)?;
        let agent = mesh.start_agent(&mesh.a, &[]).await?;
        let app = serve(&mesh.near)?;
        let (process, ca) = start_envoy(&mesh, &envoy, cases)?;
        let sign = |pod: &Pod| ca.sign(&[&pod.principal()], OffsetDateTime::now_utc());
        let certificates = [sign(&mesh.client)?, sign(&dotted)?];
        let to = SocketAddr::new(envoy.ip(), Mesh::HTTP_TARGET);
        let listens = || async {
            ensure!(!process.output().has_ended(), "{}", process.output().tail(20));
            Ok(mesh.outsider.connect(to).await.ok().map(drop))
        };
        eventually("Envoy listens", listens).await?;
        Ok(Self { mesh, dotted, envoy, certificates, _programs: (agent, process, app) })
    }

    fn pod(&self, who: Who) -> &Pod {
        match who {
            Who::Client | Who::Six => &self.mesh.client,
            Who::Dotted => &self.dotted,
            Who::Stranger => &self.mesh.outsider,
        }
    }

    /// What the agent in front of the server makes of it.
    async fn agent(&self, who: Who, request: &str) -> anyhow::Result<Verdict> {
        let server = &self.mesh.near;
        let [v4, v6] = self.mesh.service_ips(server);
        let to = match who {
            Who::Client | Who::Dotted => SocketAddr::new(v4, Mesh::HTTP),
            Who::Six => SocketAddr::new(v6, Mesh::HTTP),
            Who::Stranger => SocketAddr::new(server.ip(), Mesh::HTTP_TARGET),
        };
        ask(self.pod(who).connect(to).await?, request).await
    }

    /// What Envoy makes of it, to which clients prove who they are by themselves.
    async fn envoy(&self, who: Who, request: &str) -> anyhow::Result<Verdict> {
        let ip = if who == Who::Six { self.envoy.ipv6() } else { self.envoy.ip() };
        let stream = self.pod(who).connect(SocketAddr::new(ip, Mesh::HTTP_TARGET)).await?;
        let [client, dotted] = &self.certificates;
        match who {
            Who::Client | Who::Six => {
                ask(HboneClient::tls_over(stream, client).await?, request).await
            }
            Who::Dotted => ask(HboneClient::tls_over(stream, dotted).await?, request).await,
            Who::Stranger => ask(stream, request).await,
        }
    }

    /// Puts these in force at the agent.
    async fn enact(&self, Case { policies, tokens }: &Case) -> anyhow::Result<()> {
        let version = || -> anyhow::Result<Option<u64>> {
            Ok(Agent::status(&self.mesh.a)?["configuration"]["version"].as_u64())
        };
        let object = |kind: &str, at: usize, spec: &Value| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{namespace: \
                 default, name: policy-{at}}}\nspec: {spec}\n"
            )
        };
        let policies = policies.iter().enumerate();
        let mut text: String =
            policies.map(|(at, spec)| object("AuthorizationPolicy", at, spec)).collect();
        if !tokens.is_empty() {
            text += &object("RequestAuthentication", 0, &json!({"jwtRules": tokens}));
        }
        let before = version()?;
        self.mesh.config.write("policies", &text)?;
        let is_newer = || async { Ok((version()? > before).then_some(())) };
        eventually("the policies are in force", is_newer).await
    }
}

/// Answers with the target that it was asked for, whatever is in it, and with the fields that are shown.
fn serve(pod: &Pod) -> anyhow::Result<JoinSet<()>> {
    let listener = pod.listen(Mesh::HTTP_TARGET)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut line = Line::new(stream);
                while let Ok(head) = line.hear("\r\n\r\n").await {
                    let target = head.split(' ').nth(1).unwrap_or_default();
                    let seen = SHOWN.map(|name| {
                        let fields = head.lines().filter_map(|line| line.split_once(':'));
                        let mut fields = fields.filter(|(own, _)| own.eq_ignore_ascii_case(name));
                        fields.next().map_or("", |(_, value)| value.trim()).to_owned()
                    });
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\n{PATH}: {target}\r\n{SEEN}: {}\r\nContent-Length: 0\
                         \r\n\r\n",
                        seen.join("|")
                    );
                    if line.say(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(tasks)
}

/// Starts Envoy with all policies, and a CA that it believes.
fn start_envoy(mesh: &Mesh, pod: &Pod, cases: &[Case]) -> anyhow::Result<(Process, TestCa)> {
    let program = env::var_os("ENVOY_BIN").map(PathBuf::from);
    let program =
        program.context("ENVOY_BIN does not say where Envoy is (hint: cargo xtask test)")?;
    let folder = mesh.lab.directory().join("envoy");
    fs::create_dir_all(&folder)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?.pem();
    fs::write(folder.join("ca-key.pem"), key.serialize_pem())?;
    fs::write(folder.join("ca-cert.pem"), &ca)?;
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::default();
    // Or it had the CA's, and would pass for one that signed itself.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(pod.principal().try_into()?)];
    let key = KeyPair::generate()?;
    let own = (params.signed_by(&key, &issuer)?.pem(), key.serialize_pem());
    let (server, client) = (pod.ip(), mesh.client.ip());
    let policies = cases.iter().map(|case| in_place(&case.policies, server, client));
    let tokens: Vec<_> = cases.iter().map(|case| case.tokens.clone()).collect();
    let file = folder.join("envoy.json");
    let configuration = bootstrap(policies, &tokens, &ca, &own);
    fs::write(&file, configuration.to_string())?;
    let mut command = Command::new(program);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
    command.arg("--config-path").arg(file);
    Ok((pod.spawn("envoy", command)?, TestCa::of_agents(&folder)?))
}

/// The policies with the addresses that they speak of.
fn in_place(policies: &[Value], server: IpAddr, client: IpAddr) -> Vec<Value> {
    let place = |spec: &Value| {
        let text = spec.to_string();
        let text = text.replace("$SERVER", &server.to_string());
        let text = text.replace("$CLIENT", &client.to_string());
        serde_json::from_str(&text).unwrap_or_default()
    };
    policies.iter().map(place).collect()
}

/// As Istio sets up a sidecar for requests that come in, as far as it concerns who may ask what.
fn bootstrap(
    policies: impl Iterator<Item = Vec<Value>>,
    tokens: &[Vec<Value>],
    ca: &str,
    (certificate, key): &(String, String),
) -> Value {
    let extension = |name: &str, kind: &str| json!({"name": name, "typed_config": {"@type": format!("{TYPES}.extensions.filters.{kind}")}});
    let of_case = |case: usize| {
        let exact = json!({"exact": case.to_string()});
        json!({"prefix": "/", "headers": [{"name": CASE, "string_match": exact}]})
    };
    let filters = [
        jwt::filter(tokens, of_case),
        extension("deny", "http.rbac.v3.RBAC"),
        extension("allow", "http.rbac.v3.RBAC"),
        extension("router", "http.router.v3.Router"),
    ];
    let routes: Vec<_> = policies
        .enumerate()
        .map(|(case, policies)| {
            json!({
                "match": of_case(case),
                "direct_response": {"status": 200},
                "typed_per_filter_config": {
                    "deny": rbac::rules("DENY", &policies),
                    "allow": rbac::rules("ALLOW", &policies),
                },
            })
        })
        .collect();
    let mut manager = extension("http", "network.http_connection_manager.v3.HttpConnectionManager");
    let settings = json!({
        "stat_prefix": "http", "http_filters": filters,
        "normalize_path": true, "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "use_remote_address": false,
        "route_config": {
            "response_headers_to_add": [
                {"header": {"key": PATH, "value": "%REQ(:PATH)%"}},
                {"header": {"key": SEEN, "value": SHOWN.map(|name| format!("%REQ({name})%")).join("|")}},
            ],
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
        },
    });
    for (name, value) in settings.as_object().into_iter().flatten() {
        manager["typed_config"][name] = value.clone();
    }
    let inline = |text: &str| json!({"inline_string": text});
    let tls = json!({"name": "tls", "typed_config": {
        "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificates": [
                {"certificate_chain": inline(certificate), "private_key": inline(key)},
            ],
            "validation_context": {"trusted_ca": inline(ca)},
        },
    }});
    let filters = [manager];
    json!({
        "static_resources": {"listeners": [{
            "name": "http",
            "address": {"socket_address": {
                "address": "::", "port_value": Mesh::HTTP_TARGET, "ipv4_compat": true,
            }},
            "listener_filters": [extension("inspector", "listener.tls_inspector.v3.TlsInspector")],
            "filter_chains": [
                {
                    "filter_chain_match": {"transport_protocol": "tls"},
                    "filters": filters, "transport_socket": tls,
                },
                {"filters": filters},
            ],
        }]},
    })
}

/// What is answered to `request`; a status of 0 where that is nothing.
async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> anyhow::Result<Verdict> {
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !is_whole(&answer) {
            if stream.read_buf(&mut answer).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, exchange).await.context("no answer")??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let field = |name: &str| {
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(own, _)| *own == name).map(|(_, value)| value.to_owned()).next()
    };
    Ok(Verdict {
        status: status.unwrap_or(0),
        path: field(PATH).unwrap_or_default(),
        seen: field(SEEN).unwrap_or_default(),
        text: text.to_owned(),
    })
}

/// Whether all of an answer is there.
fn is_whole(answer: &[u8]) -> bool {
    let answer = String::from_utf8_lossy(answer);
    let Some((head, text)) = answer.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    text.len() >= length.unwrap_or(0)
}

#[tokio::test]
async fn an_agent_judges_as_envoy_does_or_refuses_more() -> anyhow::Result<()> {
    let all: Vec<_> =
        cases().into_iter().map(|(_, policies)| Case { policies, ..Case::default() }).collect();
    let court = Court::sit(&all).await?;
    let mut found = Vec::new();
    let mut asked = 0;
    for (case, (name, policies)) in cases().into_iter().enumerate() {
        let policies = in_place(&policies, court.mesh.near.ip(), court.mesh.client.ip());
        let in_force = Case { policies: policies.clone(), ..Case::default() };
        court.enact(&in_force).await?;
        let asks_path = policies.iter().any(|spec| spec.to_string().contains("aths\""));
        let verdicts = ASKS.iter().map(|(who, line, fields)| {
            let mut request = format!("{line} HTTP/1.1\r\n{CASE}: {case}\r\n");
            fields.iter().for_each(|field| request.extend([*field, "\r\n"]));
            request.push_str("\r\n");
            let court = &court;
            async move {
                let what = || format!("{name}: {who:?} {line} {fields:?}");
                let agent = court.agent(*who, &request).await.with_context(what)?;
                let envoy = court.envoy(*who, &request).await.with_context(what)?;
                anyhow::Ok((what(), *line, agent, envoy))
            }
        });
        let mut verdicts = stream::iter(verdicts).buffer_unordered(AT_ONCE);
        while let Some(verdict) = verdicts.next().await {
            let (what, line, mut agent, envoy) = verdict?;
            // Those go on as they came where no policy asks for paths: no verdict of a policy's.
            if envoy.status == 400 && !asks_path {
                continue;
            }
            asked += 1;
            if agent.status != envoy.status {
                found.push((name, what, line, (agent.status, envoy.status)));
                continue;
            }
            // In absolute form, the server's name is before it.
            if let Some(path) = agent.path.strip_prefix("http://go.example") {
                agent.path = if path.is_empty() { "/".into() } else { path.into() };
            }
            if agent.status == 200 && asks_path {
                ensure!(agent.path == envoy.path, "{what}: {agent:?}, {envoy:?}");
            }
        }
    }
    println!("{asked} verdicts, {} of them others than Envoy's", found.len());
    let mut unknown = Vec::new();
    let mut known = vec![false; DIFFERENCES.len()];
    for (name, what, line, statuses) in found {
        let is_it = |listed: &Difference| {
            listed.policies == name && listed.line == line && statuses == (403, 200)
        };
        match DIFFERENCES.iter().position(is_it) {
            Some(at) => known[at] = true,
            None => unknown.push(format!("{what}: {statuses:?}")),
        }
    }
    ensure!(unknown.is_empty(), "not listed:\n{}", unknown.join("\n"));
    for (listed, known) in DIFFERENCES.iter().zip(known) {
        let Difference { policies, line, why } = listed;
        ensure!(known, "{policies}: {line} is no difference any more ({why:?})");
    }
    Ok(())
}
