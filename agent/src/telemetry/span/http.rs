//! One HTTP or gRPC request.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use http::StatusCode;

use super::{
    Place, TcpSpan, connection_attributes,
    described::Described,
    is_error,
    url::{self, host_and_port},
};
use crate::{
    http::{AnyRequest, AnyResponse, Fields},
    telemetry::{
        Telemetry,
        context::Incoming,
        flow::{Failure, Flow, Reporter},
        grpc,
        judgement::Judgement,
        metrics::Outcome,
        semconv as key,
        wire::Attributes,
    },
};

/// Follows one request until [`finish`](Self::finish).
#[must_use = "a request that is not finished is in no metric"]
pub struct HttpSpan {
    telemetry: Telemetry,
    flow: Arc<Flow>,
    began: Instant,
    grpc: bool,
    status: Option<StatusCode>,
    grpc_status: Option<grpc::Code>,
    /// `None` where nothing is recorded at all.
    place: Option<Place>,
    /// `None` where this request is not.
    request: Option<Box<Described>>,
    judgement: Option<Box<Judgement>>,
}

impl HttpSpan {
    pub(in crate::telemetry) fn open(
        telemetry: &Telemetry,
        flow: &Arc<Flow>,
        request: &mut impl AnyRequest,
    ) -> Self {
        let place = telemetry.0.queue.is_some().then(|| {
            let incoming = Incoming::extract(request);
            let context = telemetry.0.sampler.span(&incoming);
            incoming.replace(&context, request);
            let parent = incoming.parent.map(|parent| parent.context.span_id);
            Place { context, parent, continues: None, began: SystemTime::now() }
        });
        let sampled = place.as_ref().is_some_and(|place| place.context.sampled());
        let described = sampled.then(|| Box::new(Described::of(request, flow.reporter)));
        Self {
            telemetry: telemetry.clone(),
            flow: flow.clone(),
            began: Instant::now(),
            grpc: grpc::is_grpc(request),
            status: None,
            grpc_status: None,
            place,
            request: described,
            judgement: None,
        }
    }

    pub(in crate::telemetry) fn upgraded(
        &self,
        telemetry: &Telemetry,
        flow: &Arc<Flow>,
    ) -> TcpSpan {
        TcpSpan::after(telemetry, flow, self.place.as_ref().map(|place| &place.context))
    }

    /// The response began; of several, the last is the final one.
    pub fn response(&mut self, response: &impl AnyResponse) {
        self.answered(response.status());
        // A response that consists of trailers only carries them as headers.
        self.trailers(response);
    }

    /// A response of the agent's own.
    pub fn answered(&mut self, status: u16) {
        self.status = StatusCode::from_u16(status).ok();
    }

    /// Policy has something to say about it.
    pub fn judged(&mut self, judgement: Option<Box<Judgement>>) {
        self.judgement = judgement;
    }

    /// The trailers of the response passed.
    pub fn trailers(&mut self, trailers: &impl Fields) {
        if self.grpc
            && let Some(code) = grpc::Code::read(trailers)
        {
            self.grpc_status = Some(code);
        }
    }

