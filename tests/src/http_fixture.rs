//! A client and servers on two nodes with agents, and lines on which a test speaks both ends
//! byte by byte.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    PATIENCE,
    agent::{Agent, AgentOptions},
    lab::Lab,
    mesh::{MeshConfig, Port, Service},
    node::Node,
    otlp::{OtlpReceiver, Protocol},
    pod::Pod,
    span::{Kind, Span},
};

/// The ports every Service of a [`Shop`] has.
pub mod ports {
    use crate::mesh::Port;

    /// Declared as HTTP/1.1.
    pub const HTTP: Port<'_> = Port { name: "http", port: 80, target: 8080 };
    /// Declared as gRPC.
    pub const GRPC: Port<'_> = Port { name: "grpc", port: 90, target: 9090 };
    /// Its name says nothing, so what it speaks must be found out.
    pub const UNDECLARED: Port<'_> = Port { name: "web", port: 70, target: 7070 };
    /// Declared as opaque TCP.
    pub const TCP: Port<'_> = Port { name: "tcp", port: 60, target: 6060 };
    /// All of them.
    pub const ALL: [Port<'_>; 4] = [HTTP, GRPC, UNDECLARED, TCP];
}

/// Node `a` with the pods `client` and `near`, node `b` with `far`. Each server has a Service
/// of its name with all [`ports`]; `both` has both of them behind its HTTP port, and `empty`
/// has none.
#[derive(Debug)]
pub struct Shop {
    _agents: Vec<Agent>,
    /// Gets the agents' spans.
    pub receiver: OtlpReceiver,
    /// Who calls.
    pub client: Pod,
    /// A server on the client's node.
    pub near: Pod,
    /// A server on the other node.
    pub far: Pod,
    /// The client's node.
    pub a: Node,
    /// The other node.
    pub b: Node,
    /// What the agents know.
    pub mesh: MeshConfig,
    /// What all of it stands on.
    pub lab: Lab,
}

impl Shop {
    /// Opens with agents that export over gRPC.
    ///
    /// # Errors
    /// When an agent does not get ready.
    pub async fn open() -> anyhow::Result<Self> {
        Self::open_with(Protocol::Grpc, &[]).await
    }

    /// Opens with agents that export by `protocol` and have more `flags`.
    ///
    /// # Errors
    /// When an agent does not get ready.
    pub async fn open_with(protocol: Protocol, flags: &[&str]) -> anyhow::Result<Self> {
        Self::without_agents()?.with_agents_that(protocol, flags).await
    }

    /// Starts the agents where there are none yet.
    ///
    /// # Errors
    /// When one does not get ready.
    pub async fn with_agents(self) -> anyhow::Result<Self> {
        self.with_agents_that(Protocol::Grpc, &[]).await
    }

    async fn with_agents_that(
        mut self,
        protocol: Protocol,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let shop = &self;
        let options = || AgentOptions {
            otlp: Some((&shop.receiver, protocol)),
            flags: flags.iter().map(ToString::to_string).collect(),
            // Tests wait for spans one trace at a time.
            environment: vec![("OTEL_BSP_SCHEDULE_DELAY".into(), "20".into())],
            ..AgentOptions::default()
        };
        let a = Agent::start(&shop.a, &shop.mesh, options());
        let b = Agent::start(&shop.b, &shop.mesh, options());
        let (a, b) = tokio::try_join!(a, b)?;
        self._agents = vec![a, b];
        Ok(self)
    }

    /// The same pods, but nothing captures what they send.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn without_agents() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("a")?, lab.node("b")?);
        let shop = Self {
            _agents: Vec::new(),
            receiver: OtlpReceiver::start(&lab)?,
            client: a.pod("client")?,
            near: a.pod("near")?,
            far: b.pod("far")?,
            a,
            b,
            mesh: lab.mesh()?,
            lab,
        };
        for pod in [&shop.client, &shop.near, &shop.far] {
            shop.mesh.pod(pod)?;
        }
        let all = ports::ALL.to_vec();
        for (name, ports, endpoints) in [
            ("near", all.clone(), vec![&shop.near]),
            ("far", all.clone(), vec![&shop.far]),
            ("both", vec![ports::HTTP], vec![&shop.near, &shop.far]),
            ("empty", all, Vec::new()),
        ] {
            let ips = vec![service_ip(name)];
            shop.mesh.service(&Service { name, namespace: "default", ips, ports, endpoints })?;
        }
        Ok(shop)
    }

    /// The server on the client's node and the one on the other.
    pub fn servers(&self) -> [&Pod; 2] {
        [&self.near, &self.far]
    }

    /// The address of a port of the Service called `name`.
    pub fn service(&self, name: &str, port: Port<'_>) -> SocketAddr {
        SocketAddr::new(service_ip(name), port.port)
    }

    /// Connects from the client.
    ///
    /// # Errors
    /// As `connect()` does, and when that takes too long.
    pub async fn dial(&self, to: SocketAddr) -> anyhow::Result<Line> {
        let dial = bounded(&format!("connecting to {to}"), self.client.connect(to)).await?;
        Ok(Line::new(dial.with_context(|| format!("could not connect to {to}"))?))
    }

