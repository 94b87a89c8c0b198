//! Metrics as a scraper reads them.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};

use super::*;
use crate::{
    mesh::testing::snapshot,
    telemetry::{
        Reporter, Telemetry, TelemetryOptions,
        context::tests::headers,
        testing::{flow, principal, recording, workload},
    },
};

fn telemetry() -> Telemetry {
    Telemetry::start(TelemetryOptions::default()).unwrap().0
}

fn respond(telemetry: &Telemetry, flow: &Arc<Flow>, status: u16) {
    let mut parts = Request::get("/").body(()).unwrap().into_parts().0;
    let mut span = telemetry.http_request(flow, &mut parts);
    span.response(&Response::builder().status(status).body(()).unwrap().into_parts().0);
    span.finish(700, 5, None);
}

fn scraped(metrics: &Metrics) -> String {
    metrics.render(Vec::new()).collect()
}

/// The value of the one sample of `name` that has all of `labels`.
#[track_caller]
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let found: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .collect();
    let [line] = found[..] else { panic!("{} samples of {name} {labels:?}\n{text}", found.len()) };
    let (_, value) = line.split_once("} ").unwrap();
    value.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_request_has_istios_labels() {
    let telemetry = telemetry();
    respond(&telemetry, &Arc::new(flow(Reporter::Destination)), 200);
    let text = scraped(telemetry.metrics());
    let line = text.lines().find(|line| line.starts_with("istio_requests_total")).unwrap();
    assert_eq!(
        line,
        "istio_requests_total{reporter=\"destination\",\
         source_workload=\"frontend\",source_workload_namespace=\"shop\",\
         source_principal=\"spiffe://cluster.local/ns/shop/sa/frontend\",\
         source_app=\"frontend\",source_version=\"v1\",source_cluster=\"Kubernetes\",\
         source_canonical_service=\"frontend\",source_canonical_revision=\"v1\",\
         destination_workload=\"order\",destination_workload_namespace=\"shop\",\
         destination_principal=\"spiffe://cluster.local/ns/shop/sa/order\",\
         destination_app=\"order\",destination_version=\"v1\",\
         destination_cluster=\"Kubernetes\",destination_canonical_service=\"order\",\
         destination_canonical_revision=\"v1\",\
         destination_service=\"order.shop.svc.cluster.local\",\
         destination_service_name=\"order\",destination_service_namespace=\"shop\",\
         connection_security_policy=\"mutual_tls\",request_protocol=\"http\",\
         response_flags=\"-\",response_code=\"200\",grpc_response_status=\"\"} 1"
    );
}

#[test]
fn what_is_unknown_is_said_to_be() {
    let telemetry = telemetry();
    let outside =
        Flow { remote: None, service: None, destination_principal: None, ..flow(Reporter::Source) };
    respond(&telemetry, &Arc::new(outside), 200);
    let text = scraped(telemetry.metrics());
    let labels = [
        "destination_workload=\"unknown\"",
        "destination_principal=\"unknown\"",
        "destination_cluster=\"unknown\"",
        "destination_canonical_revision=\"latest\"",
        "destination_service=\"unknown\"",
        // A source does not know what the destination enforced.
        "connection_security_policy=\"unknown\"",
    ];
    assert_eq!(value(&text, "istio_requests_total", &labels), 1.0);
}

