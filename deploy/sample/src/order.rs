//! The order service: places orders, and says which replica did and for whom.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use opentelemetry::trace::SpanKind;
use serde_json::json;

use crate::{
    http::{self, Service},
    trace::Tracing,
};

#[derive(Debug)]
pub(crate) struct Order {
    name: String,
    placed: AtomicU64,
    tracing: Tracing,
}

impl Order {
    pub(crate) fn new(name: String, tracing: Tracing) -> Self {
        Self { name, placed: AtomicU64::new(0), tracing }
    }
}

impl Service for Order {
    async fn answer(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> Response<Full<Bytes>> {
        if (request.method(), request.uri().path()) != (&Method::POST, "/api/order") {
            return http::unknown(&request);
        }
        let handling = self.tracing.serve("handle-order", &request, client);
        let order = format!("{}-{}", self.name, 1 + self.placed.fetch_add(1, Ordering::Relaxed));
        handling.note("order.id", order.clone());
        handling.end(Ok(StatusCode::OK), SpanKind::Server);
        http::answer(
            StatusCode::OK,
            // The address the mesh must keep: that of the pod that asked.
            &json!({ "order_id": order, "replica": self.name, "client": client.to_string() }),
        )
    }
}
