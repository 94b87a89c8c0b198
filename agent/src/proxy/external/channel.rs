//! How a pod's authorizers are reached: as the pod itself would reach them.
//!
//! A client of HTTP here talks, within this process, to the very code that serves connections which the pod
//! opens: that picks endpoints, goes through tunnels under the pod's identity or in plaintext, hands over
//! on the node under the policies of the authorizer, keeps connections and counts them among the pod's,
//! and has spans and metrics of each check.

use std::{
    fmt,
    future::{Ready, ready},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use ::http::Uri;
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tonic::{body::Body, codegen::Service};

use super::{
    super::{LocalPod, Proxy, cut::Cut, outbound::Outbound, requests::asked_here},
    Unasked,
};
use crate::{
    mesh::Snapshot,
    policy::{Provider, Speaks},
};

/// The most that an authorizer's answer may have beside its head.
pub(super) const MOST_BYTES: usize = 256 << 10;
/// What may be on its way within this process.
const WINDOW: usize = 64 << 10;
/// Authorizers of one pod whose connections are kept.
const MOST_KEPT: usize = 16;
/// Connections to one of them that are kept without use, and for how long.
const MOST_IDLE: usize = 16;
const LONGEST_IDLE: Duration = Duration::from_secs(30);
/// How often it is looked whether nobody is left to ask for, once the agent is about to end.
const DRAINING: Duration = Duration::from_millis(50);

/// Asks one authorizer.
pub(super) type Client = legacy::Client<Connector, Body>;

/// The authorizers that a pod has asked.
#[derive(Default)]
pub struct Channels(Mutex<Vec<(Key, Client)>>);

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    dialled: SocketAddr,
    http2: bool,
}

impl Channels {
    /// A client of `provider`, as `pod` reaches it by now.
    pub(super) fn client(
        &self,
        proxy: &Arc<Proxy>,
        pod: &Arc<LocalPod>,
        snapshot: &Snapshot,
        provider: &Provider,
    ) -> Result<Client, Unasked> {
        let dialled = dialled(pod, snapshot, provider)?;
        let key = Key { dialled, http2: provider.speaks == Speaks::Grpc };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = kept.iter().find(|(known, _)| *known == key) {
            return Ok(client.clone());
        }
        let connector =
            Connector { proxy: Arc::downgrade(proxy), pod: Arc::downgrade(pod), dialled };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(LONGEST_IDLE)
            .pool_max_idle_per_host(MOST_IDLE)
            .http2_only(key.http2)
            .set_host(false)
            .build(connector);
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push((key, client.clone()));
        Ok(client)
    }
}

/// The address by which `pod` would dial the Service of `provider`.
fn dialled(
    pod: &LocalPod,
    snapshot: &Snapshot,
    provider: &Provider,
) -> Result<SocketAddr, Unasked> {
    let (namespace, name) = &provider.service;
    let service = snapshot
        .service_named(namespace, name)
        .ok_or_else(|| Unasked(format!("there is no Service {namespace}/{name}")))?;
    let port = service.port(provider.port).ok_or_else(|| {
        Unasked(format!("Service {namespace}/{name} has no port {}", provider.port))
    })?;
    let own = pod.workload();
    let is_ours = |ip: &&std::net::IpAddr| own.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    if let Some(vip) = service.vips.iter().find(is_ours) {
        return Ok(SocketAddr::new(*vip, port.port));
    }
    let mut endpoints = own.ips.iter().filter_map(|own| service.pick(port, *own));
    let endpoint = endpoints.next();
    let none = || Unasked(format!("{namespace}/{name}:{} has no ready endpoint", port.port));
    endpoint.map(|endpoint| endpoint.address).ok_or_else(none)
}

/// Makes connections within this process. It lives in the pod that it connects, and holds it not.
#[derive(Clone)]
pub(super) struct Connector {
    proxy: Weak<Proxy>,
    pod: Weak<LocalPod>,
    dialled: SocketAddr,
}

impl Connector {
    fn connect(&self) -> io::Result<TokioIo<Near>> {
        let (Some(proxy), Some(pod)) = (self.proxy.upgrade(), self.pod.upgrade()) else {
            return Err(io::Error::other("the pod has left"));
        };
        let permit = pod.limits.departing().map_err(|limit| io::Error::other(limit.to_string()))?;
        let own = pod.workload();
        let mut ips = own.ips.iter().copied();
        let ip = ips.find(|ip| ip.is_ipv4() == self.dialled.is_ipv4());
        let ip = ip.ok_or_else(|| io::Error::other("the pod has no address of that family"))?;
        let (near, far) = tokio::io::duplex(WINDOW);
        let cut = Cut::of(&proxy, &pod);
        let (client, dialled) = (SocketAddr::new(ip, 0), self.dialled);
        let outbound =
            Outbound { proxy: proxy.clone(), pod: pod.clone(), client, dialled, mark: 0, cut };
        let served = asked_here(outbound, far);
        let thread = pod.home.thread().clone();
        thread.spawn(async move {
            let _permit = permit;
            // It does not hold up the end of the agent, and answers for as long as somebody asks.
            let unused = async {
                proxy.drain.started().child_token().cancelled().await;
                while proxy.drain.open() > 0 {
                    tokio::time::sleep(DRAINING).await;
                }
            };
            tokio::select! {
                () = pod.while_captured(served) => {}
                () = unused => {}
                () = proxy.drain.cut() => {}
            }
        });
        Ok(TokioIo::new(Near(near)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Near>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Near>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.connect())
    }
}

/// The client's end.
pub(super) struct Near(DuplexStream);

impl Connection for Near {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Near {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Near {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