#[test]
fn requests_fall_into_buckets_by_duration_and_size() {
    let telemetry = telemetry();
    let flow = Arc::new(flow(Reporter::Source));
    let outcome = Outcome::http(None, false, None, Some(Failure::ResetLocal));
    telemetry.metrics().request(&flow, outcome, Duration::from_millis(30), 700, 5, None);
    let text = scraped(telemetry.metrics());
    let labels = ["response_code=\"0\"", "response_flags=\"DC\""];
    let bucket = |name: &str, le: &str| {
        value(&text, &format!("{name}_bucket"), &[labels[0], labels[1], &format!("le=\"{le}\"")])
    };
    assert_eq!(bucket("istio_request_duration_milliseconds", "25.0"), 0.0);
    assert_eq!(bucket("istio_request_duration_milliseconds", "50.0"), 1.0);
    assert_eq!(bucket("istio_request_bytes", "500.0"), 0.0);
    assert_eq!(bucket("istio_request_bytes", "1000.0"), 1.0);
    assert_eq!(bucket("istio_response_bytes", "5.0"), 1.0);
    assert_eq!(bucket("istio_response_bytes", "+Inf"), 1.0);
    assert_eq!(value(&text, "istio_request_bytes_sum", &labels), 700.0);
    assert_eq!(value(&text, "istio_request_duration_milliseconds_sum", &labels), 30.0);
}

#[test]
fn bytes_sent_are_those_of_the_response_as_istio_has_it() {
    let telemetry = telemetry();
    let flow = Arc::new(flow(Reporter::Source));
    let mut span = telemetry.connection(&flow, None);
    span.moved(10, 2000);
    span.finish(None);
    let text = scraped(telemetry.metrics());
    let labels = ["request_protocol=\"tcp\"", "response_flags=\"-\""];
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &labels), 2000.0);
    assert_eq!(value(&text, "istio_tcp_received_bytes_total", &labels), 10.0);
    assert_eq!(value(&text, "istio_tcp_connections_opened_total", &labels), 1.0);
    assert_eq!(value(&text, "istio_tcp_connections_closed_total", &labels), 1.0);
}

#[test]
fn an_opaque_connection_is_open_before_it_is_closed() {
    let telemetry = telemetry();
    let mut span = telemetry.connection(&Arc::new(flow(Reporter::Source)), None);
    span.opaque();
    let opened = |telemetry: &Telemetry| {
        let text = scraped(telemetry.metrics());
        let flags = &["response_flags=\"-\""];
        (
            value(&text, "istio_tcp_connections_opened_total", flags),
            value(&text, "istio_tcp_connections_closed_total", flags),
        )
    };
    assert_eq!(opened(&telemetry), (1.0, 0.0));
    span.finish(None);
    assert_eq!(opened(&telemetry), (1.0, 1.0));
}

#[test]
fn the_bytes_of_a_connection_count_while_it_is_open_and_once() {
    let telemetry = telemetry();
    let mut span = telemetry.connection(&Arc::new(flow(Reporter::Source)), None);
    let bytes = |telemetry: &Telemetry| {
        let text = scraped(telemetry.metrics());
        let all = |name: &str| -> f64 {
            let samples = text.lines().filter(|line| line.starts_with(name));
            samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
        };
        (all("istio_tcp_received_bytes_total{"), all("istio_tcp_sent_bytes_total{"))
    };
    // Read before anybody knew that it is opaque.
    span.moved(3, 0);
    span.opaque();
    assert_eq!(bytes(&telemetry), (3.0, 0.0));
    span.moved(7, 100);
    span.moved(0, 0);
    assert_eq!(bytes(&telemetry), (10.0, 100.0));
    span.moved(0, 1);
    span.finish(Some(Failure::ResetRemote));
    assert_eq!(bytes(&telemetry), (10.0, 101.0));
}

#[test]
fn a_connection_that_is_dropped_is_closed_too() {
    let telemetry = telemetry();
    let mut span = telemetry.connection(&Arc::new(flow(Reporter::Source)), None);
    span.opaque();
    drop(span);
    let text = scraped(telemetry.metrics());
    let flags = ["response_flags=\"DC\""];
    assert_eq!(value(&text, "istio_tcp_connections_closed_total", &flags), 1.0);
}

#[test]
fn a_grpc_request_carries_its_status() {
    let telemetry = telemetry();
    let flow = Arc::new(flow(Reporter::Source));
    let mut parts = Request::post("/s.S/M").body(()).unwrap().into_parts().0;
    parts.headers = headers(&[("content-type", "application/grpc")]);
    let mut span = telemetry.http_request(&flow, &mut parts);
    span.trailers(&headers(&[("grpc-status", "14")]));
    span.finish(0, 0, None);
    let text = scraped(telemetry.metrics());
    let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"14\""];
    assert_eq!(value(&text, "istio_requests_total", &labels), 1.0);
}

