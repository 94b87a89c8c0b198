//! One HBONE connection from the client's side.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use h2::{Reason, client::SendRequest};
use http::{HeaderMap, Method, Request, Uri};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    HboneStream, Made, PoolOptions, TunnelError,
    ahead::ReadAhead,
    error::within,
    limits::{CONNECTION_WINDOW, FRAME, HEADER_BYTES, RESET_REMEMBERED, SEND_BUFFER, TLS_TIMEOUT},
    usage::{GONE, InUse, Usage, peer_is_gone},
    window::Window,
};
use crate::limits::in_turn;

/// What a stream asks of the peer's agent.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// The application's address, in the peer's network.
    pub authority: SocketAddr,
    /// Trace context and baggage.
    pub headers: HeaderMap,
}

/// A connection that takes new streams, until the last reference to it is gone; then it
/// closes as soon as its streams have ended.
#[derive(Debug)]
pub(super) struct Connection {
    /// What it was made with; a renewed certificate makes another.
    pub(super) made: Made,
    sender: SendRequest<Bytes>,
    usage: Usage,
    window: Window,
    /// Why the connection ended, once it has.
    ended: watch::Receiver<Option<TunnelError>>,
}

/// Room for one stream on a connection.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) connection: Arc<Connection>,
    in_use: InUse,
}

/// Why a stream was not opened.
#[derive(Debug)]
pub(super) enum Unopened {
    /// The peer did not process it because of the connection it came on.
    Unprocessed(TunnelError),
    /// The connection was lost before an answer. No byte of the application's was sent.
    Lost(TunnelError),
    /// Another connection would not help.
    Failed(TunnelError),
}

impl Connection {
    /// Makes TLS and HTTP/2 of a new TCP connection and spawns the task that drives it.
    ///
    /// `closing` is called when the connection should take no more streams. `connections` is how
    /// many the pod has with this one.
    pub(super) async fn establish(
        stream: TcpStream,
        address: SocketAddr,
        made: Made,
        options: &PoolOptions,
        connections: usize,
        closing: impl FnMut(&Arc<Connection>) -> bool + Send + 'static,
    ) -> Result<Arc<Self>, TunnelError> {
        // Frames are written whole; waiting for more of them only adds latency.
        stream.set_nodelay(true).map_err(|error| TunnelError::Dial { source: error.into() })?;
        let connector = TlsConnector::from(made.tls.clone());
        let name = ServerName::IpAddress(address.ip().into());
        let connect = in_turn(connector.connect(name, ReadAhead::new(stream)));
        let stream = within("the TLS handshake", TLS_TIMEOUT, connect)
            .await?
            .map_err(|error| TunnelError::tls(&error))?;
        let window = Window::new(connections);
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(window.now())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADER_BYTES)
            .max_concurrent_reset_streams(RESET_REMEMBERED)
            // A peer's agent that provokes some harms nobody but itself; counted for as long as the
            // connection lasts, those that cross would end it in the end, with all it carries.
            .max_local_error_reset_streams(None)
            .initial_max_send_streams(options.streams_per_connection)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| TunnelError::from(&error))?;
        let (end, ended) = watch::channel(None);
        let this = Arc::new(Self { made, sender, usage: Usage::none(), window, ended });
        let closer = Closer {
            connection: Arc::downgrade(&this),
            usage: this.usage.clone(),
            window: this.window.clone(),
            idle_timeout: options.idle_timeout,
            closing,
        };
        tokio::spawn(drive(connection, closer, end));
        Ok(this)
    }

    /// Room for one more stream, where there is.
    pub(super) fn reserve(self: &Arc<Self>, limit: usize) -> Option<Reserved> {
        if self.has_ended() {
            return None;
        }
        let limit = limit.min(self.sender.current_max_send_streams());
        let in_use = self.usage.take(limit)?;
        Some(Reserved { connection: self.clone(), in_use })
    }

    /// Whether nothing is lost when it is taken out of use: it carries no stream, or is over.
    pub(super) fn is_done(&self) -> bool {
        self.usage.is_zero() || self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    async fn unopened(&self, error: h2::Error) -> Unopened {
        if error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM) {
            return Unopened::Unprocessed(TunnelError::from(&error));
        }
        if error.is_reset() {
            return Unopened::Failed(TunnelError::from(&error));
        }
        if !error.is_io() {
            return Unopened::Lost(TunnelError::from(&error));
        }
        // A stream knows only that its connection broke; the connection knows why.
        let mut ended = self.ended.clone();
        let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(error @ TunnelError::Tls { .. }) => Unopened::Failed(error),
            why => Unopened::Lost(why.unwrap_or_else(|| TunnelError::from(&error))),
        }
    }
}

