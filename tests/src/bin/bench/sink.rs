//! Where spans go: an OTLP receiver that answers at once and looks at nothing.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context;
use sluice_tests::{Lab, Protocol};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::server;

/// `ExportTraceServiceResponse` without fields is no bytes at all.
const ACCEPTED: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

/// OTLP over HTTP, at the lab's router.
pub(crate) struct Sink {
    address: SocketAddr,
    taken: Arc<AtomicU64>,
    _server: JoinSet<()>,
}

impl Sink {
    pub(crate) fn start(lab: &Lab) -> anyhow::Result<Self> {
        let port = Protocol::Http.port();
        let listen = || std::net::TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), port));
        let listener = lab.fabric().run(listen)?.context("could not listen for spans")?;
        listener.set_nonblocking(true)?;
        let [ip, _] = lab.fabric_ips();
        let taken = Arc::<AtomicU64>::default();
        let mut server = JoinSet::new();
        let count = taken.clone();
        let listener = TcpListener::from_std(listener)?;
        server.spawn(server::accept(listener, move |stream| take(stream, count.clone())));
        Ok(Self { address: SocketAddr::new(ip, port), taken, _server: server })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Exports so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }
}

async fn take(stream: TcpStream, taken: Arc<AtomicU64>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut line = String::new();
    while let Some(body) = head(&mut stream, &mut line).await? {
        match body {
            Body::Long(length) => discard(&mut stream, length).await?,
            Body::Chunked => {
                while let length @ 1.. = chunk_length(&mut stream, &mut line).await? {
                    discard(&mut stream, length + 2).await?;
                }
                discard(&mut stream, 2).await?;
            }
        }
        taken.fetch_add(1, Relaxed);
        stream.write_all(ACCEPTED).await?;
    }
    Ok(())
}

/// How the body of an export comes.
enum Body {
    Long(u64),
    /// As Envoy sends it.
    Chunked,
}

/// Reads a head and returns what follows; nothing where the exporter has hung up.
async fn head(stream: &mut BufReader<TcpStream>, line: &mut String) -> io::Result<Option<Body>> {
    let mut body = None;
    loop {
        line.clear();
        if stream.read_line(line).await? == 0 {
            return Ok(None);
        }
        let text = line.trim_end().to_ascii_lowercase();
        if text.is_empty() {
            return body.map(Some).ok_or_else(|| io::Error::other("an export without a body"));
        }
        match text.split_once(':') {
            Some(("content-length", value)) => {
                body = value.trim().parse().ok().map(Body::Long);
            }
            Some(("transfer-encoding", _)) => body = Some(Body::Chunked),
            _ => {}
        }
    }
}

async fn chunk_length(stream: &mut BufReader<TcpStream>, line: &mut String) -> io::Result<u64> {
    line.clear();
    stream.read_line(line).await?;
    u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)
}

async fn discard(stream: &mut BufReader<TcpStream>, mut length: u64) -> io::Result<()> {
    while length > 0 {
        let there = stream.fill_buf().await?.len();
        if there == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let next = there.min(usize::try_from(length).unwrap_or(usize::MAX));
        stream.consume(next);
        length -= next as u64;
    }
    Ok(())
}
