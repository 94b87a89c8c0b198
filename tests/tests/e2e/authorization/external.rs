//! External authorizers, which CUSTOM policies have asked about requests.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use sluice_tests::{
    Kind, PATIENCE, Pod, Port, Service, Span,
    ports::{HTTP, TCP, UNDECLARED},
};
use tokio::{task::JoinSet, time::timeout};

use super::{DENIED, town::*};

/// Where the authorizer listens, over HTTP and over gRPC.
pub(super) const PORTS: [Port<'_>; 2] = [
    Port { name: "http-checks", port: 8000, target: 8000 },
    Port { name: "grpc-checks", port: 9000, target: 9000 },
];
pub(super) const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// MeshConfig with these extension providers, a line each.
pub(super) fn mesh_config(providers: &str) -> String {
    let providers: String =
        providers.lines().map(|line| format!("    - {}\n", line.trim())).collect();
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |\n    accessLogFile: /dev/stdout\n    extensionProviders:\n{providers}"
    )
}

/// A policy that has the provider `name` asked about requests to paths that begin with it.
pub(super) fn custom(name: &str) -> String {
    policy(
        name,
        &format!(
            "{{selector: {{matchLabels: {{app: go-app}}}}, action: CUSTOM, provider: {{name: {name}}}, \
             rules: [{{to: [{{operation: {{paths: ['/{name}*']}}}}]}}]}}"
        ),
    )
}

/// Nobody but the servers may ask the authorizer, which is `other`: it is asked under their identity.
pub(super) fn only_servers_ask() -> String {
    policy(
        "checks",
        "{selector: {matchLabels: {app: other}}, rules: [{from: [{source: {serviceAccounts: \
         [go-app]}}]}]}",
    )
}

/// Puts a Service in front of the authorizer, and these policies in force.
pub(super) async fn expose(town: &Town, policies: &str) -> anyhow::Result<()> {
    let ips = vec![[10, 96, 0, 9].into()];
    let (ports, endpoints) = (PORTS.to_vec(), vec![&town.other]);
    town.config.service(&Service {
        name: "checks",
        namespace: "default",
        ips,
        ports,
        endpoints,
    })?;
    // Whatever was written before the policies is in force with them.
    town.change(policies).await
}

/// Answers each request with what `answer` makes of it, over both versions of HTTP; with nothing where that
/// is nothing.
pub(super) fn answer(
    pod: &Pod,
    port: u16,
    answer: impl Fn(&Request<Incoming>) -> Option<Response<Full<Bytes>>> + Send + Sync + 'static,
) -> anyhow::Result<JoinSet<()>> {
    let listener = pod.listen(port)?;
    let answer = Arc::new(answer);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(&request);
                async move {
                    match answer {
                        Some(answer) => Ok::<_, Infallible>(answer),
                        None => std::future::pending().await,
                    }
                }
            });
            connections.spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(tasks)
}

/// An application that tells the fields of what it was asked, a line each.
pub(super) fn telling(pod: &Pod, port: u16) -> anyhow::Result<JoinSet<()>> {
    answer(pod, port, |request| {
        let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))
        };
        let lines: String = request.headers().iter().map(line).collect();
        Some(Response::new(Full::from(lines)))
    })
}

/// What a client is answered.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) fields: HeaderMap,
    pub(super) body: String,
}

pub(super) async fn asked(
    client: &Pod,
    to: SocketAddr,
    version: Version,
    path: &str,
    fields: &[(&str, &str)],
) -> anyhow::Result<Answered> {
    let stream = TokioIo::new(connect(client, to).await?.into_stream());
    let mut request = Request::get(format!("http://go-app{path}")).version(version);
    if version == Version::HTTP_11 {
        request = request.uri(path).header("host", "go-app");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default())?;
    let asking = async {
        let response = if version == Version::HTTP_2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        anyhow::Ok(Answered {
            status: head.status.as_u16(),
            fields: head.headers,
            body: String::from_utf8(body.to_vec())?,
        })
    };
    let answered = timeout(PATIENCE, asking).await.context("no answer")?;
    answered.with_context(|| format!("{path} of {to} over {version:?}"))
}

