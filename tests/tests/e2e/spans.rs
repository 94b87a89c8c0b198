//! What the agents tell of the traffic, field by field, as it arrives at an OTLP receiver.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use sluice_tests::{
    Kind, Line, Pod, Protocol, Shop, Span, accept,
    ports::{HTTP, TCP},
};

/// The end of a head.
const HEAD: &str = "\r\n\r\n";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplum!";

/// A request as an application with a tracer of its own sends it.
fn order(trace: &str, flags: &str) -> String {
    format!(
        "POST /orders/7?size=9&token=geheim HTTP/1.1\r\nHost: orders.shop:80\r\n\
         User-Agent: till/2.1\r\ntraceparent: 00-{trace}-{CALLER}-{flags}\r\n\
         tracestate: vendor=opaque\r\nContent-Length: 4\r\n\r\npear"
    )
}

/// The fields of the `traceparent` an application was sent.
fn traceparent(asked: &str) -> [&str; 4] {
    let value = asked.lines().find_map(|line| line.strip_prefix("traceparent: "));
    let value = value.unwrap_or_else(|| panic!("no traceparent in {asked}"));
    let fields: Vec<_> = value.split('-').collect();
    fields.try_into().unwrap_or_else(|_| panic!("not four fields: {value}"))
}

fn texts<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Attributes without the given ones, which must be numbers.
fn without(span: &Span, numbers: &[&str]) -> BTreeMap<String, String> {
    let mut attributes = span.attributes.clone();
    for name in numbers {
        let value = attributes.remove(*name).unwrap_or_else(|| panic!("no {name} in {span:?}"));
        value.parse::<f64>().unwrap_or_else(|_| panic!("{name} is {value:?}"));
    }
    attributes
}

/// The pair of spans of one request from the client to `server`, every field of them.
async fn examine_one_request(shop: &Shop, server: &Pod, same_node: bool) -> anyhow::Result<()> {
    let (asked, _) = shop.exchange(server, &order(TRACE, "01"), OK).await?;
    let [client, far] = shop.pair(TRACE).await?;

    assert_eq!((client.kind, far.kind), (Kind::Client, Kind::Server));
    assert_eq!([client.name.as_str(), &far.name], ["POST", "POST"]);
    assert_eq!(client.parent_id.as_deref(), Some(CALLER));
    assert_eq!(far.parent_id.as_deref(), Some(client.span_id.as_str()));
    assert_eq!(traceparent(&asked), ["00", TRACE, &far.span_id, "01"]);
    assert!(asked.contains("tracestate: vendor=opaque\r\n"), "{asked}");
    for span in [&client, &far] {
        assert_eq!(span.trace_state, "vendor=opaque");
        assert_eq!(span.scope, "sluice");
        assert_eq!((&span.error, &span.links), (&None, &Vec::new()));
        assert!(span.start < span.end);
    }
    assert!(client.start <= far.start && far.end <= client.end, "{client:?} {far:?}");

    let both = [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.request.body.size", "4"),
        ("http.response.body.size", "5"),
        ("network.protocol.version", "1.1"),
        ("server.address", "orders.shop"),
        ("server.port", "80"),
        ("mesh.source.principal", &shop.client.principal()),
        ("mesh.destination.principal", &server.principal()),
        ("mesh.connection.security_policy", "mutual_tls"),
        ("mesh.same_node", if same_node { "true" } else { "false" }),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut expected = texts([
        ("url.full", "http://orders.shop:80/orders/7?size=9&token=REDACTED"),
        ("network.peer.address", &server.ip().to_string()),
        ("network.peer.port", &HTTP.target.to_string()),
    ]);
    expected.extend(both.clone());
    assert_eq!(client.attributes, expected);
    let client_ip = shop.client.ip().to_string();
    let mut expected = texts([
        ("url.scheme", "http"),
        ("url.path", "/orders/7"),
        ("url.query", "size=9&token=REDACTED"),
        ("user_agent.original", "till/2.1"),
        ("client.address", &client_ip),
        ("network.peer.address", &client_ip),
    ]);
    expected.extend(both);
    assert_eq!(without(&far, &["network.peer.port"]), expected);

    assert_resource(&client, &shop.client);
    assert_resource(&far, server);
    Ok(())
}

/// That a span is on behalf of `pod`.
fn assert_resource(span: &Span, pod: &Pod) {
    let mut resource = span.resource.clone();
    let version = resource.remove("telemetry.sdk.version");
    assert!(version.is_some_and(|version| version.contains('.')), "{span:?}");
    let expected = texts([
        ("service.name", pod.app()),
        ("service.namespace", pod.namespace()),
        ("service.instance.id", &format!("{}.{}", pod.namespace(), pod.name())),
        ("k8s.namespace.name", pod.namespace()),
        ("k8s.pod.name", pod.name()),
        ("k8s.pod.uid", &pod.uid()),
        ("k8s.node.name", pod.node()),
        ("telemetry.sdk.name", "sluice"),
        ("telemetry.sdk.language", "rust"),
    ]);
    assert_eq!(resource, expected);
    assert_eq!(span.service, pod.app());
}

#[tokio::test]
async fn a_request_between_nodes_is_two_spans_exported_over_grpc() -> anyhow::Result<()> {
    let shop = Shop::open_with(Protocol::Grpc, &[]).await?;
    examine_one_request(&shop, &shop.far, false).await
}

#[tokio::test]
async fn a_request_between_nodes_is_two_spans_exported_over_http() -> anyhow::Result<()> {
    let shop = Shop::open_with(Protocol::Http, &[]).await?;
    examine_one_request(&shop, &shop.far, false).await
}

#[tokio::test]
async fn a_request_within_a_node_is_two_spans_too_and_they_say_so() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    examine_one_request(&shop, &shop.near, true).await
}

