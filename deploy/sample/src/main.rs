//! The sample application: orders pass from a frontend to a user and an order service.
//!
//! Plain HTTP programs that know nothing of a mesh. They do what a well-behaved
//! application does for its traces: pass on the trace headers and, when
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set, record spans of their own.

mod client;
mod echo;
mod frontend;
mod http;
mod load;
mod order;
#[cfg(test)]
mod tests;
mod trace;
mod user;

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use hyper::Uri;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::trace::Tracing;

/// The sample application of Sluice: small HTTP programs that call one another.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take orders at /order: asks the user service who orders, then the order service to do it
    Frontend {
        #[command(flatten)]
        listen: Listen,
        /// Where the user service is
        #[arg(long, env = "USER_URL", default_value = "http://user-service:8080")]
        user_url: Uri,
        /// Where the order service is
        #[arg(long, env = "ORDER_URL", default_value = "http://order-service:8080")]
        order_url: Uri,
    },
    /// Say who the user is, at /api/user
    User {
        #[command(flatten)]
        listen: Listen,
    },
    /// Place orders, at /api/order
    Order {
        #[command(flatten)]
        listen: Listen,
        /// Name of this replica in its answers
        #[arg(long, env = "REPLICA_NAME", default_value_t = hostname())]
        name: String,
    },
    /// Send every byte back, over plain TCP
    Echo {
        /// Address to listen on
        #[arg(long, env = "LISTEN", default_value = "[::]:9000")]
        listen: SocketAddr,
    },
    /// Place orders at a frontend and show the answers; fails when one of them failed
    Client(client::Orders),
    Load(load::Load),
}

#[derive(Args, Debug)]
struct Listen {
    /// Address to listen on
    #[arg(long, env = "LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
}

impl Listen {
    async fn bind(&self) -> anyhow::Result<TcpListener> {
        bind(self.listen).await
    }
}

/// How long the last spans may take to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let command = Cli::parse().command;
    let tracing = Tracing::from_env(match command {
        Command::Frontend { .. } => "frontend",
        Command::User { .. } => "user-service",
        Command::Order { .. } => "order-service",
        Command::Echo { .. } => "echo",
        Command::Client(_) => "client",
        Command::Load(_) => "load",
    })?;
    let result = run(command, tracing.clone()).await;
    tokio::task::spawn_blocking(move || tracing.flush(FLUSH_TIMEOUT)).await?;
    result
}

async fn run(command: Command, tracing: Tracing) -> anyhow::Result<()> {
    let stop = stop()?;
    match command {
        Command::Frontend { listen, user_url, order_url } => {
            let frontend = frontend::Frontend::new(user_url, order_url, tracing);
            http::serve(listen.bind().await?, frontend, stop).await;
        }
        Command::User { listen } => {
            http::serve(listen.bind().await?, user::User::new(tracing), stop).await;
        }
        Command::Order { listen, name } => {
            http::serve(listen.bind().await?, order::Order::new(name, tracing), stop).await;
        }
        Command::Echo { listen } => echo::serve(bind(listen).await?, stop).await,
        Command::Client(orders) => tokio::select! {
            result = orders.place(tracing) => result?,
            () = stop => {}
        },
        Command::Load(load) => tokio::select! {
            result = load.run() => result?,
            () = stop => {}
        },
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} (hint: --listen names another address)")
    })?;
    eprintln!("listening on {}", listener.local_addr()?);
    Ok(listener)
}

/// Ends when the process is asked to.
fn stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "order".to_owned())
}
