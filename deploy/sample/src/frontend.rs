//! The frontend: asks who orders, then has the order placed.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, Uri, body::Incoming};
use opentelemetry::{Context, trace::SpanKind};
use serde_json::{Value, json};

use crate::{
    http::{self, Client, Service},
    trace::Tracing,
};

#[derive(Debug)]
pub(crate) struct Frontend {
    user: Uri,
    order: Uri,
    client: Client,
    tracing: Tracing,
}

impl Frontend {
    pub(crate) fn new(user: Uri, order: Uri, tracing: Tracing) -> Self {
        Self { user, order, client: Client::new(), tracing }
    }

    async fn user(&self, context: &Context) -> anyhow::Result<String> {
        let uri = http::join(&self.user, "/api/user")?;
        let answer = self.call("call-user-service", Method::GET, uri, None, context).await?;
        field(&answer, "user_id").context("the user service names no user")
    }

    async fn order(&self, user: &str, context: &Context) -> anyhow::Result<String> {
        let uri = http::join(&self.order, "/api/order")?;
        let body = json!({ "user_id": user });
        let answer =
            self.call("call-order-service", Method::POST, uri, Some(&body), context).await?;
        field(&answer, "order_id").context("the order service names no order")
    }

    async fn call(
        &self,
        name: &'static str,
        method: Method,
        uri: Uri,
        body: Option<&Value>,
        context: &Context,
    ) -> anyhow::Result<Value> {
        let call = self.tracing.call(name, &method, &uri, context);
        let result = self.client.send(method, uri.clone(), body, call.context()).await;
        call.end(result.as_ref().map(|(status, _)| *status), SpanKind::Client);
        let (status, body) = result?;
        anyhow::ensure!(status.is_success(), "{uri} answered {status}");
        serde_json::from_slice(&body).with_context(|| format!("{uri} answered no JSON"))
    }
}

impl Service for Frontend {
    async fn answer(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> Response<Full<Bytes>> {
        if request.uri().path() != "/order"
            || !matches!(*request.method(), Method::GET | Method::POST)
        {
            return http::unknown(&request);
        }
        let handling = self.tracing.serve("handle-order", &request, client);
        let result = async {
            let user = self.user(handling.context()).await?;
            handling.note("user.id", user.clone());
            let order = self.order(&user, handling.context()).await?;
            anyhow::Ok(json!({ "order_id": order, "user_id": user, "status": "success" }))
        };
        let (status, body) = match result.await {
            Ok(body) => (StatusCode::OK, body),
            Err(error) => {
                eprintln!("an order failed: {error:#}");
                let body = json!({ "status": "failed", "error": format!("{error:#}") });
                (StatusCode::BAD_GATEWAY, body)
            }
        };
        handling.end(Ok(status), SpanKind::Server);
        http::answer(status, &body)
    }
}

fn field(answer: &Value, name: &str) -> Option<String> {
    answer.get(name)?.as_str().map(str::to_owned)
}
