//! Istio's labels, rendered once per series.

use std::{collections::HashSet, sync::Arc};

use http::StatusCode;

use super::text::append_label;
use crate::{
    mesh::{Principal, Workload},
    telemetry::{
        flow::{Failure, Flow, Reporter},
        grpc,
    },
};

const UNKNOWN: &str = "unknown";

/// How a request ended, as far as labels tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::telemetry) struct Outcome {
    /// 0 when there was no response, as Envoy has it.
    code: u16,
    grpc: bool,
    grpc_status: Option<u8>,
    flags: &'static str,
}

impl Outcome {
    pub(in crate::telemetry) fn http(
        status: Option<StatusCode>,
        grpc: bool,
        grpc_status: Option<grpc::Code>,
        failure: Option<Failure>,
    ) -> Self {
        Self {
            code: status.map_or(0, |status| status.as_u16()),
            grpc,
            grpc_status: grpc_status.map(grpc::Code::number),
            flags: flags(failure),
        }
    }

    pub(super) fn append_to(self, labels: &mut String) {
        append_label(labels, "request_protocol", if self.grpc { "grpc" } else { "http" });
        append_label(labels, "response_flags", self.flags);
        append_label(labels, "response_code", &self.code.to_string());
        let grpc_status = self.grpc_status.map(|code| code.to_string()).unwrap_or_default();
        append_label(labels, "grpc_response_status", &grpc_status);
    }
}

pub(super) fn append_connection(labels: &mut String, flags: &str) {
    append_label(labels, "request_protocol", "tcp");
    append_label(labels, "response_flags", flags);
}

pub(super) fn flags(failure: Option<Failure>) -> &'static str {
    failure.map_or("-", Failure::response_flags)
}

/// The labels every series of `flow` has.
pub(super) fn flow_labels(flow: &Flow, cluster: &str) -> String {
    let mut labels = String::with_capacity(1024);
    let reporter = match flow.reporter {
        Reporter::Source => "source",
        Reporter::Destination => "destination",
    };
    append_label(&mut labels, "reporter", reporter);
    side(&mut labels, "source", flow.source(), flow.source_principal.as_ref(), cluster);
    side(
        &mut labels,
        "destination",
        flow.destination(),
        flow.destination_principal.as_ref(),
        cluster,
    );
    let service = flow.service.as_deref();
    let hostname = service.map(|service| service.hostname());
    append_label(&mut labels, "destination_service", hostname.as_deref().unwrap_or(UNKNOWN));
    append_label(
        &mut labels,
        "destination_service_name",
        service.map_or(UNKNOWN, |service| &service.name),
    );
    append_label(
        &mut labels,
        "destination_service_namespace",
        service.map_or(UNKNOWN, |service| &service.namespace),
    );
    // The source cannot know what the other side enforced (Istio's standard metrics).
    let security = match flow.reporter {
        Reporter::Source => UNKNOWN,
        Reporter::Destination => flow.security.as_str(),
    };
    append_label(&mut labels, "connection_security_policy", security);
    labels
}

fn side(
    labels: &mut String,
    side: &str,
    workload: Option<&Arc<Workload>>,
    principal: Option<&Principal>,
    cluster: &str,
) {
    let workload = workload.map(|workload| &**workload);
    let mut append = |name: &str, value: Option<&str>| {
        append_label(labels, &format!("{side}_{name}"), value.unwrap_or(UNKNOWN));
    };
    append("workload", workload.map(|pod| pod.owner.name.as_str()));
    append("workload_namespace", workload.map(|pod| &*pod.namespace));
    append("principal", principal.map(Principal::to_string).as_deref());
    append("app", workload.map(Workload::app));
    append("version", workload.map(Workload::version));
    append("cluster", workload.map(|_| cluster));
    append("canonical_service", workload.map(Workload::canonical_service));
    append("canonical_revision", Some(workload.map_or("latest", Workload::canonical_revision)));
}

/// The same labels, each with the value `overflow`.
pub(super) fn overflow_labels(labels: &str) -> String {
    let mut overflow = String::with_capacity(labels.len());
    for name in label_names(labels) {
        append_label(&mut overflow, name, "overflow");
    }
    overflow
}

/// The names in `a="…",b="…"`; a quote within a value is escaped.
fn label_names(mut labels: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (name, rest) = labels.split_once("=\"")?;
        let mut escaped = false;
        let end = rest.find(|c| {
            let end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            end
        })?;
        labels = rest[end + 1..].trim_start_matches(',');
        Some(name)
    })
}

/// The workloads a series speaks of, by namespace and name, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Names([Option<(String, String)>; 2]);

impl Names {
    pub(super) fn of(flow: &Flow) -> Self {
        let name = |pod: &Arc<Workload>| (pod.namespace.to_string(), pod.owner.name.clone());
        Self([flow.source().map(name), flow.destination().map(name)])
    }

    pub(super) fn are_among(&self, names: &HashSet<(&str, &str)>) -> bool {
        self.0
            .iter()
            .flatten()
            .all(|(namespace, name)| names.contains(&(namespace.as_str(), name.as_str())))
    }
}
