//! What the admin servers say about the running agent.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use http::{Response, StatusCode, header};

use super::enrolment::Enrolment;
use crate::{
    admin::{self, AdminError, Readiness, Status, text},
    config::files::FileSource,
    proxy::Proxy,
};

/// The parts of the agent that can be looked at.
pub(super) struct Observed {
    pub(super) node: String,
    pub(super) readiness: Readiness,
    pub(super) source: FileSource,
    pub(super) enrolment: Arc<Enrolment>,
    pub(super) proxy: Arc<Proxy>,
}

impl Observed {
    /// Starts the servers of health, metrics and status.
    pub(super) async fn serve(
        self,
        ready: SocketAddr,
        stats: SocketAddr,
        admin: SocketAddr,
    ) -> Result<(), AdminError> {
        let observed = Arc::new(self);
        let state = observed.clone();
        admin::serve("health", "--ready-addr", ready, move |path| state.health(path)).await?;
        let state = observed.clone();
        admin::serve("metrics", "--stats-addr", stats, move |path| state.metrics(path)).await?;
        admin::serve("status", "--admin-addr", admin, move |path| observed.status(path)).await
    }

    fn health(&self, path: &str) -> Option<Response<String>> {
        match path {
            "/healthz/live" => Some(text(StatusCode::OK, "live\n")),
            "/healthz/ready" => Some(match self.readiness.pending().as_slice() {
                [] => text(StatusCode::OK, "ready\n"),
                pending => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("waiting for {}\n", pending.join(", ")),
                ),
            }),
            _ => None,
        }
    }

    fn metrics(&self, path: &str) -> Option<Response<String>> {
        (path == "/stats/prometheus").then(|| {
            let mut response =
                text(StatusCode::OK, self.proxy.telemetry.metrics().render(&self.gauges()));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static(
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                ),
            );
            response
        })
    }

    fn status(&self, path: &str) -> Option<Response<String>> {
        if path != "/status" {
            return None;
        }
        let json = serde_json::to_string(&self.snapshot()).ok()?;
        let mut response = text(StatusCode::OK, json);
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        Some(response)
    }
}
