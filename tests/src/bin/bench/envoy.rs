//! A pair of Envoys, set up as Istio sets up sidecars, as far as it concerns what they cost.
//!
//! Istio's defaults that are kept: two workers each; what is HTTP/1.1 stays so between the two, gRPC
//! is HTTP/2; mutual TLS with the peer's SPIFFE ID checked; every limit of connections and requests
//! lifted; no access log. What makes them cheaper than Istio's: there is no capture, the client
//! dials its sidecar; there are no metrics by workload, no authorisation and no exchange of metadata;
//! keys are of P-256, not RSA; and spans are exported by 512, as an agent's, not by 5.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::{Value, json};
use sluice_tests::{PATIENCE, Pod, Process, eventually};

use crate::{carrier::Place, http1, server::Spoken};

/// The program, where there is one; `cargo xtask bench` installs it where it can.
pub(crate) fn program() -> Option<PathBuf> {
    env::var_os("ENVOY_BIN").map(PathBuf::from)
}

/// Where a client dials its sidecar.
pub(crate) fn outbound(spoken: Spoken) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(spoken))
}

/// Of a sidecar's listener, the client's and the server's alike.
fn port(spoken: Spoken) -> u16 {
    match spoken {
        Spoken::Http => 15001,
        Spoken::Grpc => 15002,
    }
}

const BOTH: [Spoken; 2] = [Spoken::Http, Spoken::Grpc];
const TYPES: &str = "type.googleapis.com/envoy";

/// Starts the client's and the server's, and waits until a request has passed both.
pub(crate) async fn start(place: Place<'_>) -> anyhow::Result<[Process; 2]> {
    let program = program().context("ENVOY_BIN does not say where Envoy is")?;
    let certificates = Certificates::make(&place)?;
    let clients = Sidecar {
        name: place.client.name(),
        direction: "OUTBOUND",
        listens: Ipv4Addr::LOCALHOST.into(),
        sends: |server, spoken| SocketAddr::new(server, port(spoken)),
        server: place.server.ip(),
        place,
    };
    let servers = Sidecar {
        name: place.server.name(),
        direction: "INBOUND",
        listens: place.server.ip(),
        sends: |server, spoken| SocketAddr::new(server, spoken.port(false)),
        server: Ipv4Addr::LOCALHOST.into(),
        place,
    };
    let spawn = |pod: &Pod, sidecar: &Sidecar<'_>| {
        let file = place.mesh.directory().with_file_name(format!("envoy-{}.json", sidecar.name));
        fs::write(&file, sidecar.bootstrap(&certificates).to_string())?;
        pod.spawn("envoy", command(&program, &file))
    };
    let envoys = [spawn(place.client, &clients)?, spawn(place.server, &servers)?];
    eventually("a request through both Envoys", || async { Ok(works(place.client).await.ok()) })
        .await
        .with_context(|| envoys.each_ref().map(|envoy| envoy.output().tail(20)).join("\n"))?;
    Ok(envoys)
}

async fn works(client: &Pod) -> anyhow::Result<()> {
    let mut stream = client.connect(outbound(Spoken::Http)).await?;
    let exchange = async { http1::exchange(&mut stream, http1::REQUEST, &mut Vec::new()).await };
    Ok(tokio::time::timeout(PATIENCE, exchange).await??)
}

/// With as many open files as it may have, which other programs see to themselves.
fn command(program: &Path, file: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n \"$(ulimit -Hn)\"; exec \"$@\"", "sh"]).arg(program);
    command.args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "error"]);
    command.arg("--config-path").arg(file);
    command
}

struct Sidecar<'a> {
    name: &'a str,
    direction: &'static str,
    listens: IpAddr,
    server: IpAddr,
    sends: fn(IpAddr, Spoken) -> SocketAddr,
    place: Place<'a>,
}