#[tokio::test]
async fn a_request_forced_into_a_tunnel_within_a_node_is_two_spans_of_two_nodes()
-> anyhow::Result<()> {
    let shop = Shop::open_with(Protocol::Grpc, &["--same-node=tunnel"]).await?;
    examine_one_request(&shop, &shop.near, false).await
}

#[tokio::test]
async fn whether_a_status_is_an_error_depends_on_the_side() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for (status, [at_client, at_server]) in [
            ("200", [false, false]),
            ("404", [true, false]),
            ("500", [true, true]),
            ("503", [true, true]),
        ] {
            let digit = if server.name() == "near" { "a" } else { "b" };
            let trace = format!("{digit}{status}").repeat(8);
            let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 2\r\n\r\nno");
            shop.exchange(server, &order(&trace, "01"), &answer).await?;
            for (span, is_error) in shop.pair(&trace).await?.iter().zip([at_client, at_server]) {
                assert_eq!(span.attribute("http.response.status_code"), status);
                assert_eq!(span.error.is_some(), is_error, "{status}: {span:?}");
                let error_type = if is_error { status } else { "" };
                assert_eq!(span.attribute("error.type"), error_type, "{span:?}");
            }
        }
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(since.as_nanos()).expect("it is before 2554")
}

#[tokio::test]
async fn a_span_lasts_from_the_request_to_the_end_of_the_body() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let listener = server.listen(HTTP.target)?;
        let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
        let trace = if server.name() == "near" { "a1" } else { "b2" }.repeat(16);
        let before = now();
        client.say(order(&trace, "01")).await?;
        let mut app = accept(&listener).await?;
        app.hear("pear").await?;
        let asked = now();
        app.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nplum\r\n").await?;
        client.hear("plum").await?;
        let half = now();
        app.say("0\r\n\r\n").await?;
        client.hear("0\r\n\r\n").await?;
        drop((app, client, listener));
        for span in shop.pair(&trace).await? {
            assert!((before..asked).contains(&span.start), "{span:?}");
            assert!(span.end > half, "it ended before its body: {span:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_traceparent_starts_a_new_trace() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for (n, invalid) in [
        format!("00-{TRACE}-{CALLER}"),
        format!("ff-{TRACE}-{CALLER}-01"),
        format!("00-{}-{CALLER}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{}-{CALLER}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{CALLER}-01-extra"),
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!(
            "GET /{n} HTTP/1.1\r\nHost: shop\r\ntraceparent: {invalid}\r\n\
             tracestate: vendor=opaque\r\n\r\n"
        );
        let (asked, _) = shop.exchange(&shop.far, &request, OK).await?;
        let [_, trace, span, _] = traceparent(&asked);
        assert_ne!(trace, TRACE, "{invalid}");
        assert!(!asked.contains("vendor=opaque"), "{invalid}: {asked}");
        let [client, server] = shop.pair(trace).await?;
        assert_eq!(client.parent_id, None, "{invalid}");
        assert_eq!(server.parent_id.as_ref(), Some(&client.span_id), "{invalid}");
        assert_eq!(server.span_id, span, "{invalid}");
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_that_does_not_record_is_followed_and_its_trace_goes_on() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let (asked, _) = shop.exchange(server, &order(TRACE, "00"), OK).await?;
        let [_, trace, span, flags] = traceparent(&asked);
        assert_eq!((trace, flags), (TRACE, "00"));
        assert_ne!(span, CALLER);
    }
    // What was recorded later is there, so what was recorded before would be.
    let spans = shop.flush().await?;
    assert!(spans.iter().all(|span| span.trace_id != TRACE), "{spans:?}");
    Ok(())
}

