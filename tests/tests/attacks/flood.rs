//! Many connections at once.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream};
use sluice_tests::Pod;
use socket2::{Domain, Socket};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};

/// Connections that are being made at once.
const AT_ONCE: usize = 128;
/// How long a connection may take: those that were refused are not waited for.
const LIMIT: Duration = Duration::from_secs(5);

/// Opens `count` connections from `pod`, and says `word` on each. Those that failed are left out.
pub(crate) async fn flood(
    pod: &Pod,
    to: SocketAddr,
    count: usize,
    word: &[u8],
) -> anyhow::Result<Vec<TcpStream>> {
    let sockets = pod.tcp_sockets(count, Domain::for_address(to))?;
    let connected = stream::iter(sockets)
        .map(|socket| async {
            let mut stream = timeout(LIMIT, connect(socket, to)).await.ok()?.ok()?;
            stream.write_all(word).await.ok()?;
            Some(stream)
        })
        .buffer_unordered(AT_ONCE);
    Ok(connected.filter_map(std::future::ready).collect().await)
}

async fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.set_nonblocking(true)?;
    // What waits at the client's own end is not what is looked at.
    socket.set_send_buffer_size(64 << 10)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// How many of `streams` were neither ended nor reset from the other end.
pub(crate) fn open(streams: &[TcpStream]) -> usize {
    let is_open = |stream: &&TcpStream| {
        let read = stream.try_read(&mut [0; 1]);
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    };
    streams.iter().filter(is_open).count()
}

/// Accepts what comes and keeps it, without a look at it.
pub(crate) fn hoard(listener: TcpListener) -> JoinSet<()> {
    let mut hoard = JoinSet::new();
    hoard.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    hoard
}

/// Runs `serve` with each connection, until dropped.
pub(crate) fn each<Serving>(listener: TcpListener, serve: fn(TcpStream) -> Serving) -> JoinSet<()>
where
    Serving: Future<Output = ()> + Send + 'static,
{
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream));
        }
    });
    serving
}
