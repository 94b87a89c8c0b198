//! What tests of several files share.

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ScopeSpans, Span},
};
use prost::Message;

use super::{
    Batching, Flow, Metrics, Reporter, SecurityPolicy, Shared, Telemetry,
    metrics::Health,
    queue::{Held, Queue},
    sampling::Sampler,
};
use crate::mesh::{
    AppProtocol, Endpoints, Owner, Principal, Service, ServiceId, ServicePort, Workload, testing,
};

pub(crate) fn principal(name: &str) -> Principal {
    Principal::new(Default::default(), "shop", name).unwrap()
}

/// A pod of the deployment `name` in the namespace `shop`.
pub(crate) fn workload(name: &str) -> Workload {
    Workload {
        name: format!("{name}-7d4b9").into(),
        owner: Owner { kind: "Deployment".into(), name: name.into() }.into(),
        labels: Arc::new(
            [("app", name), ("version", "v1")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
        ),
        ..testing::workload(name, "10.1.0.7")
    }
}

/// The frontend calls the Service `order`, port 8080; as `reporter` sees it.
pub(crate) fn flow(reporter: Reporter) -> Flow {
    let (frontend, order) = (Arc::new(workload("frontend")), Arc::new(workload("order")));
    let port = ServicePort::new(8080, String::new(), AppProtocol::Http, Endpoints::default());
    let service = Service {
        id: ServiceId::new("shop", "order"),
        affinity: None,
        vips: vec!["10.96.0.5".parse().unwrap()],
        external: Vec::new(),
        ports: vec![Arc::new(port)],
    };
    let (local, remote, server, peer) = match reporter {
        Reporter::Source => (frontend, order, "10.96.0.5:8080", "10.1.0.7:80"),
        Reporter::Destination => (order, frontend, "10.1.0.7:80", "10.1.0.9:40000"),
    };
    Flow {
        reporter,
        local,
        remote: Some(remote),
        service: Some(Arc::new(service)),
        source_principal: Some(principal("frontend")),
        destination_principal: Some(principal("order")),
        security: SecurityPolicy::MutualTls,
        same_node: false,
        client: "10.1.0.9:40000".parse().unwrap(),
        server: server.parse().unwrap(),
        peer: peer.parse().unwrap(),
    }
}

/// Attributes by key, each value as text.
pub(crate) fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        other => panic!("an attribute the agent never writes: {other:?}"),
    };
    let read: BTreeMap<_, _> = attributes
        .iter()
        .map(|pair| {
            let value = pair.value.as_ref().and_then(|any| any.value.as_ref()).unwrap();
            (pair.key.clone(), text(value))
        })
        .collect();
    assert_eq!(read.len(), attributes.len(), "an attribute is there twice: {attributes:?}");
    read
}

/// Telemetry that records the share `sampling` of traces and exports nothing.
pub(crate) fn recording(sampling: f64) -> Telemetry {
    let health = Arc::new(Health::default());
    let queue = Arc::new(Queue::new(Batching::default(), Vec::new(), health.clone()));
    Telemetry(Arc::new(Shared {
        sampler: Sampler::new(sampling),
        metrics: Metrics::new("Kubernetes".into(), health, Some(queue.clone())),
        queue: Some(queue),
    }))
}

/// The spans recorded since this was last called, as another implementation reads them.
pub(crate) fn recorded(telemetry: &Telemetry) -> Vec<Span> {
    let queue = telemetry.0.queue.as_ref().unwrap();
    let mut spans = Vec::new();
    for chunk in queue.drain() {
        let read = ScopeSpans::decode(&*chunk.spans).unwrap().spans;
        let (bytes, count) = (chunk.spans.len(), read.len());
        queue.release(&[Held { lane: chunk.lane, bytes, spans: count }]);
        spans.extend(read);
    }
    spans
}
