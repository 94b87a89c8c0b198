//! Spans as another implementation of OTLP reads them.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, Response, StatusCode, Version, request};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode as Status};

use crate::telemetry::{
    Cause, Failure, Flow, Reporter, Telemetry,
    context::tests::headers,
    testing::{attributes, flow, recorded, recording},
};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn request(uri: &str, fields: &[(&str, &str)]) -> request::Parts {
    let mut parts = Request::get(uri).body(()).unwrap().into_parts().0;
    parts.headers = headers(fields);
    parts
}

fn response(status: u16, fields: &[(&str, &str)]) -> http::response::Parts {
    let mut parts = Response::builder().status(status).body(()).unwrap().into_parts().0;
    parts.headers = headers(fields);
    parts
}

/// Records one exchange and reads its span.
fn exchange(
    reporter: Reporter,
    mut request: request::Parts,
    answer: Option<http::response::Parts>,
    failure: Option<Failure>,
) -> Span {
    let telemetry = recording(1.0);
    let mut span = telemetry.http_request(&Arc::new(flow(reporter)), &mut request);
    if let Some(answer) = answer {
        span.response(&answer);
    }
    span.finish(3, 4, failure);
    one(&telemetry)
}

fn one(telemetry: &Telemetry) -> Span {
    let mut spans = recorded(telemetry);
    assert_eq!(spans.len(), 1);
    spans.remove(0)
}

#[track_caller]
fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    let read = attributes(&span.attributes);
    let read: Vec<_> = read.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(read, expected);
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == Status::Error)
}

fn error_type(span: &Span) -> Option<String> {
    attributes(&span.attributes).remove("error.type")
}

#[test]
fn a_source_records_a_client_span() {
    let fields = [("host", "order:8080"), ("traceparent", TRACEPARENT), ("tracestate", "a=1")];
    let span = exchange(
        Reporter::Source,
        request("/o/1?sig=secret", &fields),
        Some(response(200, &[])),
        None,
    );
    assert_eq!(span.name, "GET");
    assert_eq!(span.kind(), SpanKind::Client);
    assert_eq!(span.trace_id, 0x0af7651916cd43dd8448eb211c80319c_u128.to_be_bytes());
    assert_eq!(span.parent_span_id, 0xb7ad6b7169203331_u64.to_be_bytes());
    assert_eq!(span.trace_state, "a=1");
    // Sampled, and the parent is known to be remote.
    assert_eq!(span.flags, 0x301);
    assert!(span.start_time_unix_nano > 0 && span.start_time_unix_nano <= span.end_time_unix_nano);
    assert_eq!(span.status, None);
    assert_attributes(
        &span,
        &[
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("http.request.body.size", "3"),
            ("http.response.body.size", "4"),
            ("network.protocol.version", "1.1"),
            ("network.peer.address", "10.1.0.7"),
            ("network.peer.port", "80"),
            ("server.address", "order"),
            ("server.port", "8080"),
            ("url.full", "http://order:8080/o/1?sig=REDACTED"),
            ("mesh.source.principal", "spiffe://cluster.local/ns/shop/sa/frontend"),
            ("mesh.destination.principal", "spiffe://cluster.local/ns/shop/sa/order"),
            ("mesh.connection.security_policy", "mutual_tls"),
            ("mesh.same_node", "false"),
        ],
    );
}

#[test]
fn a_destination_records_a_server_span() {
    let fields = [("host", "order"), ("user-agent", "curl/8")];
    let span = exchange(
        Reporter::Destination,
        request("/o/1?token=secret&x=1", &fields),
        Some(response(204, &[])),
        None,
    );
    assert_eq!(span.kind(), SpanKind::Server);
    assert!(span.parent_span_id.is_empty());
    assert_eq!(span.trace_state, "ot=th:0");
    // Sampled and random, and that there is no remote parent is known.
    assert_eq!(span.flags, 0x103);
    assert_attributes(
        &span,
        &[
            ("http.request.method", "GET"),
            ("http.response.status_code", "204"),
            ("http.request.body.size", "3"),
            ("http.response.body.size", "4"),
            ("network.protocol.version", "1.1"),
            ("network.peer.address", "10.1.0.9"),
            ("network.peer.port", "40000"),
            ("client.address", "10.1.0.9"),
            ("server.address", "order"),
            ("server.port", "80"),
            ("url.scheme", "http"),
            ("url.path", "/o/1"),
            ("url.query", "token=REDACTED&x=1"),
            ("user_agent.original", "curl/8"),
            ("mesh.source.principal", "spiffe://cluster.local/ns/shop/sa/frontend"),
            ("mesh.destination.principal", "spiffe://cluster.local/ns/shop/sa/order"),
            ("mesh.connection.security_policy", "mutual_tls"),
            ("mesh.same_node", "false"),
        ],
    );
}