/// The agents' spans on whose `TCP` way to `server` they are, the client's first.
async fn tcp_pair(shop: &Shop, server: &str) -> anyhow::Result<[Span; 2]> {
    let name = format!("TCP {server}.default.svc.cluster.local");
    let of = |spans: &[Span]| {
        spans.iter().find(|span| span.name == name && span.kind == Kind::Client).cloned()
    };
    let patience = std::time::Duration::from_secs(20);
    let spans = shop.receiver.wait_for(patience, |spans| of(spans).is_some()).await?;
    let client = of(&spans).expect("it was awaited");
    let pair = shop.pair(&client.trace_id).await?;
    assert!(pair.iter().all(|span| span.name == name), "{pair:?}");
    Ok(pair)
}

#[tokio::test]
async fn an_opaque_connection_is_two_joined_spans_with_its_bytes() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let listener = server.listen(TCP.target)?;
        let mut client = shop.dial(shop.service(server.name(), TCP)).await?;
        let mut app = accept(&listener).await?;
        client.say("question").await?;
        app.hear("question").await?;
        app.say("a longer answer").await?;
        client.hear("a longer answer").await?;
        let open = now();
        client.finish().await?;
        app.rest().await?;
        drop(app);
        client.rest().await?;

        let [near, far] = tcp_pair(&shop, server.name()).await?;
        assert_eq!((near.kind, far.kind), (Kind::Client, Kind::Server));
        assert_eq!(near.parent_id, None);
        assert_eq!(far.parent_id.as_ref(), Some(&near.span_id));
        let client_ip = shop.client.ip().to_string();
        let hostname = format!("{}.default.svc.cluster.local", server.name());
        let both = [
            ("network.transport", "tcp"),
            ("network.type", "ipv4"),
            ("server.address", &hostname),
            ("mesh.source.principal", &shop.client.principal()),
            ("mesh.destination.principal", &server.principal()),
            ("mesh.connection.security_policy", "mutual_tls"),
            ("mesh.same_node", if server.name() == "near" { "true" } else { "false" }),
            ("mesh.connection.sent_bytes", "8"),
            ("mesh.connection.received_bytes", "15"),
            ("mesh.connection.close_reason", "closed"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let numbers = ["mesh.connection.duration", "mesh.connection.connect_duration"];
        let mut expected = texts([
            ("server.port", &TCP.port.to_string()),
            ("network.peer.address", &server.ip().to_string()),
            ("network.peer.port", &TCP.target.to_string()),
        ]);
        expected.extend(both.clone());
        assert_eq!(without(&near, &numbers), expected);
        let mut expected = texts([
            ("server.port", &TCP.target.to_string()),
            ("client.address", &client_ip),
            ("network.peer.address", &client_ip),
        ]);
        expected.extend(both);
        let [duration, connect] = numbers;
        let numbers = [duration, connect, "network.peer.port", "client.port"];
        assert_eq!(without(&far, &numbers), expected);
        for (span, pod) in [(&near, &shop.client), (&far, server)] {
            assert_resource(span, pod);
            assert_eq!(span.error, None);
            assert!(span.start < open && span.end > open, "{span:?}");
        }
    }
    Ok(())
}

/// That a connection to `to` is reset: after connect(), or so soon that connect() says it.
async fn assert_reset(shop: &Shop, to: SocketAddr) -> anyhow::Result<()> {
    let ended = match shop.client.connect(to).await {
        Ok(stream) => Line::new(stream).rest().await?,
        Err(error) => (String::new(), Some(error.kind())),
    };
    assert_eq!(ended, (String::new(), Some(std::io::ErrorKind::ConnectionReset)));
    Ok(())
}

