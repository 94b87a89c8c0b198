//! An agent's life: ready, at work, draining, gone.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::sys::signal::Signal;
use sluice_tests::{
    Agent, AgentOptions, Answer, Kind, Mesh, Node, PATIENCE, Pod, Protocol, Span, Talk, ask,
    eventually,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

async fn health(node: &Node, path: &str) -> anyhow::Result<Answer> {
    ask(node.netns(), SocketAddr::from(([127, 0, 0, 1], 15021)), path, PATIENCE).await
}

/// Waits until the agent says that it is not ready any more, and returns why.
async fn wait_until_unready(node: &Node) -> anyhow::Result<String> {
    eventually("the agent is not ready", || async {
        let answer = health(node, "/healthz/ready").await?;
        Ok((answer.status == 503).then_some(answer.body))
    })
    .await
}

/// A server of keep-alive HTTP/1.1 whose answer to `/slow` waits until it is released.
struct Server {
    slow_has_arrived: Arc<Notify>,
    release: Arc<Notify>,
    _serving: JoinSet<()>,
}

impl Server {
    fn start(listener: TcpListener) -> Self {
        let (slow_has_arrived, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (arrived, released) = (slow_has_arrived.clone(), release.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, arrived.clone(), released.clone()));
            }
        });
        Self { slow_has_arrived, release, _serving: serving }
    }
}