#[test]
fn the_next_hop_becomes_a_child_of_the_span() {
    let telemetry = recording(1.0);
    let mut parts = request("/", &[("host", "order"), ("traceparent", TRACEPARENT)]);
    telemetry.http_request(&Arc::new(flow(Reporter::Source)), &mut parts).finish(0, 0, None);
    telemetry.http_request(&Arc::new(flow(Reporter::Destination)), &mut parts).finish(0, 0, None);
    let spans = recorded(&telemetry);
    let of = |kind| spans.iter().find(|span| span.kind() == kind).unwrap();
    assert_eq!(of(SpanKind::Server).parent_span_id, of(SpanKind::Client).span_id);
    assert_eq!(of(SpanKind::Server).trace_id, of(SpanKind::Client).trace_id);
}

#[test]
fn a_trace_that_is_not_sampled_is_propagated_and_not_recorded() {
    let telemetry = recording(0.0);
    let mut parts = request("/", &[]);
    telemetry.http_request(&Arc::new(flow(Reporter::Source)), &mut parts).finish(0, 0, None);
    assert!(recorded(&telemetry).is_empty());
    let sent = parts.headers["traceparent"].to_str().unwrap();
    assert!(sent.starts_with("00-") && sent.ends_with("-02"), "{sent}");
}

