//! One received span, flattened for tests to look at.

use std::{collections::BTreeMap, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{self, span::SpanKind, status::StatusCode},
};

/// A span with the resource and scope it came under.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The parent's span id; `None` at a root.
    pub parent_id: Option<String>,
    /// W3C tracestate.
    pub trace_state: String,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// `service.name` of the resource.
    pub service: String,
    /// All attributes of the resource, as text.
    pub resource: BTreeMap<String, String>,
    /// Name of the instrumentation scope.
    pub scope: String,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// What is said of the failure, when the status is Error.
    pub error: Option<String>,
    /// Trace and span ids of links.
    pub links: Vec<(String, String)>,
}

/// Which side of an exchange a span is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The calling side.
    Client,
    /// The answering side.
    Server,
    /// Anything else.
    Internal,
}

impl Span {
    /// Everything in one export.
    pub(crate) fn all_of(request: ExportTraceServiceRequest) -> Vec<Self> {
        let mut spans = Vec::new();
        for resource_spans in request.resource_spans {
            let resource = texts(resource_spans.resource.unwrap_or_default().attributes);
            for scope_spans in resource_spans.scope_spans {
                let scope = scope_spans.scope.unwrap_or_default().name;
                let one = |span| Self::new(span, &resource, &scope);
                spans.extend(scope_spans.spans.into_iter().map(one));
            }
        }
        spans
    }

    fn new(span: v1::Span, resource: &BTreeMap<String, String>, scope: &str) -> Self {
        let kind = match span.kind() {
            SpanKind::Client | SpanKind::Producer => Kind::Client,
            SpanKind::Server | SpanKind::Consumer => Kind::Server,
            SpanKind::Internal | SpanKind::Unspecified => Kind::Internal,
        };
        let failed = span.status.filter(|status| status.code() == StatusCode::Error);
        Self {
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
            parent_id: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
            trace_state: span.trace_state,
            name: span.name,
            kind,
            service: resource.get("service.name").cloned().unwrap_or_default(),
            resource: resource.clone(),
            scope: scope.to_owned(),
            attributes: texts(span.attributes),
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            error: failed.map(|status| status.message),
            links: span.links.iter().map(|l| (hex(&l.trace_id), hex(&l.span_id))).collect(),
        }
    }

    /// An attribute as text; empty when there is none.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// How long it took.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.end.saturating_sub(self.start))
    }

    /// Whether an agent recorded it, not the application.
    pub fn is_agents(&self) -> bool {
        self.scope == "sluice"
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes
        .into_iter()
        .map(|pair| (pair.key, pair.value.map(text).unwrap_or_default()))
        .collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(Value::StringValue(text)) => text,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::BytesValue(bytes)) => hex(&bytes),
        Some(Value::ArrayValue(array)) => {
            array.values.into_iter().map(text).collect::<Vec<_>>().join(",")
        }
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
