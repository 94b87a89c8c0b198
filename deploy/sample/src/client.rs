//! A customer: places orders and shows what comes back.

use std::time::{Duration, Instant};

use clap::Args;
use hyper::{Method, Uri};
use opentelemetry::{Context, trace::SpanKind};
use serde_json::json;

use crate::{http::Client, trace::Tracing};

#[derive(Args, Debug)]
pub(crate) struct Orders {
    /// Where orders are taken
    #[arg(long, env = "ORDER_ENTRY_URL", default_value = "http://frontend:8080/order")]
    url: Uri,
    /// How many orders to place; 0 never ends
    #[arg(long, env = "ORDER_COUNT", default_value_t = 1)]
    count: u64,
    /// How long to wait between two orders
    #[arg(long, env = "ORDER_INTERVAL", value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

impl Orders {
    /// Places the orders one after another over one connection.
    pub(crate) async fn place(self, tracing: Tracing) -> anyhow::Result<()> {
        let client = Client::new();
        let mut failed = 0;
        let mut placed = 0;
        loop {
            failed += u64::from(!self.place_one(&client, &tracing).await);
            placed += 1;
            if placed == self.count {
                break;
            }
            tokio::time::sleep(self.interval).await;
        }
        anyhow::ensure!(failed == 0, "{failed} of {placed} orders failed");
        Ok(())
    }

    /// Whether the order was placed.
    async fn place_one(&self, client: &Client, tracing: &Tracing) -> bool {
        let call = tracing.call("place-order", &Method::POST, &self.url, &Context::new());
        let started = Instant::now();
        let body = json!({});
        let result = client.send(Method::POST, self.url.clone(), Some(&body), call.context()).await;
        call.end(result.as_ref().map(|(status, _)| *status), SpanKind::Client);
        let took = started.elapsed().as_secs_f64() * 1000.0;
        match result {
            Ok((status, body)) => {
                println!("{status} in {took:.1} ms: {}", String::from_utf8_lossy(&body).trim());
                status.is_success()
            }
            Err(error) => {
                println!("failed after {took:.1} ms: {error:#}");
                false
            }
        }
    }
}