#[test]
fn pods_of_one_workload_share_a_series() {
    let telemetry = telemetry();
    for _ in 0..3 {
        // A new pod of the same deployment each time.
        respond(&telemetry, &Arc::new(flow(Reporter::Source)), 200);
    }
    let text = scraped(telemetry.metrics());
    assert_eq!(value(&text, "istio_requests_total", &[]), 3.0);
}

#[test]
fn series_go_with_their_workloads_and_no_sooner() {
    let telemetry = telemetry();
    let metrics = telemetry.metrics();
    let gone = Arc::new(flow(Reporter::Source));
    let stays = Arc::new(Flow {
        local: Arc::new(workload("worker")),
        remote: None,
        source_principal: Some(principal("worker")),
        ..flow(Reporter::Source)
    });
    respond(&telemetry, &gone, 200);
    respond(&telemetry, &stays, 200);
    telemetry.connection(&gone, None).finish(None);
    // Sources build every workload anew, so that only names tell that one has stayed.
    let snapshot = |version| snapshot(version, vec![Arc::new(workload("worker"))]);
    metrics.retain(&snapshot(2));
    assert_eq!(metrics.flows.len(), 0);
    let (frontend, worker) = (["source_workload=\"frontend\""], ["source_workload=\"worker\""]);
    // A request that was under way then still counts, and once.
    respond(&telemetry, &stays, 200);
    respond(&telemetry, &gone, 200);
    let text = scraped(metrics);
    assert_eq!(value(&text, "istio_requests_total", &worker), 2.0);
    assert_eq!(value(&text, "istio_requests_total", &frontend), 2.0);
    metrics.retain(&snapshot(3));

    metrics.expire(Instant::now() + KEPT - Duration::from_secs(2));
    assert_eq!(value(&scraped(metrics), "istio_requests_total", &frontend), 2.0);
    metrics.expire(Instant::now() + KEPT + Duration::from_secs(2));
    let text = scraped(metrics);
    assert!(!text.contains("frontend"));
    assert_eq!(value(&text, "istio_requests_total", &worker), 2.0);
    assert!(text.contains("\nsluice_metrics_series 1\n"), "{text}");
}

#[test]
fn a_workload_that_comes_back_in_time_keeps_its_series() {
    let telemetry = telemetry();
    let metrics = telemetry.metrics();
    let there = ["frontend", "order"].map(|name| Arc::new(workload(name))).into();
    respond(&telemetry, &Arc::new(flow(Reporter::Source)), 200);
    metrics.retain(&snapshot(2, Vec::new()));
    metrics.retain(&snapshot(3, there));
    metrics.expire(Instant::now() + 2 * KEPT);
    assert_eq!(value(&scraped(metrics), "istio_requests_total", &[]), 1.0);
}

fn answer(metrics: &Metrics, flow: &Flow, codes: impl IntoIterator<Item = u16>) {
    for code in codes {
        let outcome = Outcome::http(http::StatusCode::from_u16(code).ok(), false, None, None);
        metrics.request(flow, outcome, Duration::ZERO, 0, 0, None);
    }
}

#[test]
fn beyond_the_cap_everything_counts_in_one_series() {
    let mut metrics = Metrics::new("Kubernetes".into(), Arc::default(), None);
    metrics.most_series = 4;
    answer(&metrics, &flow(Reporter::Source), [200, 201, 202, 203, 200]);
    let text = scraped(&metrics);
    assert_eq!(value(&text, "istio_requests_total", &["response_code=\"200\""]), 2.0);
    assert_eq!(value(&text, "istio_requests_total", &["response_code=\"201\""]), 1.0);
    let overflow = [
        "reporter=\"overflow\"",
        "source_workload=\"overflow\"",
        "destination_service=\"overflow\"",
        "connection_security_policy=\"overflow\"",
        "request_protocol=\"overflow\"",
        "response_flags=\"overflow\"",
        "response_code=\"overflow\"",
        "grpc_response_status=\"overflow\"",
    ];
    assert_eq!(value(&text, "istio_requests_total", &overflow), 2.0);
    assert!(text.contains("\nsluice_metrics_overflows_total 2\n"));
}

