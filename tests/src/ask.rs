//! One small HTTP question asked inside a namespace: health, metrics.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::timeout,
};

use crate::netns::Netns;

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

/// GETs `path` from `address` inside `netns`, outside every pod's cgroup.
///
/// # Errors
/// When nothing answers within `at_most`, or not in HTTP.
pub async fn ask(
    netns: &Netns,
    address: SocketAddr,
    path: &str,
    at_most: Duration,
) -> anyhow::Result<Answer> {
    let exchange = async {
        let socket =
            netns.run(|| Socket::new(Domain::for_address(address), Type::STREAM, None))??;
        socket.set_nonblocking(true)?;
        let mut stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
        stream.write_all(request(address, path).as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    let what = || format!("{path} at {address} in {}", netns.name());
    let text = timeout(at_most, exchange).await.with_context(what)?.with_context(what)?;
    Answer::parse(&text).with_context(|| format!("{} did not answer in HTTP", what()))
}

/// The same for a caller that waits with its whole thread.
///
/// # Errors
/// As [`ask`].
pub(crate) fn ask_and_wait(
    netns: &Netns,
    address: SocketAddr,
    path: &str,
    at_most: Duration,
) -> anyhow::Result<Answer> {
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&address, at_most)?;
        stream.set_read_timeout(Some(at_most))?;
        stream.write_all(request(address, path).as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    let what = || format!("{path} at {address} in {}", netns.name());
    let text = netns.run(exchange)?.with_context(what)?;
    Answer::parse(&text).with_context(|| format!("{} did not answer in HTTP", what()))
}

fn request(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")
}

impl Answer {
    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, body: body.to_owned() })
    }
}