/// Says to requests what they want it to, by their field `x-want`. Counts them.
fn authorizer(pod: &Pod, count: Arc<AtomicUsize>) -> anyhow::Result<JoinSet<()>> {
    answer(pod, PORTS[0].target, move |request| {
        count.fetch_add(1, Relaxed);
        let wants = request.headers().get("x-want").map(|wants| wants.as_bytes());
        let secret = request.headers().contains_key("x-secret");
        let added = request.headers().get("x-fixed").is_some_and(|value| value == "checked");
        let path = request.uri().path().to_owned();
        let answer = match wants {
            Some(b"allow") => Response::builder()
                .header("x-up", "added")
                .header("x-not-up", "left out")
                .header("x-seen", format!("{path} {secret} {added}"))
                .header("x-both", "told")
                .header("x-envoy-auth-headers-to-remove", "x-secret, x-none")
                .body(Full::default()),
            Some(b"deny") => Response::builder()
                .status(StatusCode::UNAUTHORIZED)
                .header("www-authenticate", "Bearer")
                .header("x-why", "nobody")
                .header("x-internal", "left out")
                .body(Full::from("who are you?")),
            Some(b"fail") => Response::builder().status(500).body(Full::default()),
            _ => return None,
        };
        Some(answer.expect("what is written here is HTTP"))
    })
}

const CHECKS: &str = "service: checks.default.svc.cluster.local, port: 8000, timeout: 1s, \
    includeRequestHeadersInCheck: [x-want], includeAdditionalHeadersInCheck: {x-fixed: checked}";

#[tokio::test]
async fn whoever_is_to_be_asked_says_what_becomes_of_requests_and_what_they_are()
-> anyhow::Result<()> {
    let providers = format!(
        "{{name: plain, envoyExtAuthzHttp: {{{CHECKS}, headersToUpstreamOnAllow: [x-up, x-seen], \
         headersToDownstreamOnDeny: ['x-w*'], headersToDownstreamOnAllow: [x-both]}}}}\n\
         {{name: open, envoyExtAuthzHttp: {{{CHECKS}, failOpen: true}}}}\n\
         {{name: busy, envoyExtAuthzHttp: {{{CHECKS}, pathPrefix: /check, statusOnError: '503', \
         headersToUpstreamOnAllow: [x-seen]}}}}\n\
         {{name: lost, envoyExtAuthzHttp: {{service: nobody.default.svc.cluster.local, port: 1}}}}"
    );
    let deny = policy(
        "added",
        "{selector: {matchLabels: {app: go-app}}, action: DENY, rules: [{to: [{operation: {paths: \
         [/plain/denied]}}], when: [{key: 'request.headers[x-up]', values: [added]}]}]}",
    );
    let bytes = policy(
        "bytes",
        "{selector: {matchLabels: {app: go-app}}, action: CUSTOM, provider: {name: open}, rules: \
         [{to: [{operation: {ports: ['6060']}}]}]}",
    );
    let customs = ["plain", "open", "busy", "lost", "unknown"].map(custom).concat();
    let town = Town::under("").await?;
    let policies = mesh_config(&providers) + &customs + &deny + &bytes + &only_servers_ask();
    expose(&town, &policies).await?;
    let count = Arc::new(AtomicUsize::new(0));
    let authorizing = authorizer(&town.other, count.clone())?;
    for server in town.servers() {
        let _apps = [telling(server, HTTP.target)?, telling(server, UNDECLARED.target)?];
        for (port, version) in
            [(HTTP, Version::HTTP_11), (HTTP, Version::HTTP_2), (UNDECLARED, Version::HTTP_11)]
        {
            let ask = |path: &'static str, wants: &'static str| {
                let fields = [("x-want", wants), ("x-secret", "1"), ("x-up", "mine")];
                let (client, to) = (&town.frontend, service(server, port));
                async move { asked(client, to, version, path, &fields).await }
            };
            let what = format!("{} {} over {version:?}", server.name(), port.name);
            let before = count.load(Relaxed);
            let answered = ask("/free", "deny").await?;
            assert_eq!((answered.status, count.load(Relaxed)), (200, before), "{what}");

            let answered = ask("/plain/a?b", "allow").await?;
            assert_eq!(answered.status, 200, "{what}: {}", answered.body);
            assert_eq!(answered.fields["x-both"], "told");
            let lines: Vec<_> = answered.body.lines().collect();
            // Only what it may see was seen.
            assert!(lines.contains(&"x-seen: /plain/a false true"), "{what}: {lines:?}");
            assert!(lines.contains(&"x-up: added") && !lines.contains(&"x-up: mine"), "{lines:?}");
            assert!(!answered.body.contains("x-secret") && !answered.body.contains("x-not-up"));
            assert_eq!(count.load(Relaxed), before + 1, "{what}");
            // What the request is by then is what other policies judge.
            let answered = ask("/plain/denied", "allow").await?;
            assert_eq!((answered.status, &*answered.body), (403, DENIED), "{what}");

            let answered = ask("/plain", "deny").await?;
            assert_eq!((answered.status, &*answered.body), (401, "who are you?"), "{what}");
            assert_eq!(answered.fields["www-authenticate"], "Bearer");
            assert_eq!(answered.fields["x-why"], "nobody");
            assert!(!answered.fields.contains_key("x-internal"));

            for (path, wants, status) in [
                ("/plain", "fail", 403),
                ("/plain", "silence", 403),
                ("/busy", "fail", 503),
                ("/open", "fail", 200),
                ("/open", "silence", 200),
                ("/open", "deny", 401),
                ("/lost", "allow", 403),
                ("/unknown", "allow", 403),
            ] {
                let began = Instant::now();
                let answered = ask(path, wants).await?;
                let got = (answered.status, &*answered.body);
                ensure!(answered.status == status, "{what} {path} {wants}: {got:?}");
                ensure!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", began.elapsed());
            }
            // It has the path that it wants to have.
            let answered = ask("/busy/a", "allow").await?;
            assert_eq!(answered.status, 200, "{what}");
            assert!(answered.body.contains("x-seen: /check/busy/a"), "{what}: {}", answered.body);
        }
        // Nobody can be asked about what is not HTTP.
        is_reset(&town.frontend, server, service(server, TCP), TCP.target).await?;
    }
    drop(authorizing);
    for server in town.servers() {
        let _app = telling(server, HTTP.target)?;
        for (path, status) in [("/plain", 403), ("/open", 200), ("/busy", 503)] {
            let to = service(server, HTTP);
            let answered = asked(&town.frontend, to, Version::HTTP_11, path, &[]).await?;
            assert_eq!(answered.status, status, "{path} of {}", server.name());
        }
    }
    it_is_told(&town).await
}