#[test]
fn a_workload_that_makes_all_series_it_can_leaves_room_for_others() {
    let mut metrics = Metrics::new("Kubernetes".into(), Arc::default(), None);
    metrics.most_series = 40;
    answer(&metrics, &flow(Reporter::Destination), 100..1000);
    let hidden = metrics.overflows.load(Relaxed);
    assert!(hidden > 0);
    // The frontend dials the same workload, and counts for itself.
    answer(&metrics, &flow(Reporter::Source), [200, 404, 503]);
    assert_eq!(metrics.overflows.load(Relaxed), hidden);
    let text = scraped(&metrics);
    for code in ["200", "404", "503"] {
        let labels = ["reporter=\"source\"", &format!("response_code=\"{code}\"")];
        assert_eq!(value(&text, "istio_requests_total", &labels), 1.0);
    }
}

#[test]
fn what_is_scraped_comes_in_pieces_that_make_one_text() {
    let telemetry = telemetry();
    answer(telemetry.metrics(), &flow(Reporter::Source), [200, 301, 404, 500, 503]);
    let pieces: Vec<_> = telemetry.metrics().render(Vec::new()).collect();
    assert!(pieces.len() > 1);
    let largest = pieces.iter().map(String::len).max().unwrap();
    assert!(largest < 128 << 10, "{largest}");
    let text = pieces.concat();
    assert_eq!(text.matches("# TYPE istio_requests counter").count(), 1);
    assert_eq!(text.matches("\nistio_requests_total{").count(), 5);
    assert_eq!(text.matches("\nistio_response_bytes_count{").count(), 5);
    assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1);
}

#[test]
fn a_recorded_request_is_an_exemplar_of_its_bucket() {
    let telemetry = recording(1.0);
    let mut parts = Request::get("/").body(()).unwrap().into_parts().0;
    telemetry.http_request(&Arc::new(flow(Reporter::Source)), &mut parts).finish(0, 0, None);
    let trace = &parts.headers["traceparent"].to_str().unwrap()[3..35];
    let text = scraped(telemetry.metrics());
    let examples: Vec<_> = text.lines().filter(|line| line.contains(" # {")).collect();
    assert_eq!(examples.len(), 1);
    assert!(examples[0].starts_with("istio_request_duration_milliseconds_bucket{"));
    assert!(examples[0].contains(&format!(" 1 # {{trace_id=\"{trace}\"}} ")), "{}", examples[0]);
}

#[test]
fn the_agent_and_other_rooms_add_their_own() {
    let telemetry = recording(1.0);
    let extra = Reading {
        name: "sluice_snapshot_version",
        help: "Version of the snapshot in force",
        kind: Kind::Gauge,
        labels: Vec::new(),
        value: 7.0,
    };
    let text = telemetry.metrics().render(vec![extra]).collect::<String>();
    assert!(text.contains("istio_build{component=\"sluice\",tag=\""));
    assert!(text.contains("\nsluice_snapshot_version 7\n"));
    assert!(text.contains("\nsluice_telemetry_spans_dropped_total{reason=\"queue_full\"} 0\n"));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn threads_that_count_into_one_series_lose_nothing() {
    let telemetry = telemetry();
    let flow = Arc::new(flow(Reporter::Source));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| respond(&telemetry, &flow, 200)));
        }
    });
    let text = scraped(telemetry.metrics());
    assert_eq!(value(&text, "istio_requests_total", &[]), 4000.0);
    assert_eq!(value(&text, "istio_request_bytes_count", &[]), 4000.0);
}