async fn serve(stream: TcpStream, arrived: Arc<Notify>, released: Arc<Notify>) {
    let mut stream = BufReader::new(stream);
    while let Ok(Some(head)) = head(&mut stream).await {
        if head.starts_with("GET /slow ") {
            arrived.notify_one();
            released.notified().await;
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// The next head of a request or response; `None` at the end.
async fn head(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

/// Connects and sends a request; the answer is still to be read.
async fn send(client: &Pod, to: SocketAddr, path: &str) -> anyhow::Result<BufReader<TcpStream>> {
    let mut stream = timeout(PATIENCE, client.connect(to)).await??;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n").as_bytes()).await?;
    Ok(BufReader::new(stream))
}

async fn answer(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Option<String>> {
    Ok(timeout(PATIENCE, head(stream)).await.context("no answer")??)
}

#[tokio::test]
async fn ready_means_that_every_pod_is_captured_and_has_a_certificate() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    assert!(health(&mesh.a, "/healthz/live").await.is_err(), "nobody is there yet");
    let agent = Agent::launch(&mesh.a, &mesh.config, mesh.agent_options(&[]))?;
    agent.ready(&mesh.a).await?;
    let status = Agent::status(&mesh.a)?;
    assert_eq!(status["pods"].as_array().map(Vec::len), Some(2), "{status}");
    assert!(status["pods"].as_array().into_iter().flatten().all(|pod| pod["error"].is_null()));
    assert_eq!(status["certificates"].as_array().map(Vec::len), Some(2), "{status}");
    assert_eq!(status["pending"], serde_json::json!([]));
    assert_eq!(health(&mesh.a, "/healthz/live").await?.status, 200);
    assert_eq!(health(&mesh.a, "/healthz/nothing").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn a_draining_agent_finishes_what_is_under_way_and_cuts_the_rest_in_time()
-> anyhow::Result<()> {
    let began = Instant::now();
    let mesh = Mesh::new()?;
    // Long enough for what is to happen within it, on a machine as slow as this one is.
    let drain = Duration::from_secs(3).max(5 * began.elapsed());
    let options = AgentOptions {
        otlp: Some((&mesh.receiver, Protocol::Grpc)),
        flags: vec!["--drain-timeout".to_owned(), format!("{}ms", drain.as_millis())],
        // No span leaves before the agent ends.
        environment: vec![("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "600000".to_owned())],
        ..AgentOptions::default()
    };
    let mut agent = Agent::start(&mesh.a, &mesh.config, options).await?;
    let [ip, _] = mesh.service_ips(&mesh.near);
    let http = SocketAddr::new(ip, Mesh::HTTP);
    let server = Server::start(mesh.near.listen(Mesh::HTTP_TARGET)?);
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;

    let mut opaque = Talk::start(&mesh.client, SocketAddr::new(ip, Mesh::TCP), &listener).await?;
    let mut idle = send(&mesh.client, http, "/quick").await?;
    assert!(answer(&mut idle).await?.is_some_and(|head| head.starts_with("HTTP/1.1 200")));
    let mut busy = send(&mesh.client, http, "/slow").await?;
    timeout(PATIENCE, server.slow_has_arrived.notified()).await.context("slow request")?;

    agent.process().signal(Signal::SIGTERM)?;
    let asked = Instant::now();
    assert!(wait_until_unready(&mesh.a).await?.contains("shutting down"));
    assert!(asked.elapsed() < drain, "not ready at once, not at the end");
    assert_eq!(health(&mesh.a, "/healthz/live").await?.status, 200);
    assert_eq!(answer(&mut idle).await?, None, "an idle connection is closed in order");
    assert!(asked.elapsed() < drain, "closed at once, not at the end");
    opaque.exchange().await?;
    server.release.notify_one();
    assert!(answer(&mut busy).await?.is_some_and(|head| head.starts_with("HTTP/1.1 200")));
    assert_eq!(answer(&mut busy).await?, None);
    opaque.exchange().await?;
    assert!(asked.elapsed() < drain, "the machine is too slow for this test");
    assert_eq!(mesh.receiver.spans().len(), 0, "spans left before the end");

    let status = agent.process_mut().exit(drain + PATIENCE).await?;
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() >= drain, "the deadline was not waited for");
    let cut = timeout(PATIENCE, opaque.client.read_u8()).await?;
    let cut = cut.expect_err("nobody sent a byte").kind();
    assert_eq!(cut, std::io::ErrorKind::ConnectionReset, "cut, not ended in order");
    let of_client = |spans: &[Span], is: &dyn Fn(&Span) -> bool| {
        let ours = spans.iter().filter(|span| span.is_agents() && span.kind == Kind::Client);
        ours.filter(|span| is(span)).count()
    };
    let path = |path: &'static str| move |span: &Span| span.attribute("url.full").ends_with(path);
    let opaque = |span: &Span| {
        span.attribute("mesh.connection.close_reason") == "drain_timeout"
            && span.attribute("mesh.connection.sent_bytes") == "45"
    };
    let spans = mesh.receiver.wait_for(PATIENCE, |spans| spans.len() >= 6).await?;
    assert_eq!(of_client(&spans, &path("/quick")), 1, "{spans:#?}");
    assert_eq!(of_client(&spans, &path("/slow")), 1, "{spans:#?}");
    assert_eq!(of_client(&spans, &opaque), 1, "{spans:#?}");
    Ok(())
}

#[tokio::test]
async fn an_agent_with_nothing_to_drain_ends_at_once() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let mut agent = mesh.start_agent(&mesh.a, &["--drain-timeout", "1h"]).await?;
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;
    let to = SocketAddr::new(mesh.service_ips(&mesh.near)[0], Mesh::TCP);
    drop(Talk::start(&mesh.client, to, &listener).await?);
    agent.terminate(PATIENCE).await
}

#[tokio::test]
async fn a_second_signal_ends_the_agent_without_draining() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let mut agent = mesh.start_agent(&mesh.a, &["--drain-timeout", "1h"]).await?;
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;
    let to = SocketAddr::new(mesh.service_ips(&mesh.near)[0], Mesh::TCP);
    let mut opaque = Talk::start(&mesh.client, to, &listener).await?;
    agent.process().signal(Signal::SIGTERM)?;
    wait_until_unready(&mesh.a).await?;
    opaque.exchange().await?;
    agent.process().signal(Signal::SIGINT)?;
    let status = agent.process_mut().exit(PATIENCE).await?;
    assert_eq!(status.code(), Some(1), "it says that it did not end in order");
    let said = agent.process().output().tail(1);
    assert!(said.contains("SIGINT again: stopped without draining"), "{said}");
    Ok(())
}