    /// Sends a whole request from the client to the HTTP port of `server`'s Service, where
    /// the application answers with `answer`. Returns what the application was asked and
    /// what the client was answered; the client closes after it.
    ///
    /// # Errors
    /// When one of them does not get what the other sent.
    pub async fn exchange(
        &self,
        server: &Pod,
        request: &str,
        answer: &str,
    ) -> anyhow::Result<(String, String)> {
        let listener = server.listen(ports::HTTP.target)?;
        let mut client = self.dial(self.service(server.name(), ports::HTTP)).await?;
        client.say(request).await?;
        let mut app = accept(&listener).await?;
        let asked = app.hear("\r\n\r\n").await?;
        app.say(answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let end = if body.is_empty() { "\r\n\r\n" } else { body };
        Ok((asked, client.hear(end).await?))
    }

    /// Waits for the agents' two spans of the trace `id`, the client's first. Then makes sure
    /// that there are no others in it: with another request, whose spans come later.
    ///
    /// # Errors
    /// When there are more or fewer.
    pub async fn pair(&self, id: &str) -> anyhow::Result<[Span; 2]> {
        let mut spans = self.trace(id, 2).await?;
        spans.sort_by_key(|span| span.kind != Kind::Client);
        <[Span; 2]>::try_from(spans).map_err(|_| anyhow::anyhow!("there are two"))
    }

    /// Waits for exactly `count` spans of the trace `id`, as [`pair`](Self::pair) does.
    ///
    /// # Errors
    /// When there are more or fewer.
    pub async fn trace(&self, id: &str, count: usize) -> anyhow::Result<Vec<Span>> {
        let of = |spans: &[Span]| {
            spans.iter().filter(|span| span.trace_id == id).cloned().collect::<Vec<_>>()
        };
        self.receiver.wait_for(PATIENCE, |spans| of(spans).len() >= count).await?;
        let spans = of(&self.flush().await?);
        ensure!(spans.len() == count, "{}", crate::trace_tree(&spans));
        Ok(spans)
    }

    /// Everything received, with whatever the agents recorded before this.
    ///
    /// # Errors
    /// When the request that shows it gets no spans.
    pub async fn flush(&self) -> anyhow::Result<Vec<Span>> {
        let nothing = "HTTP/1.1 204 No Content\r\n\r\n";
        let path = format!("/flush/{}", self.receiver.spans().len());
        for server in self.servers() {
            let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n");
            self.exchange(server, &request, nothing).await?;
        }
        let mark = |span: &&Span| {
            span.attribute("url.path") == path || span.attribute("url.full").ends_with(&path)
        };
        self.receiver.wait_for(PATIENCE, |spans| spans.iter().filter(mark).count() == 4).await
    }
}

fn service_ip(name: &str) -> IpAddr {
    let last = match name {
        "near" => 1,
        "far" => 2,
        "both" => 3,
        "empty" => 4,
        _ => panic!("the shop has no Service called {name}"),
    };
    IpAddr::from([10, 96, 0, last])
}

/// Waits for the next connection.
///
/// # Errors
/// When there is none in time.
pub async fn accept(listener: &TcpListener) -> anyhow::Result<Line> {
    let (stream, _) = bounded("a connection at the server", listener.accept()).await??;
    Ok(Line::new(stream))
}

/// One end of a connection, spoken by hand. Every wait is bounded.
#[derive(Debug)]
pub struct Line {
    stream: TcpStream,
    unread: BytesMut,
}

impl Line {
    /// Speaks on `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, unread: BytesMut::new() }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// When the other end does not take them.
    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        Ok(bounded("sending", self.stream.write_all(bytes.as_ref())).await??)
    }

    /// Waits for `end`, and returns everything up to it, `end` included.
    ///
    /// # Errors
    /// When the connection ends before, with what was heard until then.
    pub async fn hear(&mut self, end: &str) -> anyhow::Result<String> {
        let hear = async {
            loop {
                let at = self.unread.windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(at) = at {
                    let heard = self.unread.split_to(at + end.len());
                    return Ok(String::from_utf8_lossy(&heard).into_owned());
                }
                let read = self.stream.read_buf(&mut self.unread).await;
                if !matches!(read, Ok(1..)) {
                    bail!("{read:?} after {:?}", String::from_utf8_lossy(&self.unread));
                }
            }
        };
        let heard = timeout(PATIENCE, hear).await;
        let heard = heard.unwrap_or_else(|_| {
            bail!("only {:?} came in time", String::from_utf8_lossy(&self.unread))
        });
        heard.with_context(|| format!("waited for {end:?}"))
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When the connection ends before.
    pub async fn exactly(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        let (stream, unread) = (&mut self.stream, &mut self.unread);
        bounded("so many bytes", async {
            while unread.len() < count {
                let read = stream.read_buf(unread).await?;
                ensure!(read > 0, "ended after {} of {count} bytes", unread.len());
            }
            Ok(())
        })
        .await??;
        Ok(self.unread.split_to(count).to_vec())
    }

    /// Everything from here to the end of what the other end sends; and, where that was no end
    /// in order, what it was.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn rest(&mut self) -> anyhow::Result<(String, Option<io::ErrorKind>)> {
        let (stream, unread) = (&mut self.stream, &mut self.unread);
        let ended = bounded("the end of a connection", async {
            loop {
                match stream.read_buf(unread).await {
                    Ok(0) => return None,
                    Ok(_) => {}
                    Err(error) => return Some(error.kind()),
                }
            }
        })
        .await?;
        let heard = self.unread.split();
        Ok((String::from_utf8_lossy(&heard).into_owned(), ended))
    }

    /// Says that nothing more will be sent, and goes on listening.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// The connection itself.
    ///
    /// # Panics
    /// When something was heard that nobody has asked for.
    pub fn into_stream(self) -> TcpStream {
        assert!(!self.unread.has_remaining(), "unread: {:?}", self.unread);
        self.stream
    }
}

async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> anyhow::Result<T> {
    timeout(PATIENCE, work).await.with_context(|| format!("{what}: not within {PATIENCE:?}"))
}
