//! The server's side of HBONE.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::FutureExt;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    HboneStream, TunnelError,
    ahead::ReadAhead,
    error::within,
    limits::{
        CONNECTION_WINDOW, CONNECTS_IN_WORK, FRAME, HEADER_BYTES, LINGER, PREFACE_TIMEOUT,
        PROVOKED_RESETS, RESET_REMEMBERED, RESET_UNSEEN, SEND_BUFFER, SERVER_IDLE_TIMEOUT, STREAMS,
        TLS_TIMEOUT,
    },
    usage::{GONE, InUse, Usage, peer_is_gone},
    window::{Reader, Window},
};
use crate::{identity::IdentityError, limits::in_turn, mesh::Principal};

/// A client that asks to be connected. Nothing it sent is read before [`Connect::accept`].
#[derive(Debug)]
pub struct Connect {
    /// Where to.
    pub authority: SocketAddr,
    /// Trace context and baggage; what they say about identity is hearsay.
    pub headers: HeaderMap,
    /// Who the client proved to be.
    pub peer: Principal,
    respond: SendResponse<Bytes>,
    received: RecvStream,
    reader: Reader,
    in_use: Arc<InUse>,
}

impl Connect {
    /// Lets the client in.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionReset`] when it has gone away.
    pub fn accept(mut self) -> io::Result<HboneStream> {
        let send = self
            .respond
            .send_response(Response::new(()), false)
            .map_err(|error| io::Error::new(io::ErrorKind::ConnectionReset, error))?;
        Ok(HboneStream::new(send, self.received, self.reader, None, self.in_use))
    }

    /// Turns the client away.
    pub fn reject(mut self, status: StatusCode) {
        refuse(&mut self.respond, status);
    }
}

/// Serves one connection: TLS, who the client is, then a task for each CONNECT, of which `on_connect`
/// says what it does and where it runs.
///
/// `handshaking` is dropped as soon as the client is known and speaks HTTP/2. `connections` is how
/// many the pod has with this one: more have less memory each.
///
/// Returns when the connection is over. `drain` asks the client to open no more streams;
/// those that are open go on.
///
/// # Errors
/// When the client is not let in, and when the connection breaks.
pub async fn serve<P, F, Fut>(
    stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    handshaking: impl Send,
    connections: usize,
    peer_of: P,
    drain: CancellationToken,
    on_connect: F,
) -> Result<(), TunnelError>
where
    P: Fn(Option<&[CertificateDer<'_>]>) -> Result<Principal, IdentityError>,
    F: Fn(Connect) -> (Handle, Fut),
    Fut: Future<Output = ()> + Send + 'static,
{
    let window = Window::new(connections);
    let stream = accept_tls(stream, tls).await?;
    let peer = peer_of(stream.get_ref().1.peer_certificates())
        .map_err(|source| TunnelError::Tls { source })?;
    let handshake = h2::server::Builder::new()
        .initial_window_size(window.now())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_BYTES)
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESET_UNSEEN)
        .max_concurrent_reset_streams(RESET_REMEMBERED)
        .max_local_error_reset_streams(Some(PROVOKED_RESETS))
        .handshake(stream);
    let connection = within("the HTTP/2 preface", PREFACE_TIMEOUT, handshake)
        .await?
        .map_err(|error| TunnelError::from(&error))?;
    drop(handshaking);
    answer(connection, window, peer, drain, on_connect).await
}

async fn accept_tls(
    stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
) -> Result<TlsStream<ReadAhead>, TunnelError> {
    // Frames are written whole; waiting for more of them only adds latency.
    stream.set_nodelay(true).map_err(TunnelError::broken)?;
    // Signatures keep a processor busy for longer than all else that is done for a connection.
    let accept = in_turn(TlsAcceptor::from(tls).accept(ReadAhead::new(stream)).into_fallible());
    match within("the TLS handshake", TLS_TIMEOUT, accept).await? {
        Ok(stream) => Ok(stream),
        Err((error, mut stream)) => {
            // Closing a socket with unread bytes resets it, and the reset overtakes the alert
            // that tells the client what was wrong.
            let _ = timeout(LINGER, async {
                stream.shutdown().await?;
                let mut sink = [0; 4096];
                while stream.read(&mut sink).await? > 0 {}
                io::Result::Ok(())
            })
            .await;
            Err(TunnelError::tls(&error))
        }
    }
}

async fn answer<F, Fut>(
    mut connection: h2::server::Connection<TlsStream<ReadAhead>, Bytes>,
    window: Window,
    peer: Principal,
    drain: CancellationToken,
    on_connect: F,
) -> Result<(), TunnelError>
where
    F: Fn(Connect) -> (Handle, Fut),
    Fut: Future<Output = ()> + Send + 'static,
{
    let pings = connection.ping_pong().expect("nobody else has taken the pings");
    let mut gone = pin!(peer_is_gone(pings));
    let in_work = Usage::none();
    let idle = in_work.clone();
    let mut closing = pin!(async {
        tokio::select! {
            () = drain.cancelled() => {}
            () = idle.idle_for(SERVER_IDLE_TIMEOUT) => {}
        }
    });
    let mut closed = false;
    loop {
        let (request, mut respond) = tokio::select! {
            accepted = poll_fn(|cx| {
                let accepted = connection.poll_accept(cx);
                if accepted.is_pending() {
                    let tell = |now| connection.set_initial_window_size(now).is_ok();
                    window.driven(cx, in_work.count(), tell);
                }
                accepted
            }) => match accepted {
                Some(Ok(accepted)) => accepted,
                // A client that closes does not wait for our goodbye, which then fails.
                Some(Err(error)) if in_work.is_zero() && is_hangup(&error) => return Ok(()),
                Some(Err(error)) => return Err(TunnelError::from(&error)),
                None => return Ok(()),
            },
            () = &mut gone => return Err(TunnelError::broken(GONE)),
            () = &mut closing, if !closed => {
                closed = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(in_use) = in_work.take(CONNECTS_IN_WORK).map(Arc::new) else {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        };
        let Some(authority) = authority(&request) else {
            refuse(&mut respond, StatusCode::BAD_REQUEST);
            continue;
        };
        // The peer may have opened it before it knew of a change.
        let before = window.unasked();
        window.adjust(in_work.count(), |next| connection.set_initial_window_size(next).is_ok());
        let (head, mut received) = request.into_parts();
        let connect = Connect {
            authority,
            headers: head.headers,
            peer: peer.clone(),
            respond,
            reader: window.reader(&mut received, before),
            received,
            in_use: in_use.clone(),
        };
        // Each stream keeps it for as long as it lasts.
        const {
            assert!(size_of::<Fut>() <= LARGEST_HANDLER, "what handles a CONNECT is to be boxed");
        }
        let (thread, handler) = on_connect(connect);
        thread.spawn(handler.map(move |()| drop(in_use)));
    }
}

/// Bytes of the future that a CONNECT is given to. With all its layers it once was 72 KiB a stream.
const LARGEST_HANDLER: usize = 512;

/// Where a CONNECT leads. `None` for any other request, and for a name instead of an address.
fn authority(request: &Request<RecvStream>) -> Option<SocketAddr> {
    let plain = request.method() == Method::CONNECT
        && request.extensions().get::<h2::ext::Protocol>().is_none();
    let authority = request.uri().authority().filter(|_| plain)?;
    authority.as_str().parse().ok()
}

fn is_hangup(error: &h2::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    error
        .get_io()
        .is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected))
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails only when the client is gone, and with it the need to answer.
    let _ = respond.send_response(response, true);
}
