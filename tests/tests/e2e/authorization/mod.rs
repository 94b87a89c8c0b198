//! Who may ask what of whom, by AuthorizationPolicy, on every way in.

mod attributes;
mod conformance;
mod explained;
mod external;
mod paths;
mod raw_http2;
mod tokens;
mod town;

use std::{io, net::SocketAddr};

use anyhow::{Context, ensure};
use sluice_tests::{
    Agent, HostPod, HostProcess, Kind, Line, PATIENCE, Span, Talk, accept, eventually,
    ports::{GRPC, HTTP, TCP, UNDECLARED},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use town::*;

/// Section 4.2 of the reference document.
const REFERENCE: &str = r#"
# peer-authentication.yaml
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata:
  name: default
  namespace: default
spec:
  mtls:
    mode: STRICT  # 强制 mTLS
---
# authorization-policy.yaml
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: go-app-authz
  namespace: default
spec:
  selector:
    matchLabels:
      app: go-app
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/frontend"]
    to:
    - operation:
        methods: ["GET", "POST"]
        paths: ["/api/*"]
  - from:
    - source:
        namespaces: ["istio-system"]
    to:
    - operation:
        methods: ["GET"]
        paths: ["/health", "/metrics"]
"#;

/// What a refused client is told, and nothing more.
const DENIED: &str = "RBAC: access denied";

#[tokio::test]
async fn the_reference_s_policies_let_in_whom_they_name_and_nobody_else() -> anyhow::Result<()> {
    let town = Town::under(REFERENCE).await?;
    let Town { frontend, monitor, other, outsider, .. } = &town;
    for server in town.servers() {
        let apps = [serve(server, HTTP.target)?, serve(server, UNDECLARED.target)?];
        for (client, method, path, passes) in [
            (frontend, "GET", "/api/items", true),
            (frontend, "POST", "/api/items", true),
            (frontend, "DELETE", "/api/items", false),
            (frontend, "GET", "/api", false),
            (frontend, "GET", "/admin", false),
            (frontend, "GET", "/health", false),
            (monitor, "GET", "/health", true),
            (monitor, "GET", "/metrics", true),
            (monitor, "POST", "/metrics", false),
            (monitor, "GET", "/api/items", false),
            (other, "GET", "/api/items", false),
            (other, "GET", "/health", false),
        ] {
            let expected = if passes { (200, path.to_owned()) } else { (403, DENIED.to_owned()) };
            let what = || format!("{} {method} {path} to {}", client.name(), server.name());
            let to = service(server, HTTP);
            let head = format!("{method} {path} HTTP/1.1\r\nHost: go-app");
            assert_eq!(ask(client, to, &head).await?, expected, "{}", what());
            assert_eq!(ask_http2(client, to, method, path).await?, expected, "{}", what());
            // By its own address, on a port of which nothing is said: who may ask for nothing at all
            // is not connected.
            if client.name() != "other" {
                let to = SocketAddr::new(server.ip(), UNDECLARED.target);
                assert_eq!(ask(client, to, &head).await?, expected, "{}", what());
            }
        }
        for mut app in apps {
            app.shutdown().await;
        }
        let _app = serve_health(server, GRPC.target).await?;
        for client in [frontend, monitor, other] {
            let refused = check_health(client, service(server, GRPC)).await?.unwrap_err();
            assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, DENIED));
            // What is not HTTP has no path that could let it in.
            is_reset(client, server, service(server, TCP), TCP.target).await?;
        }
        is_reset(other, server, service(server, UNDECLARED), UNDECLARED.target).await?;
        for port in [TCP.target, UNDECLARED.target] {
            is_reset(outsider, server, SocketAddr::new(server.ip(), port), port).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn calls_and_connections_are_let_in_by_policies_about_them() -> anyhow::Result<()> {
    let policies = policy(
        "calls",
        "{rules: [{from: [{source: {serviceAccounts: [frontend]}}], to: [{operation: {paths: \
         [/grpc.health.v1.Health/Check]}}]}]}",
    ) + &policy(
        "bytes",
        "{rules: [{from: [{source: {namespaces: [istio-system]}}], to: [{operation: {ports: \
         ['6060', '7070']}}]}]}",
    );
    for flags in [&[][..], &["--same-node=tunnel"]] {
        let town = Town::with_flags(&policies, flags).await?;
        let Town { frontend, monitor, outsider, .. } = &town;
        for server in town.servers() {
            let mut app = serve_health(server, GRPC.target).await?;
            check_health(frontend, service(server, GRPC)).await??;
            let refused = check_health(monitor, service(server, GRPC)).await?.unwrap_err();
            assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, DENIED));
            app.shutdown().await;
            for port in [TCP, UNDECLARED] {
                talk(monitor, server, service(server, port), port.target).await?;
                let to = SocketAddr::new(server.ip(), port.target);
                is_reset(outsider, server, to, port.target).await?;
            }
            is_reset(frontend, server, service(server, TCP), TCP.target).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn deny_goes_before_allow_and_other_pods_are_not_concerned() -> anyhow::Result<()> {
    let policies = policy("all", "{rules: [{}]}")
        + &policy(
            "writes",
            "{selector: {matchLabels: {app: go-app}}, action: DENY, rules: [{to: [{operation: \
             {methods: [POST], ports: ['8080']}}]}]}",
        );
    let town = Town::under(&policies).await?;
    let _others = serve(&town.other, HTTP.target)?;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0";
    for server in town.servers() {
        let _app = serve(server, HTTP.target)?;
        let to = service(server, HTTP);
        let denied = (403, DENIED.to_owned());
        assert_eq!(ask(&town.frontend, to, "GET / HTTP/1.1\r\nHost: a").await?.0, 200);
        assert_eq!(ask(&town.frontend, to, post).await?, denied);
        // Plaintext is judged too, by what is known of it.
        let to = SocketAddr::new(server.ip(), HTTP.target);
        assert_eq!(ask(&town.outsider, to, "GET / HTTP/1.1\r\nHost: a").await?.0, 200);
        assert_eq!(ask(&town.outsider, to, post).await?, denied);
        // The rest of the rule is about another port.
        talk(&town.frontend, server, service(server, TCP), TCP.target).await?;
    }
    let to = SocketAddr::new(town.other.ip(), HTTP.target);
    assert_eq!(ask(&town.frontend, to, post).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn a_new_policy_reaches_open_connections_and_the_next_request() -> anyhow::Result<()> {
    let of = |name: &str, path: &str| {
        policy(
            "go",
            &format!(
                "{{rules: [{{from: [{{source: {{principals: ['cluster.local/ns/default/sa/{name}']}}\
                 }}], to: [{{operation: {{paths: ['{path}']}}}}]}}, {{from: [{{source: {{principals: \
                 ['cluster.local/ns/default/sa/{name}']}}}}], to: [{{operation: {{ports: ['6060']}}}}]\
                 }}]}}"
            ),
        )
    };
    for flags in [&[][..], &["--same-node=tunnel"]] {
        let town = Town::with_flags(&of("frontend", "/a"), flags).await?;
        for server in town.servers() {
            let mut app = serve(server, HTTP.target)?;
            let mut opaque = talk(&town.frontend, server, service(server, TCP), TCP.target).await?;
            let mut http = connect(&town.frontend, service(server, HTTP)).await?;
            let asked = ask_on(&mut http, "GET /a HTTP/1.1\r\nHost: a").await?;
            assert_eq!(asked, (200, "/a".into()));

            // Another path: the connection stays, and its next request is refused.
            town.change(&of("frontend", "/b")).await?;
            opaque.exchange().await?;
            let asked = ask_on(&mut http, "GET /a HTTP/1.1\r\nHost: a").await?;
            assert_eq!(asked, (403, DENIED.into()));
            assert_eq!(ask_on(&mut http, "GET /b HTTP/1.1\r\nHost: a").await?.0, 200);
            app.shutdown().await;

            // Somebody else: what is open ends, and so does what waits for its answer.
            let listener = server.listen(HTTP.target)?;
            let mut waiting = connect(&town.frontend, service(server, HTTP)).await?;
            waiting.say("GET /b HTTP/1.1\r\nHost: a\r\n\r\n").await?;
            let mut asked = accept(&listener).await?;
            asked.hear("\r\n\r\n").await?;
            town.change(&of("other", "/a")).await?;
            let mut ended = [Line::new(opaque.client), Line::new(opaque.server)];
            for end in &mut ended {
                assert_eq!(end.rest().await?.1, Some(io::ErrorKind::ConnectionReset));
            }
            let (answer, ended) = waiting.rest().await?;
            let is_cut = answer.starts_with("HTTP/1.1 502") || ended.is_some();
            assert!(is_cut, "{answer} {ended:?}");
            town.change(&of("frontend", "/a")).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_mistake_leaves_the_last_good_policy_in_force() -> anyhow::Result<()> {
    let town = Town::under(&policy("nothing", "{}")).await?;
    let _app = serve(&town.far, HTTP.target)?;
    let get = "GET / HTTP/1.1\r\nHost: a";
    let denied = (403, DENIED.to_owned());
    assert_eq!(ask(&town.frontend, service(&town.far, HTTP), get).await?, denied);
    town.config.write("policies", &policy("nothing", "{rules: [{form: []}]}"))?;
    let error = eventually("the mistake is reported", || async {
        let status = Agent::status(&town.b)?;
        Ok(status["configuration"]["error"].as_str().map(str::to_owned))
    })
    .await?;
    let expected = "policies.yaml:5:17: spec.rules[0].form is not a field of Rule (hint: did you mean \
                    `from`?)";
    assert!(error.contains(expected), "{error}");
    assert_eq!(ask(&town.frontend, service(&town.far, HTTP), get).await?, denied);
    Ok(())
}

#[tokio::test]
async fn a_refusal_is_told_in_span_log_and_metrics() -> anyhow::Result<()> {
    let policies = policy(
        "admin",
        "{selector: {matchLabels: {app: go-app}}, action: DENY, rules: [{to: [{operation: {ports: \
         ['1']}}]}, {to: [{operation: {paths: [/admin], ports: ['8080', '6060']}}]}]}",
    ) + "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
         default, name: try, annotations: {istio.io/dry-run: 'true'}}\nspec: {rules: []}\n"
        + &policy("seen", "{action: AUDIT, rules: [{to: [{operation: {methods: [GET]}}]}]}");
    let town = Town::under(&policies).await?;
    for server in town.servers() {
        let _app = serve(server, HTTP.target)?;
        let trace = if server.name() == "near" { "a" } else { "b" }.repeat(32);
        let get = |path: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: a\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01")
        };
        let to = service(server, HTTP);
        assert_eq!(ask(&town.frontend, to, &get("/admin")).await?, (403, DENIED.into()));
        assert_eq!(ask(&town.frontend, to, &get("/open")).await?.0, 200);
        is_reset(&town.frontend, server, service(server, TCP), TCP.target).await?;

        let of_server = |span: &&Span| {
            let pod = span.resource.get("k8s.pod.name").map(String::as_str);
            span.kind == Kind::Server && pod == Some(server.name())
        };
        let told = |spans: &[Span]| spans.iter().filter(of_server).count() >= 3;
        let spans = town.receiver.wait_for(PATIENCE, told).await?;
        let find = |is: &dyn Fn(&Span) -> bool| {
            spans.iter().filter(of_server).find(|span| is(span)).context("no such span")
        };
        let denied = find(&|span| span.attribute("url.path") == "/admin")?;
        let tcp = find(&|span| span.attribute("network.transport") == "tcp")?;
        for span in [denied, tcp] {
            assert_eq!(span.attribute("mesh.policy.name"), "default/admin", "{span:?}");
            assert_eq!(span.attribute("mesh.policy.rule"), "1");
            assert_eq!(span.attribute("error.type"), "authz_denied");
            assert_eq!(span.error, None, "a server that refuses does its job");
        }
        assert_eq!(denied.attribute("http.response.status_code"), "403");
        let open = find(&|span| span.attribute("url.path") == "/open")?;
        assert_eq!(open.attribute("mesh.policy.name"), "");
        for span in [denied, open] {
            assert_eq!(span.attribute("mesh.policy.dry_run.name"), "default/try");
            assert_eq!(span.attribute("mesh.policy.dry_run.rule"), "");
            assert_eq!(span.attribute("mesh.policy.audit.name"), "default/seen");
            assert_eq!(span.attribute("mesh.policy.audit.rule"), "0");
        }
        let (agent, node) = match server.name() {
            "near" => (&town.agents[0], &town.a),
            _ => (&town.agents[1], &town.b),
        };
        for said in [
            "denied by rule 1 of DENY AuthorizationPolicy default/admin",
            "a policy on trial would deny it",
            "an AUDIT policy matches",
        ] {
            agent.process().output().line(PATIENCE, |line: &str| line.contains(said)).await?;
        }
        let metrics = Agent::metrics(node).await?;
        let counted = |name: &str, labels: &[&str]| {
            metrics.lines().any(|line| {
                line.starts_with(name)
                    && line.contains("reporter=\"destination\"")
                    && labels.iter().all(|label| line.contains(label))
            })
        };
        let http = ["response_code=\"403\"", "response_flags=\"-\""];
        assert!(counted("istio_requests_total", &http), "{metrics}");
        assert!(counted("istio_tcp_connections_closed_total", &["response_flags=\"DENY\""]));
    }
    Ok(())
}

#[tokio::test]
async fn the_kubelet_s_probes_pass_whatever_policies_say() -> anyhow::Result<()> {
    let town = Town::under(&policy("nothing", "{}")).await?;
    let _app = serve(&town.far, HTTP.target)?;
    // Not known as the kubelet by its cgroup, it has to prove whose its socket is.
    let root = HostPod::on(&town.b, "probes", HostProcess::default())?;
    let in_pod = HostProcess { in_pod: true, ..HostProcess::default() };
    let stranger = HostPod::on(&town.b, "pod", in_pod)?;
    let to = SocketAddr::new(town.far.ip(), HTTP.target);
    let get = "GET /healthz HTTP/1.1\r\nHost: a";
    let mut probe = Line::new(timeout(PATIENCE, root.connect(to)).await??);
    assert_eq!(ask_on(&mut probe, get).await?, (200, "/healthz".into()));
    let mut other = Line::new(timeout(PATIENCE, stranger.connect(to)).await??);
    assert_eq!(ask_on(&mut other, get).await?, (403, DENIED.into()));
    let to = SocketAddr::new(town.far.ip(), TCP.target);
    let listener = town.far.listen(TCP.target)?;
    Talk::over(timeout(PATIENCE, root.connect(to)).await??, &listener).await?;
    Ok(())
}

#[tokio::test]
async fn while_policies_change_nothing_is_lost_that_all_allow_and_nothing_passes_that_none_does()
-> anyhow::Result<()> {
    const CHANGES: usize = 200;
    const CLIENTS: usize = 4;
    let of = |more: &str| {
        policy("go", &format!("{{rules: [{{to: [{{operation: {{paths: [/always, {more}]}}}}]}}]}}"))
    };
    let town = Town::under(&of("/even")).await?;
    let _apps = [serve(&town.near, HTTP.target)?, serve(&town.far, HTTP.target)?];
    let over = CancellationToken::new();
    let changes = async {
        for change in 0..CHANGES {
            let more = if change % 2 == 0 { "/odd" } else { "/even" };
            town.change(&of(more)).await?;
        }
        over.cancel();
        anyhow::Ok(())
    };
    let requests = town.servers().into_iter().cycle().take(CLIENTS).enumerate();
    let requests = requests.map(async |(number, server)| {
        let to = service(server, HTTP);
        let mut line = connect(&town.frontend, to).await?;
        let mut asked = 0_usize;
        while !over.is_cancelled() {
            let path = ["/always", "/never", "/even", "/always"][asked % 4];
            let answered = if number < 2 {
                ask_on(&mut line, &format!("GET {path} HTTP/1.1\r\nHost: a")).await?
            } else {
                ask_http2(&town.frontend, to, "GET", path).await?
            };
            let expected: &[u16] = match path {
                "/always" => &[200],
                "/never" => &[403],
                _ => &[200, 403],
            };
            ensure!(expected.contains(&answered.0), "{path} at {to}: {answered:?}");
            asked += 1;
        }
        Ok(asked)
    });
    let (changed, asked) = tokio::join!(changes, futures_util::future::try_join_all(requests));
    changed?;
    let asked = asked?;
    println!("{CHANGES} changes, {} requests", asked.iter().sum::<usize>());
    ensure!(asked.iter().all(|asked| *asked > CHANGES), "{asked:?}");
    Ok(())
}