impl Reserved {
    /// Asks the peer to connect, and waits for its answer.
    pub(super) async fn open(
        self,
        connect: &ConnectRequest,
        limit: Duration,
    ) -> Result<HboneStream, Unopened> {
        let request =
            request(connect).map_err(|error| Unopened::Failed(TunnelError::broken(error)))?;
        let before = self.connection.window.unasked();
        let answer = async {
            let mut sender = self.connection.sender.clone().ready().await?;
            let (response, send) = sender.send_request(request, false)?;
            Ok((response.await?, send))
        };
        let answer =
            within("the answer to CONNECT", limit, answer).await.map_err(Unopened::Failed)?;
        let (response, send) = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(self.connection.unopened(error).await),
        };
        if !response.status().is_success() {
            let status = response.status();
            return Err(Unopened::Failed(TunnelError::Refused { status }));
        }
        let (mut received, in_use) = (response.into_body(), Arc::new(self.in_use));
        // It may have become larger for this stream, of which the peer was told before it answered.
        let reader = self.connection.window.reader(&mut received, before);
        let connection = self.connection.sender.clone();
        Ok(HboneStream::new(send, received, reader, Some(connection), in_use))
    }
}

fn request(connect: &ConnectRequest) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder().authority(connect.authority.to_string()).build()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    *request.headers_mut() = connect.headers.clone();
    Ok(request)
}

/// Takes a connection out of use after a time without streams.
struct Closer<C> {
    connection: Weak<Connection>,
    usage: Usage,
    window: Window,
    idle_timeout: Duration,
    closing: C,
}

impl<C: FnMut(&Arc<Connection>) -> bool> Closer<C> {
    /// Never returns; a connection nobody refers to ends by itself.
    async fn run(&mut self) -> std::convert::Infallible {
        loop {
            self.usage.idle_for(self.idle_timeout).await;
            let closed = self.connection.upgrade().is_none_or(|c| (self.closing)(&c));
            if closed {
                return std::future::pending().await;
            }
        }
    }
}

/// Drives one connection to its end.
async fn drive<C: FnMut(&Arc<Connection>) -> bool>(
    mut connection: h2::client::Connection<TlsStream<ReadAhead>, Bytes>,
    mut closer: Closer<C>,
    end: watch::Sender<Option<TunnelError>>,
) {
    let pings = connection.ping_pong().expect("nobody else has taken the pings");
    let mut gone = pin!(peer_is_gone(pings));
    let (usage, window) = (closer.usage.clone(), closer.window.clone());
    let mut streams = usage.changes();
    let why = {
        let mut closing = pin!(closer.run());
        loop {
            tokio::select! {
                ended = poll_fn(|cx| {
                    let ended = connection.poll_unpin(cx);
                    if ended.is_pending() {
                        let tell = |now| connection.set_initial_window_size(now).is_ok();
                        window.driven(cx, usage.count(), tell);
                    }
                    ended
                }) => break match ended {
                    Ok(()) => TunnelError::broken("it was closed"),
                    Err(error) => TunnelError::from(&error),
                },
                () = &mut gone => break TunnelError::broken(GONE),
                never = &mut closing => match never {},
                // Fails only without a sender, and `usage` is one.
                _ = streams.changed() => {
                    let count = usage.count();
                    window.adjust(count, |next| connection.set_initial_window_size(next).is_ok());
                }
            }
        }
    };
    tracing::debug!(%why, "HBONE connection ended");
    end.send_replace(Some(why));
    if let Some(connection) = closer.connection.upgrade() {
        (closer.closing)(&connection);
    }
}
