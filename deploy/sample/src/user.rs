//! The user service: says who the user is.

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

/// Users who take turns.
const USERS: u64 = 100;

#[derive(Debug)]
pub(crate) struct User {
    asked: AtomicU64,
    tracing: Tracing,
}

impl User {
    pub(crate) fn new(tracing: Tracing) -> Self {
        Self { asked: AtomicU64::new(0), tracing }
    }
}

impl Service for User {
    async fn answer(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> Response<Full<Bytes>> {
        if (request.method(), request.uri().path()) != (&Method::GET, "/api/user") {
            return http::unknown(&request);
        }
        let handling = self.tracing.serve("handle-user", &request, client);
        let user = format!("user-{}", 1 + self.asked.fetch_add(1, Ordering::Relaxed) % USERS);
        handling.note("user.id", user.clone());
        handling.end(Ok(StatusCode::OK), SpanKind::Server);
        http::answer(StatusCode::OK, &json!({ "user_id": user }))
    }
}
