//! Who a request is from by its token, by RequestAuthentication.

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use sluice_tests::{KeyServer, Pod, PodOptions, Port, Service, TokenIssuer};
use tokio::task::JoinSet;

use super::*;

const ISSUER: &str = "https://issuer.example";

/// A RequestAuthentication of the namespace `default` with one rule.
fn tokens(rule: &Value) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{namespace: \
         default, name: tokens}}\nspec: {{selector: {{matchLabels: {{app: go-app}}}}, jwtRules: \
         [{rule}]}}\n"
    )
}

/// Lets in whose token is of `ISSUER` and of the group `admin`.
fn admins() -> String {
    policy(
        "admins",
        "{selector: {matchLabels: {app: go-app}}, rules: [{from: [{source: {requestPrincipals: \
         ['https://issuer.example/*']}}], when: [{key: 'request.auth.claims[groups]', values: \
         [admin]}]}]}",
    )
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "order", "groups": ["admin"], "exp": unix_now() + 3600})
}

fn with(field: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[field] = value;
    claims
}

/// Answers HTTP of both versions with the fields that came, by name.
fn mirror(pod: &Pod, port: u16) -> anyhow::Result<JoinSet<()>> {
    let listener = pod.listen(port)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(async |request: Request<Incoming>| {
                let text = |value: &http::HeaderValue| {
                    String::from_utf8_lossy(value.as_bytes()).into_owned()
                };
                let fields = request.headers().iter();
                let mut fields: BTreeMap<_, _> =
                    fields.map(|(name, value)| (name.to_string(), text(value))).collect();
                let target = request.uri().path_and_query().map(ToString::to_string);
                fields.insert(":path".into(), target.unwrap_or_default());
                let body = Full::new(Bytes::from(json!(fields).to_string()));
                Ok::<_, std::convert::Infallible>(Response::new(body))
            });
            connections.spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    Ok(tasks)
}