impl Sidecar<'_> {
    fn is_clients(&self) -> bool {
        self.direction == "OUTBOUND"
    }

    fn bootstrap(&self, certificates: &Certificates) -> Value {
        let clusters = BOTH.map(|spoken| self.cluster(spoken, certificates)).into_iter();
        let sink = endpoint("otlp", self.place.sink.address());
        json!({
            "node": {"id": self.name, "cluster": self.name},
            "static_resources": {
                "listeners": BOTH.map(|spoken| self.listener(spoken, certificates)),
                "clusters": clusters.chain([sink]).collect::<Vec<_>>(),
            },
            "layered_runtime": {"layers": [{"name": "bench", "static_layer": {
                "tracing": {"opentelemetry": {"min_flush_spans": 512}},
            }}]},
        })
    }

    fn listener(&self, spoken: Spoken, certificates: &Certificates) -> Value {
        let hundred = json!({"value": 100});
        let tracing = json!({
            "client_sampling": hundred, "random_sampling": hundred, "overall_sampling": hundred,
            "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {
                "@type": format!("{TYPES}.config.trace.v3.OpenTelemetryConfig"),
                "service_name": self.name,
                "http_service": {"http_uri": {
                    "uri": format!("http://{}/v1/traces", self.place.sink.address()),
                    "cluster": "otlp", "timeout": "10s",
                }},
            }},
        });
        let router = json!({"name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{TYPES}.extensions.filters.http.router.v3.Router"),
        }});
        let manager = json!({
            "@type": format!(
                "{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
            ),
            "stat_prefix": name(spoken),
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": name(spoken), "timeout": "0s"}},
            ]}]},
            "http_filters": [router],
            "tracing": tracing,
        });
        let mut chain = json!({"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
        ]});
        if !self.is_clients() {
            chain["transport_socket"] = tls(
                "DownstreamTlsContext",
                &json!({
                    "require_client_certificate": true,
                    "common_tls_context": {
                        "alpn_protocols": ["h2", "http/1.1"],
                        "tls_certificates": [certificates.of_server()],
                        "validation_context": certificates.trust(self.place.client),
                    },
                }),
            );
        }
        json!({
            "name": name(spoken), "traffic_direction": self.direction,
            "address": address(SocketAddr::new(self.listens, port(spoken))),
            "filter_chains": [chain],
        })
    }

    fn cluster(&self, spoken: Spoken, certificates: &Certificates) -> Value {
        let mut cluster = endpoint(name(spoken), (self.sends)(self.server, spoken));
        let most = json!(u32::MAX);
        cluster["circuit_breakers"] = json!({"thresholds": [{"max_connections": most,
            "max_pending_requests": most, "max_requests": most, "max_retries": most}]});
        if spoken == Spoken::Grpc {
            let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            cluster["typed_extension_protocol_options"] = json!({options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": {"http2_protocol_options": {}},
            }});
        }
        if self.is_clients() {
            cluster["transport_socket"] = tls(
                "UpstreamTlsContext",
                &json!({
                    "sni": "shop",
                    "common_tls_context": {
                        "tls_certificates": [certificates.of_client()],
                        "validation_context": certificates.trust(self.place.server),
                    },
                }),
            );
        }
        cluster
    }
}

fn name(spoken: Spoken) -> &'static str {
    match spoken {
        Spoken::Http => "http",
        Spoken::Grpc => "grpc",
    }
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

fn endpoint(name: &str, to: SocketAddr) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(to)}}]},
        ]},
    })
}

fn tls(context: &str, fields: &Value) -> Value {
    let mut config = fields.clone();
    config["@type"] = format!("{TYPES}.extensions.transport_sockets.tls.v3.{context}").into();
    json!({"name": "envoy.transport_sockets.tls", "typed_config": config})
}

/// Of both sidecars, and of who signed them; all in PEM.
struct Certificates {
    ca: String,
    client: [String; 2],
    server: [String; 2],
}

impl Certificates {
    fn make(place: &Place<'_>) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let sign = |pod: &Pod| {
            let mut params = CertificateParams::default();
            // Or it had the CA's, and would pass for one that signed itself.
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(pod.principal().try_into()?)];
            let key = KeyPair::generate()?;
            anyhow::Ok([params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()])
        };
        Ok(Self { ca, client: sign(place.client)?, server: sign(place.server)? })
    }

    fn of_client(&self) -> Value {
        pair(&self.client)
    }

    fn of_server(&self) -> Value {
        pair(&self.server)
    }

    /// Believes the CA, and `peer` alone.
    fn trust(&self, peer: &Pod) -> Value {
        json!({
            "trusted_ca": {"inline_string": self.ca},
            "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": peer.principal()}},
            ],
        })
    }
}

fn pair([certificate, key]: &[String; 2]) -> Value {
    json!({"certificate_chain": {"inline_string": certificate},
        "private_key": {"inline_string": key}})
}