    /// The response is through, or broken off because of `failure`. Bytes are those of the
    /// bodies.
    pub fn finish(self, request_bytes: u64, response_bytes: u64, failure: Option<Failure>) {
        let lasted = self.began.elapsed();
        let Self { telemetry, flow, grpc, status, grpc_status, place, request, judgement, .. } =
            self;
        let outcome = Outcome::http(status, grpc, grpc_status, failure);
        let traced = request.as_ref().and(place.as_ref()).map(|place| place.context.trace_id);
        telemetry.0.metrics.request(&flow, outcome, lasted, request_bytes, response_bytes, traced);

        let (Some(place), Some(request), Some(queue)) = (place, request, &telemetry.0.queue) else {
            return;
        };
        let (error_type, error) = match failure {
            Some(failure) => {
                (Some(ErrorType::Name(failure.as_str())), is_error(failure, flow.reporter))
            }
            None => {
                let error_type = error_type(flow.reporter, status, grpc_status);
                let error = error_type.is_some();
                (error_type, error)
            }
        };
        let rpc = grpc.then(|| grpc::method(request.path())).flatten();
        let name = rpc.unwrap_or_else(|| known_method(request.method()).unwrap_or("HTTP"));
        queue.record(&flow.local, |out| {
            // Room for the longest method a human would write; clients choose this text.
            let name = format_args!("{name:.256}");
            place.encode(out, flow.reporter, name, lasted, error.then_some(""), |attributes| {
                describe(&request, attributes, &flow);
                connection_attributes(attributes, &flow);
                if let Some(status) = status {
                    attributes.int(key::HTTP_RESPONSE_STATUS_CODE, status.as_u16().into());
                }
                if grpc {
                    attributes.text(key::RPC_SYSTEM_NAME, "grpc");
                    if let Some(method) = rpc {
                        attributes.text(key::RPC_METHOD, method);
                    }
                    if let Some(code) = grpc_status {
                        attributes.text(key::RPC_RESPONSE_STATUS_CODE, code.name());
                    }
                }
                attributes.int(key::HTTP_REQUEST_BODY_SIZE, request_bytes);
                attributes.int(key::HTTP_RESPONSE_BODY_SIZE, response_bytes);
                match error_type {
                    Some(ErrorType::Name(name)) => attributes.text(key::ERROR_TYPE, name),
                    Some(ErrorType::Status(status)) => {
                        attributes.text(key::ERROR_TYPE, status.as_str());
                    }
                    None => {}
                }
                if let Some(judgement) = &judgement {
                    judgement.describe(attributes);
                }
            });
        });
    }
}

fn describe(request: &Described, attributes: &mut Attributes<'_>, flow: &Flow) {
    match known_method(request.method()) {
        Some(method) => attributes.text(key::HTTP_REQUEST_METHOD, method),
        None => {
            attributes.text(key::HTTP_REQUEST_METHOD, "_OTHER");
            attributes.text(key::HTTP_REQUEST_METHOD_ORIGINAL, request.method());
        }
    }
    attributes.text(key::NETWORK_PROTOCOL_VERSION, request.version.as_str());
    let (host, port) = request.authority().map(host_and_port).unwrap_or_default();
    if host.is_empty() {
        attributes.display(key::SERVER_ADDRESS, flow.server.ip().to_canonical());
    } else {
        attributes.text(key::SERVER_ADDRESS, host);
    }
    attributes.int(key::SERVER_PORT, port.unwrap_or(flow.server.port()).into());
    let (scheme, path, query) = (request.scheme(), request.path(), request.query());
    match flow.reporter {
        Reporter::Source => {
            let dialled = flow.server.to_string();
            let authority = request.authority().unwrap_or(&dialled);
            attributes.display(key::URL_FULL, url::Full { scheme, authority, path, query });
        }
        Reporter::Destination => {
            attributes.text(key::URL_SCHEME, scheme);
            attributes.text(key::URL_PATH, path);
            if let Some(query) = query {
                attributes.display(key::URL_QUERY, url::Query(query));
            }
            if let Some(agent) = request.user_agent() {
                attributes.text(key::USER_AGENT_ORIGINAL, agent);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum ErrorType {
    Name(&'static str),
    Status(StatusCode),
}

/// Which answers are errors depends on the side: a client's mistake is not the server's.
fn error_type(
    reporter: Reporter,
    status: Option<StatusCode>,
    grpc_status: Option<grpc::Code>,
) -> Option<ErrorType> {
    if let Some(code) = grpc_status {
        let error = match reporter {
            Reporter::Source => !code.is_ok(),
            Reporter::Destination => code.is_servers_fault(),
        };
        return error.then(|| ErrorType::Name(code.name()));
    }
    let least = match reporter {
        Reporter::Source => 400,
        Reporter::Destination => 500,
    };
    status.filter(|status| status.as_u16() >= least).map(ErrorType::Status)
}

/// The methods the conventions know (RFC 9110, RFC 5789); others could be anything.
fn known_method(method: &str) -> Option<&'static str> {
    ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY"]
        .into_iter()
        .find(|known| *known == method)
}