/// What is answered over HTTP/2 to a GET with `fields`: the status, `www-authenticate`, the body.
async fn ask_http2_with(
    client: &Pod,
    to: SocketAddr,
    path: &str,
    fields: &[(&str, &str)],
) -> anyhow::Result<(u16, String, String)> {
    let stream = TokioIo::new(connect(client, to).await?.into_stream());
    let (mut sender, connection) =
        timeout(PATIENCE, http2::handshake(TokioExecutor::new(), stream)).await??;
    let driving = tokio::spawn(connection);
    let mut request = Request::get(format!("http://go-app{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default())?;
    let response = timeout(PATIENCE, sender.send_request(request)).await??;
    let status = response.status().as_u16();
    let challenge = response.headers().get("www-authenticate");
    let challenge = challenge.map_or("", |value| value.to_str().unwrap_or("?")).to_owned();
    let body = timeout(PATIENCE, response.into_body().collect()).await??.to_bytes();
    driving.abort();
    Ok((status, challenge, String::from_utf8(body.to_vec())?))
}

fn get(path: &str, token: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: go-app\r\nAuthorization: Bearer {token}")
}

#[tokio::test]
async fn a_token_lets_in_whom_it_names_and_a_bad_one_nobody() -> anyhow::Result<()> {
    let (issuer, thief) = (TokenIssuer::new("k")?, TokenIssuer::new("k")?);
    let rule = json!({"issuer": ISSUER, "jwks": issuer.jwks()?});
    let unsigned = {
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.AAAA", part(json!({"alg": "none"})), part(claims()))
    };
    let cases = [
        (issuer.token(&claims())?, 200, ""),
        (issuer.token(&with("groups", json!("admin")))?, 200, ""),
        (issuer.token(&with("groups", json!(["guest"])))?, 403, DENIED),
        (issuer.token(&with("sub", Value::Null))?, 401, "Jwt payload [sub] field is not a string"),
        (issuer.token(&with("exp", json!(unix_now() - 3600)))?, 401, "Jwt is expired"),
        (issuer.token(&with("iss", json!("x")))?, 401, "Jwt issuer is not configured"),
        (thief.token(&claims())?, 401, "Jwt verification fails"),
        (unsigned, 401, "Jwt header [alg] is not supported"),
    ];
    for flags in [&[][..], &["--same-node=tunnel"]] {
        let town = Town::with_flags(&(tokens(&rule) + &admins()), flags).await?;
        for server in town.servers() {
            let mut app = serve(server, HTTP.target)?;
            let to = service(server, HTTP);
            // One connection for all: a refusal does not end it.
            let mut line = connect(&town.frontend, to).await?;
            let asked = ask_on(&mut line, "GET / HTTP/1.1\r\nHost: go-app").await?;
            assert_eq!(asked, (403, DENIED.into()), "nobody's");
            for (token, status, text) in &cases {
                let asked = ask_on(&mut line, &get("/", token)).await?;
                assert_eq!(asked.0, *status, "{text}");
                if *status != 200 {
                    assert_eq!(asked.1, *text);
                }
                let bearer = format!("Bearer {token}");
                let fields = [("authorization", bearer.as_str())];
                let asked = ask_http2_with(&town.frontend, to, "/a?b=c", &fields).await?;
                assert_eq!(asked.0, *status, "{text}");
                let challenge = match status {
                    401 => "Bearer realm=\"http://go-app/a\", error=\"invalid_token\"",
                    _ => "",
                };
                assert_eq!(asked.1, challenge, "{text}");
            }
            // Plaintext is judged too.
            let to = SocketAddr::new(server.ip(), HTTP.target);
            for (token, status, _) in &cases {
                assert_eq!(ask(&town.outsider, to, &get("/", token)).await?.0, *status);
            }
            app.shutdown().await;

            let _app = serve_health(server, GRPC.target).await?;
            let to = service(server, GRPC);
            let told = check_health(&town.frontend, to).await?.unwrap_err();
            assert_eq!((told.code(), told.message()), (Code::PermissionDenied, DENIED));
            let told = check_health_as(&town.frontend, to, Some(&cases[6].0)).await?.unwrap_err();
            assert_eq!((told.code(), told.message()), (Code::Unauthenticated, cases[6].2));
            check_health_as(&town.frontend, to, Some(&cases[0].0)).await??;
            // What is not HTTP has no token.
            is_reset(&town.frontend, server, service(server, TCP), TCP.target).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_application_sees_of_a_token_what_the_rule_says_and_nothing_that_a_client_made_up()
-> anyhow::Result<()> {
    let issuer = TokenIssuer::new("k")?;
    let rule = json!({
        "issuer": ISSUER, "jwks": issuer.jwks()?, "fromHeaders": [{"name": "x-jwt"}],
        "fromParams": ["t"], "fromCookies": ["jwt"], "outputPayloadToHeader": "x-payload",
        "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}],
    });
    let town = Town::under(&tokens(&rule)).await?;
    let token = issuer.token(&claims())?;
    let payload = token.split('.').nth(1).unwrap_or_default();
    for server in town.servers() {
        let _app = mirror(server, HTTP.target)?;
        let to = service(server, HTTP);
        let cookie = format!("jwt={token}; b=1");
        for (path, field, seen) in [
            ("/a?b=1", ("x-jwt", token.as_str()), ("/a?b=1", "")),
            (&format!("/a?t={token}&b=1"), ("x-b", "1"), ("/a?b=1", "")),
            ("/a?b=1", ("cookie", &cookie), ("/a?b=1", cookie.as_str())),
        ] {
            let forged = [("x-sub", "admin"), ("X-Payload", "x"), field];
            let lines: String =
                forged.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
            let head = format!("GET {path} HTTP/1.1\r\nHost: go-app{lines}");
            let (_, first) = ask(&town.frontend, to, &head).await?;
            let small = forged.map(|(name, value)| (name.to_ascii_lowercase(), value));
            let small: Vec<_> = small.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let (.., second) = ask_http2_with(&town.frontend, to, path, &small).await?;
            for seen_by_app in [first, second] {
                let fields: Value = serde_json::from_str(&seen_by_app)?;
                assert_eq!(fields[":path"], seen.0);
                assert_eq!(fields["x-sub"], "order");
                assert_eq!(fields["x-payload"], payload);
                assert_eq!(fields["x-jwt"], Value::Null);
                assert_eq!(fields["cookie"].as_str().unwrap_or_default(), seen.1);
            }
        }
        let head = "GET / HTTP/1.1\r\nHost: go-app\r\nx-sub: admin\r\nx-payload: x";
        let fields: Value = serde_json::from_str(&ask(&town.frontend, to, head).await?.1)?;
        assert_eq!((&fields["x-sub"], &fields["x-payload"]), (&Value::Null, &Value::Null));
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_for_a_token_is_told_in_span_log_and_metrics() -> anyhow::Result<()> {
    let issuer = TokenIssuer::new("k")?;
    let town = Town::under(&tokens(&json!({"issuer": ISSUER, "jwks": issuer.jwks()?}))).await?;
    let server = &town.far;
    let _app = serve(server, HTTP.target)?;
    let expired = issuer.token(&with("exp", json!(1)))?;
    assert_eq!(ask(&town.frontend, service(server, HTTP), &get("/", &expired)).await?.0, 401);
    let of_server = |span: &Span| span.kind == Kind::Server;
    let spans = town.receiver.wait_for(PATIENCE, |spans| spans.iter().any(of_server)).await?;
    let span = spans.iter().find(|span| of_server(span)).context("no span of the server")?;
    assert_eq!(span.attribute("error.type"), "jwt_denied");
    assert_eq!(span.attribute("mesh.policy.name"), "default/tokens");
    assert_eq!(span.attribute("mesh.policy.rule"), "0");
    assert_eq!(span.attribute("http.response.status_code"), "401");
    assert_eq!(span.error, None, "a server that refuses does its job");
    let metrics = Agent::metrics(&town.b).await?;
    let is_counted = |line: &str| {
        let labels = ["reporter=\"destination\"", "response_code=\"401\"", "response_flags=\"-\""];
        line.starts_with("istio_requests_total") && labels.iter().all(|label| line.contains(label))
    };
    assert!(metrics.lines().any(is_counted), "{metrics}");
    let log = town.agents[1].process().output().tail(1000);
    assert!(!log.contains(&expired), "a token is nobody's business");
    Ok(())
}

/// Where servers of keys listen, and what they are reached by.
const KEYS: Port<'_> = Port { name: "http-keys", port: 80, target: 8000 };

#[tokio::test]
async fn keys_are_fetched_followed_as_they_change_and_kept_where_their_server_is_gone()
-> anyhow::Result<()> {
    let (old, new) = (TokenIssuer::new("old")?, TokenIssuer::new("new")?);
    let town = Town::under("").await?;
    let keys = town.b.pod_with("keys", PodOptions { meshed: false, ..PodOptions::default() })?;
    town.config.pod(&keys)?;
    let ips: Vec<IpAddr> = vec![[10, 96, 0, 9].into()];
    let (ports, endpoints) = (vec![KEYS], vec![&keys]);
    town.config.service(&Service { name: "keys", namespace: "default", ips, ports, endpoints })?;
    let server = KeyServer::start(&keys, KEYS.target, old.jwks()?, None)?;
    let rule = json!({"issuer": ISSUER, "jwksUri": "http://keys.default.svc.cluster.local/jwks"});
    town.change(&(tokens(&rule) + &admins())).await?;
    let ask_both = async |token: &str| -> anyhow::Result<Vec<(u16, String)>> {
        let mut asked = Vec::new();
        for server in town.servers() {
            asked.push(ask(&town.frontend, service(server, HTTP), &get("/", token)).await?);
        }
        Ok(asked)
    };
    let _apps = (serve(&town.near, HTTP.target)?, serve(&town.far, HTTP.target)?);
    let (by_old, by_new) = (old.token(&claims())?, new.token(&claims())?);
    // The first request waits for the keys, where they are not there yet.
    let good = vec![(200, "/".to_owned()); 2];
    assert_eq!(ask_both(&by_old).await?, good);
    assert_eq!(server.asked(), 2, "once by each node");
    let no_key = "Jwks doesn't have key to match kid or alg from Jwt".to_owned();
    assert_eq!(ask_both(&by_new).await?, vec![(401, no_key); 2]);
    server.serve(new.jwks()?);
    // Not at once: any client may send tokens with any key.
    let follows = || async { Ok((ask_both(&by_new).await? == good).then_some(())) };
    eventually("the new key is known", follows).await?;
    assert!(ask_both(&by_old).await?.iter().all(|(status, _)| *status == 401));
    drop(server);
    assert_eq!(ask_both(&by_new).await?, good);
    let status = Agent::status(&town.b)?;
    let issuer = &status["issuers"][0];
    assert_eq!(issuer["source"], "http://keys.default.svc.cluster.local/jwks", "{status}");
    assert_eq!(issuer["keys"], 1);
    Ok(())
}

#[tokio::test]
async fn without_keys_no_token_is_good_and_by_tls_they_come_from_nobody_else() -> anyhow::Result<()>
{
    let issuer = TokenIssuer::new("k")?;
    let town = Town::without_agents("")?;
    let keys = town.b.pod_with("keys", PodOptions { meshed: false, ..PodOptions::default() })?;
    let certificate = |key: &KeyPair| {
        let params = CertificateParams::new([keys.ip().to_string()])?;
        anyhow::Ok(params.self_signed(key)?)
    };
    let (trusted_key, other_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let (trusted, other) = (certificate(&trusted_key)?, certificate(&other_key)?);
    let bundle = town.config.directory().join("../roots.pem");
    std::fs::write(&bundle, trusted.pem())?;
    let roots = ("SSL_CERT_FILE".to_owned(), bundle.display().to_string());
    let town = town.start_in(&[], &[roots]).await?;
    let _apps = (serve(&town.near, HTTP.target)?, serve(&town.far, HTTP.target)?);
    let by = |port: u16| {
        tokens(&json!({"issuer": ISSUER, "jwksUri": format!("https://{}:{port}/", keys.ip())}))
    };
    let (token, no_keys) = (issuer.token(&claims())?, "Jwks remote fetch is failed");
    let serve_keys = |port, certificate: &rcgen::Certificate, key| {
        KeyServer::start(&keys, port, issuer.jwks()?, Some((certificate.der().clone(), key)))
    };
    let _servers =
        (serve_keys(8001, &other, &other_key)?, serve_keys(8002, &trusted, &trusted_key)?);
    for port in [8001, 8002, 8003] {
        town.change(&by(port)).await?;
        for server in town.servers() {
            let to = service(server, HTTP);
            let asked = ask(&town.frontend, to, &get("/", &token)).await?;
            let expected = if port == 8002 { (200, "/") } else { (401, no_keys) };
            assert_eq!((asked.0, asked.1.as_str()), expected, "{port}");
            // Whoever has no token is not concerned.
            assert_eq!(ask(&town.frontend, to, "GET / HTTP/1.1\r\nHost: a").await?.0, 200);
        }
    }
    Ok(())
}
