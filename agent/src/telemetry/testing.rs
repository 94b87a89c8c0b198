//! What tests of several files share.

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};

use super::{Flow, Reporter, SecurityPolicy};
use crate::mesh::{AppProtocol, Owner, PodUid, Principal, Service, ServicePort, Workload};

pub(super) fn principal(name: &str) -> Principal {
    Principal::new(Default::default(), "shop", name).unwrap()
}

/// A pod of the deployment `name` in the namespace `shop`.
pub(super) fn workload(name: &str) -> Workload {
    Workload {
        uid: PodUid::new(&format!("uid-{name}")).unwrap(),
        name: format!("{name}-7d4b9"),
        namespace: "shop".into(),
        owner: Owner { kind: "Deployment".into(), name: name.into() },
        node: "node-a".into(),
        ips: vec!["10.1.0.7".parse().unwrap()],
        labels: BTreeMap::from([("app".into(), name.into()), ("version".into(), "v1".into())]),
        principal: principal(name),
        meshed: true,
        netns: None,
        resource_attributes: BTreeMap::new(),
    }
}

/// The frontend calls the Service `order`, port 8080; as `reporter` sees it.
pub(super) fn flow(reporter: Reporter) -> Flow {
    let (frontend, order) = (Arc::new(workload("frontend")), Arc::new(workload("order")));
    let port = ServicePort::new(8080, String::new(), AppProtocol::Http, Vec::new());
    let service = Service {
        name: "order".into(),
        namespace: "shop".into(),
        vips: vec!["10.96.0.5".parse().unwrap()],
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
pub(super) fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
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