#[tokio::test]
async fn a_connection_that_the_server_refuses_is_reset_and_both_spans_say_why() -> anyhow::Result<()>
{
    let shop = Shop::open().await?;
    for server in shop.servers() {
        // Nobody listens.
        assert_reset(&shop, shop.service(server.name(), TCP)).await?;
        let [near, far] = tcp_pair(&shop, server.name()).await?;
        assert_eq!(far.parent_id.as_ref(), Some(&near.span_id));
        for span in [&near, &far] {
            assert!(span.error.is_some(), "{span:?}");
            assert_eq!(span.attribute("error.type"), "connect_failure", "{span:?}");
            assert_eq!(span.attribute("mesh.connection.close_reason"), "connect_failure");
            assert_eq!(span.attribute("mesh.connection.sent_bytes"), "0");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_service_without_endpoints_resets_connections_and_answers_requests_with_503()
-> anyhow::Result<()> {
    let shop = Shop::open().await?;
    assert_reset(&shop, shop.service("empty", TCP)).await?;
    let mut client = shop.dial(shop.service("empty", HTTP)).await?;
    client.say(order(TRACE, "01")).await?;
    let answer = client.hear(HEAD).await?;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    // No more than the kind: names and addresses are not for whoever asks.
    client.hear("sluice: no_healthy_upstream\n").await?;

    let failed = shop.flush().await?;
    let failed: Vec<_> = failed.iter().filter(|span| span.error.is_some()).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    for span in &failed {
        assert_eq!(span.kind, Kind::Client);
        assert_eq!(span.service, "client");
        assert_eq!(span.attribute("error.type"), "no_healthy_upstream");
        assert_eq!(span.attribute("mesh.destination.principal"), "");
    }
    let mut names: Vec<_> = failed.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["POST", "TCP empty.default.svc.cluster.local"]);
    Ok(())
}

#[tokio::test]
async fn an_upgrade_is_a_request_and_a_connection_linked_to_it_on_both_sides() -> anyhow::Result<()>
{
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let trace = if server.name() == "near" { "c3" } else { "d4" }.repeat(16);
        let listener = server.listen(HTTP.target)?;
        let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
        client
            .say(format!(
                "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 traceparent: 00-{trace}-{CALLER}-01\r\n\r\n"
            ))
            .await?;
        let mut app = accept(&listener).await?;
        app.hear(HEAD).await?;
        app.say(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await?;
        client.hear(HEAD).await?;
        client.say("ping!").await?;
        app.hear("ping!").await?;
        let switched = now();
        app.say("pong").await?;
        client.hear("pong").await?;
        client.finish().await?;
        app.rest().await?;
        drop((app, listener));
        client.rest().await?;

        let spans = shop.trace(&trace, 4).await?;
        for (kind, pod) in [(Kind::Client, &shop.client), (Kind::Server, server)] {
            let find = |http: bool| {
                let is = |span: &&Span| span.kind == kind && (span.name == "GET") == http;
                spans.iter().find(is).unwrap_or_else(|| panic!("{kind:?} {http} in {spans:?}"))
            };
            let (request, connection) = (find(true), find(false));
            assert_eq!(request.attribute("http.response.status_code"), "101");
            assert!(request.end < switched, "the request lasts on: {request:?}");
            assert_eq!(connection.links, [(trace.clone(), request.span_id.clone())]);
            assert_eq!(connection.parent_id.as_ref(), Some(&request.span_id));
            assert!(connection.name.starts_with("TCP "), "{connection:?}");
            assert_eq!(connection.attribute("mesh.connection.sent_bytes"), "5");
            assert_eq!(connection.attribute("mesh.connection.received_bytes"), "4");
            assert!(connection.end > switched, "{connection:?}");
            assert_resource(request, pod);
            assert_resource(connection, pod);
        }
    }
    Ok(())
}

#[tokio::test]
async fn whoever_broke_a_request_off_is_named() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for (by, expected) in [("client", "reset_local"), ("server", "reset_remote")] {
            let digits = if server.name() == "near" { ["e5", "f6"] } else { ["97", "88"] };
            let trace = digits[usize::from(by == "server")].repeat(16);
            let listener = server.listen(HTTP.target)?;
            let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
            client
                .say(format!(
                    "POST /x HTTP/1.1\r\nHost: shop\r\ntraceparent: 00-{trace}-{CALLER}-01\r\n\
                     Content-Length: 10\r\n\r\nabc"
                ))
                .await?;
            let mut app = accept(&listener).await?;
            app.hear("abc").await?;
            if by == "server" {
                drop(app);
                let answer = client.hear(HEAD).await?;
                assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
            } else {
                drop(client);
                app.rest().await?;
                drop(app);
            }
            drop(listener);
            let [near, far] = shop.pair(&trace).await?;
            assert!(near.error.is_some() && far.error.is_some(), "{near:?} {far:?}");
            assert_eq!(far.attribute("error.type"), expected, "{far:?}");
            if by == "client" {
                assert_eq!(near.attribute("error.type"), expected, "{near:?}");
            }
        }
    }
    Ok(())
}