/// Spans say who decided, and metrics have Envoy's flag for it.
async fn it_is_told(town: &Town) -> anyhow::Result<()> {
    for server in town.servers() {
        let of_server = |span: &&Span| {
            let pod = span.resource.get("k8s.pod.name").map(String::as_str);
            span.kind == Kind::Server && pod == Some(server.name())
        };
        let refused = |span: &&Span, why: &str| span.attribute("error.type") == why;
        let find = |spans: &[Span], path: &str, why: &str| {
            let mut spans = spans.iter().filter(of_server).filter(|span| refused(span, why));
            spans.find(|span| span.attribute("url.path") == path).cloned()
        };
        let told = |spans: &[Span]| {
            find(spans, "/plain", "ext_authz_denied").is_some()
                && find(spans, "/busy", "ext_authz_error").is_some()
        };
        let spans = town.receiver.wait_for(PATIENCE, told).await?;
        for (path, why, policy, status) in [
            ("/plain", "ext_authz_denied", "default/plain", "401"),
            ("/busy", "ext_authz_error", "default/busy", "503"),
        ] {
            let span = find(&spans, path, why).context("no such span")?;
            assert_eq!(span.attribute("mesh.policy.name"), policy, "{span:?}");
            assert_eq!(span.attribute("mesh.policy.rule"), "0");
            assert_eq!(span.attribute("http.response.status_code"), status);
        }
        // The check is one of the server's own requests, in the trace of the one that it is about.
        let denied = find(&spans, "/plain", "ext_authz_denied").context("no such span")?;
        let is_check = |span: &&Span| {
            let pod = span.resource.get("k8s.pod.name").map(String::as_str);
            span.kind == Kind::Client && pod == Some(server.name())
        };
        let check = spans
            .iter()
            .filter(is_check)
            .find(|span| span.parent_id.as_ref() == Some(&denied.span_id));
        ensure!(check.is_some(), "no check is below {denied:?}");
    }
    Ok(())
}
