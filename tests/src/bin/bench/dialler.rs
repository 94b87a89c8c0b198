//! Opens connections from a pod, again and again.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use sluice_tests::Pod;
use socket2::{Domain, Socket};
use tokio::net::{TcpSocket, TcpStream};

/// From one pod to one address. The sockets, which another process makes, are made ahead, so that
/// only connecting is part of what is measured.
pub(crate) struct Dialler {
    pod: Arc<Pod>,
    to: SocketAddr,
    stock: Mutex<Vec<Socket>>,
    /// How many are made at once.
    ahead: usize,
}

impl Dialler {
    pub(crate) fn new(pod: &Arc<Pod>, to: SocketAddr, ahead: usize) -> Self {
        Self { pod: pod.clone(), to, stock: Mutex::default(), ahead }
    }

    pub(crate) async fn dial(&self) -> anyhow::Result<TcpStream> {
        let socket = self.socket()?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(self.to).await;
        stream.with_context(|| format!("could not connect to {}", self.to))
    }

    fn socket(&self) -> anyhow::Result<Socket> {
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        if stock.is_empty() {
            *stock = self.pod.tcp_sockets(self.ahead, Domain::IPV4)?;
        }
        stock.pop().context("no socket came")
    }
}