#[test]
fn without_a_receiver_context_passes_untouched() {
    let (telemetry, _exporter) = Telemetry::start(Default::default()).unwrap();
    let fields = [("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("baggage", "k=v")];
    let mut parts = request("/", &fields);
    telemetry.http_request(&Arc::new(flow(Reporter::Source)), &mut parts).finish(0, 0, None);
    assert_eq!(parts.headers, headers(&fields));
}

#[test]
fn statuses_are_errors_by_side() {
    for (reporter, status, error) in [
        (Reporter::Source, 399, None),
        (Reporter::Source, 404, Some("404")),
        (Reporter::Source, 503, Some("503")),
        (Reporter::Destination, 404, None),
        (Reporter::Destination, 500, Some("500")),
    ] {
        let span = exchange(reporter, request("/", &[]), Some(response(status, &[])), None);
        assert_eq!(error_type(&span).as_deref(), error, "{reporter:?} {status}");
        assert_eq!(is_error(&span), error.is_some(), "{reporter:?} {status}");
    }
}

#[test]
fn a_failure_names_itself_and_a_denial_is_no_error_of_the_server() {
    let refused = |reporter, status, failure| {
        exchange(reporter, request("/", &[]), Some(response(status, &[])), Some(failure))
    };
    let span = refused(Reporter::Source, 503, Failure::NoHealthyUpstream);
    assert_eq!(error_type(&span).as_deref(), Some("no_healthy_upstream"));
    assert!(is_error(&span));
    let span = refused(Reporter::Destination, 403, Failure::AuthzDenied);
    assert_eq!(error_type(&span).as_deref(), Some("authz_denied"));
    assert!(!is_error(&span));
    let span = exchange(Reporter::Source, request("/", &[]), None, Some(Failure::ResetRemote));
    assert!(is_error(&span));
    assert!(!attributes(&span.attributes).contains_key("http.response.status_code"));
}

#[test]
fn a_grpc_call_is_named_by_its_method_and_judged_by_its_trailers() {
    for (reporter, code, name, error) in [
        (Reporter::Source, "0", "OK", false),
        (Reporter::Source, "5", "NOT_FOUND", true),
        (Reporter::Destination, "5", "NOT_FOUND", false),
        (Reporter::Destination, "14", "UNAVAILABLE", true),
    ] {
        let telemetry = recording(1.0);
        let mut parts = request(
            "http://order/shop.Order/Place",
            &[("content-type", "application/grpc+proto"), ("te", "trailers")],
        );
        parts.method = Method::POST;
        parts.version = Version::HTTP_2;
        let mut span = telemetry.http_request(&Arc::new(flow(reporter)), &mut parts);
        span.response(&response(200, &[("content-type", "application/grpc")]));
        span.trailers(&headers(&[("grpc-status", code)]));
        span.finish(0, 0, None);
        let span = one(&telemetry);
        assert_eq!(span.name, "shop.Order/Place");
        assert_eq!(is_error(&span), error, "{reporter:?} {code}");
        assert_eq!(error_type(&span).as_deref(), error.then_some(name));
        let read = attributes(&span.attributes);
        assert_eq!(read["rpc.system.name"], "grpc");
        assert_eq!(read["rpc.method"], "shop.Order/Place");
        assert_eq!(read["rpc.response.status_code"], name);
        assert_eq!(read["network.protocol.version"], "2");
    }
}

#[test]
fn a_grpc_response_of_trailers_only_is_judged_by_its_headers() {
    let call = request("http://o/s.S/M", &[("content-type", "application/grpc")]);
    let answer = response(200, &[("grpc-status", "12")]);
    let span = exchange(Reporter::Destination, call, Some(answer), None);
    assert_eq!(error_type(&span).as_deref(), Some("UNIMPLEMENTED"));
}

#[test]
fn an_unknown_method_names_no_span() {
    let mut parts = request("/", &[]);
    parts.method = Method::from_bytes(b"BREW").unwrap();
    let span = exchange(Reporter::Source, parts, Some(response(200, &[])), None);
    assert_eq!(span.name, "HTTP");
    let read = attributes(&span.attributes);
    assert_eq!(read["http.request.method"], "_OTHER");
    assert_eq!(read["http.request.method_original"], "BREW");
}

#[test]
fn a_request_without_host_is_described_by_what_was_dialled() {
    let span = exchange(Reporter::Source, request("/x", &[]), Some(response(200, &[])), None);
    let read = attributes(&span.attributes);
    assert_eq!(read["server.address"], "10.96.0.5");
    assert_eq!(read["server.port"], "8080");
    assert_eq!(read["url.full"], "http://10.96.0.5:8080/x");
}

#[test]
fn both_sides_of_an_opaque_connection_are_joined_through_the_connect() {
    let telemetry = recording(1.0);
    let mut client = telemetry.connection(&Arc::new(flow(Reporter::Source)), None);
    let mut connect = HeaderMap::new();
    client.inject(&mut connect);
    let server = telemetry.connection(&Arc::new(flow(Reporter::Destination)), Some(&connect));
    client.connected(Duration::from_millis(250));
    client.moved(10, 20);
    client.finish(None);
    server.finish(Some(Failure::ResetLocal));

    let spans = recorded(&telemetry);
    let of = |kind| spans.iter().find(|span| span.kind() == kind).unwrap();
    let (client, server) = (of(SpanKind::Client), of(SpanKind::Server));
    assert_eq!(client.name, "TCP order.shop.svc.cluster.local");
    assert_eq!(server.parent_span_id, client.span_id);
    assert_eq!(server.trace_id, client.trace_id);
    let mut read = attributes(&client.attributes);
    assert!(read.remove("mesh.connection.duration").is_some());
    let read: Vec<_> = read.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(
        read,
        [
            ("mesh.connection.close_reason", "closed"),
            ("mesh.connection.connect_duration", "0.25"),
            ("mesh.connection.received_bytes", "20"),
            ("mesh.connection.security_policy", "mutual_tls"),
            ("mesh.connection.sent_bytes", "10"),
            ("mesh.destination.principal", "spiffe://cluster.local/ns/shop/sa/order"),
            ("mesh.same_node", "false"),
            ("mesh.source.principal", "spiffe://cluster.local/ns/shop/sa/frontend"),
            ("network.peer.address", "10.1.0.7"),
            ("network.peer.port", "80"),
            ("network.transport", "tcp"),
            ("network.type", "ipv4"),
            ("server.address", "order.shop.svc.cluster.local"),
            ("server.port", "8080"),
        ]
    );
    let read = attributes(&server.attributes);
    assert_eq!(read["client.address"], "10.1.0.9");
    assert_eq!(read["client.port"], "40000");
    assert_eq!(read["mesh.connection.close_reason"], "reset_local");
    assert_eq!(error_type(server).as_deref(), Some("reset_local"));
    assert!(is_error(server));
}

#[test]
fn a_refused_connection_says_why_in_words() {
    let telemetry = recording(1.0);
    let server = telemetry.connection(&Arc::new(flow(Reporter::Destination)), None);
    server.refuse(Failure::MutualTlsRequired, "plaintext is refused");
    let span = one(&telemetry);
    assert!(is_error(&span));
    assert_eq!(span.status.as_ref().unwrap().message, "plaintext is refused");
    assert_eq!(error_type(&span).as_deref(), Some("mutual_tls_required"));
}

#[test]
fn a_connection_to_no_service_is_named_by_its_address() {
    let telemetry = recording(1.0);
    let outside = Flow {
        service: None,
        remote: None,
        destination_principal: None,
        server: "[::ffff:192.0.2.7]:443".parse().unwrap(),
        ..flow(Reporter::Source)
    };
    telemetry.connection(&Arc::new(outside), None).finish(None);
    let span = one(&telemetry);
    assert_eq!(span.name, "TCP 192.0.2.7");
    assert!(!attributes(&span.attributes).contains_key("mesh.destination.principal"));
}

#[test]
fn what_follows_an_upgrade_is_linked_to_the_request() {
    let telemetry = recording(1.0);
    let flow = Arc::new(flow(Reporter::Destination));
    let mut parts = request("/ws", &[]);
    let mut http = telemetry.http_request(&flow, &mut parts);
    http.response(&response(StatusCode::SWITCHING_PROTOCOLS.into(), &[]));
    let connection = telemetry.upgraded_connection(&flow, &http);
    http.finish(0, 0, None);
    let request = one(&telemetry);
    connection.finish(None);
    let connection = one(&telemetry);
    assert_eq!(connection.trace_id, request.trace_id);
    assert_eq!(connection.parent_span_id, request.span_id);
    assert_eq!(connection.links.len(), 1);
    assert_eq!(connection.links[0].span_id, request.span_id);
    assert_eq!(connection.links[0].trace_id, request.trace_id);
    assert_eq!(connection.flags & 0x300, 0x100, "the parent is in this process");
}

/// Whatever ended it.
struct Because(Option<Failure>);

impl Cause for Because {
    fn why(&self) -> Option<Failure> {
        self.0
    }
}

#[test]
fn a_connection_that_is_dropped_says_why_it_was_cut() {
    let telemetry = recording(1.0);
    for (cause, expected) in [
        (Some(Because(Some(Failure::DrainTimeout))), "drain_timeout"),
        (Some(Because(None)), "reset_local"),
        (None, "reset_local"),
    ] {
        let mut span = telemetry.connection(&Arc::new(flow(Reporter::Source)), None);
        if let Some(cause) = cause {
            span = span.cut_by(Arc::new(cause));
        }
        span.moved(1, 2);
        drop(span);
        let span = one(&telemetry);
        let read = attributes(&span.attributes);
        assert_eq!(read["mesh.connection.close_reason"], expected);
        assert_eq!(read["mesh.connection.received_bytes"], "2");
    }
}

#[test]
fn an_end_that_broke_because_it_was_cut_is_not_to_blame() {
    let telemetry = recording(1.0);
    for (failure, expected) in [
        (Some(Failure::ResetLocal), "pod_left"),
        (Some(Failure::ResetRemote), "pod_left"),
        (Some(Failure::BufferLimit), "buffer_limit"),
        (None, "closed"),
    ] {
        let span = telemetry.connection(&Arc::new(flow(Reporter::Source)), None);
        span.cut_by(Arc::new(Because(Some(Failure::PodLeft)))).finish(failure);
        let read = attributes(&one(&telemetry).attributes);
        assert_eq!(read["mesh.connection.close_reason"], expected);
    }
}

#[test]
fn a_discarded_connection_leaves_nothing() {
    let telemetry = recording(1.0);
    telemetry.connection(&Arc::new(flow(Reporter::Source)), None).discard();
    assert!(recorded(&telemetry).is_empty());
    assert!(
        !telemetry
            .metrics()
            .render(Vec::new())
            .any(|text| text.contains("istio_tcp_connections_opened_total{"))
    );
}
