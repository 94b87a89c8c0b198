//! The servers of a pod.

use std::{future::Future, io};

use sluice_tests::Pod;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{grpc, http1};

/// What a server speaks, and whether the mesh is told so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Spoken {
    Http,
    Grpc,
}

impl Spoken {
    /// The port in the pod. A port of its own for what is declared opaque: where Services disagree
    /// about one, an agent finds out by itself.
    pub(crate) fn port(self, opaque: bool) -> u16 {
        match (self, opaque) {
            (Self::Http, false) => 8080,
            (Self::Http, true) => 6080,
            (Self::Grpc, false) => 9090,
            (Self::Grpc, true) => 6090,
        }
    }
}

/// Starts a pod's servers.
pub(crate) fn start(servers: &mut JoinSet<()>, pod: &Pod) -> anyhow::Result<()> {
    for opaque in [false, true] {
        servers.spawn(accept(pod.listen(Spoken::Http.port(opaque))?, http1::serve));
        servers.spawn(accept(pod.listen(Spoken::Grpc.port(opaque))?, grpc::serve));
    }
    Ok(())
}

/// Serves each connection in a task of its own.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    connection: impl Fn(TcpStream) -> F + Send + 'static,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let serve = connection(stream);
        // The client hangs up when its round is over, and is told by its own end of what breaks.
        connections.spawn(async move { drop(serve.await) });
        while connections.try_join_next().is_some() {}
    }
}
