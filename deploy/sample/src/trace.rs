//! Trace context of requests, and the service's own spans where they are wanted.

use std::{borrow::Cow, env, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use hyper::{HeaderMap, Request, StatusCode, header};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapCompositePropagator, TextMapPropagator},
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_otlp::SpanExporter as OtlpExporter;
use opentelemetry_sdk::{
    Resource,
    propagation::{BaggagePropagator, TraceContextPropagator},
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanProcessor},
};

/// How long a span waits for company: whoever looks at a demo does not want to wait.
const BATCH_DELAY: Duration = Duration::from_millis(500);

/// Where the spans of one service go.
#[derive(Clone, Debug)]
pub(crate) struct Tracing(Option<(SdkTracerProvider, SdkTracer)>);

impl Tracing {
    /// Exports over OTLP if `OTEL_EXPORTER_OTLP_ENDPOINT` (or its variant for traces) is set.
    /// If not, the service records nothing and passes the trace headers on as they came: a
    /// span that is never exported must not become anybody's parent.
    pub(crate) fn from_env(service: &'static str) -> anyhow::Result<Self> {
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        if !set("OTEL_EXPORTER_OTLP_ENDPOINT") && !set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            return Ok(Self::off());
        }
        let exporter = OtlpExporter::builder().with_tonic().build().context(
            "cannot export spans (hint: OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317)",
        )?;
        let mut batch = BatchConfigBuilder::default();
        if !set("OTEL_BSP_SCHEDULE_DELAY") {
            batch = batch.with_scheduled_delay(BATCH_DELAY);
        }
        let processor =
            BatchSpanProcessor::builder(exporter).with_batch_config(batch.build()).build();
        Ok(Self::with(processor, service))
    }

    /// Records nothing, and passes trace headers on as they came.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// Hands the spans of `service` to `processor`.
    pub(crate) fn with(processor: impl SpanProcessor + 'static, service: &'static str) -> Self {
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(service))
            .with_span_processor(processor)
            .build();
        let tracer = provider.tracer("sluice-sample");
        Self(Some((provider, tracer)))
    }

    /// Begins the span of a request that `client` sent; ends with [`Traced::end`].
    pub(crate) fn serve<B>(
        &self,
        name: &'static str,
        request: &Request<B>,
        client: SocketAddr,
    ) -> Traced {
        let mut attributes = vec![
            KeyValue::new("http.request.method", request.method().to_string()),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("url.path", request.uri().path().to_owned()),
            KeyValue::new("client.address", client.ip().to_string()),
            KeyValue::new("network.peer.address", client.ip().to_string()),
            KeyValue::new("network.peer.port", i64::from(client.port())),
        ];
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or(request.uri().authority().map(|authority| authority.as_str()));
        attributes.extend(host.map(|host| KeyValue::new("server.address", host.to_owned())));
        self.begin(name, SpanKind::Server, attributes, &extract(request.headers()))
    }

    /// Begins the span of a request to `uri`, made while `parent` lasts.
    pub(crate) fn call(
        &self,
        name: &'static str,
        method: &hyper::Method,
        uri: &hyper::Uri,
        parent: &Context,
    ) -> Traced {
        let attributes = vec![
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("url.full", uri.to_string()),
            KeyValue::new("server.address", uri.host().unwrap_or_default().to_owned()),
            KeyValue::new("server.port", i64::from(uri.port_u16().unwrap_or(80))),
        ];
        self.begin(name, SpanKind::Client, attributes, parent)
    }

    fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        attributes: Vec<KeyValue>,
        parent: &Context,
    ) -> Traced {
        let context = match &self.0 {
            Some((_, tracer)) => {
                let span = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
                parent.with_span(tracer.build_with_context(span, parent))
            }
            None => parent.clone(),
        };
        Traced { context, recorded: self.0.is_some() }
    }

    /// Exports what is left. Blocks.
    pub(crate) fn flush(&self, timeout: Duration) {
        let Some((provider, _)) = &self.0 else { return };
        if let Err(error) = provider.shutdown_with_timeout(timeout) {
            eprintln!("the last spans were not exported: {error}");
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Traced {
    context: Context,
    /// Whether the context's span is the service's own; the caller's must not be touched.
    recorded: bool,
}

impl Traced {
    /// What requests made on behalf of this one carry on.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Adds an attribute.
    pub(crate) fn note(&self, key: &'static str, value: impl Into<Cow<'static, str>>) {
        if self.recorded {
            self.context.span().set_attribute(KeyValue::new(key, value.into()));
        }
    }

    /// Ends the span with the response's status, or with the reason that there is none.
    pub(crate) fn end(self, result: Result<StatusCode, &anyhow::Error>, kind: SpanKind) {
        if !self.recorded {
            return;
        }
        let span = self.context.span();
        match result {
            Ok(status) => {
                span.set_attribute(KeyValue::new(
                    "http.response.status_code",
                    i64::from(status.as_u16()),
                ));
                // A 4xx is the caller's failure: an error of the call, not of the service.
                let failed = status.is_server_error()
                    || (kind == SpanKind::Client && status.is_client_error());
                if failed {
                    span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
                    span.set_status(Status::error(""));
                }
            }
            Err(error) => {
                span.set_attribute(KeyValue::new("error.type", "unreachable"));
                span.set_status(Status::error(format!("{error:#}")));
            }
        }
        span.end();
    }
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, else `service`.
fn resource(service: &'static str) -> Resource {
    let named = env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
    let resource = Resource::builder();
    if named { resource.build() } else { resource.with_service_name(service).build() }
}

fn propagator() -> TextMapCompositePropagator {
    TextMapCompositePropagator::new(vec![
        Box::new(TraceContextPropagator::new()),
        Box::new(BaggagePropagator::new()),
    ])
}

fn extract(headers: &HeaderMap) -> Context {
    propagator().extract_with_context(&Context::new(), &Incoming(headers))
}

/// Writes the trace headers of `context`.
pub(crate) fn inject(context: &Context, headers: &mut HeaderMap) {
    propagator().inject_context(context, &mut Outgoing(headers));
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(header::HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = header::HeaderName::try_from(key);
        if let (Ok(name), Ok(value)) = (name, header::HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
