//! One connection to a server, for many requests at once.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
};

use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Request, Version, request};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep},
};

use super::{
    limits::{
        FRAMES, HEADER_BYTES, SEND_BUFFER, SERVER_IDLE, SETTINGS, STREAM_WINDOW, STREAMS_TO_SERVER,
        WINDOW_OF_SERVER,
    },
    piece::Piece,
};
use crate::{
    http::Stream,
    limits::{Inflow, Share},
};

/// What h2 believes of how many streams a server takes before that has said so: a number that no
/// server says, and that h2 does not take for silence about it either.
const UNTOLD: usize = usize::MAX - 1;

/// A connection that takes new streams, until the last reference to it is gone; then it closes as
/// soon as its streams have ended.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Piece>,
    /// Streams that have not ended.
    open: AtomicUsize,
    /// All streams so far, so that those are not missed that come and go between two looks.
    begun: AtomicUsize,
    /// How many there were when it was last looked at, and since when nothing has changed.
    seen: Mutex<(usize, Instant)>,
    heard: watch::Sender<Heard>,
    /// Whether its server takes CONNECT for other protocols (RFC 8441).
    extends: OnceLock<bool>,
    /// What comes on it counts here.
    pub(super) inflow: Arc<Inflow>,
}

/// What has been heard on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// How many streams its server takes, or nothing for so long that it is not waited for.
    pub(super) limit: bool,
    /// HTTP/2.
    http2: bool,
    /// Its end.
    pub(super) end: bool,
}

/// Room for one stream on a connection.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) connection: Arc<Connection>,
    /// It has not carried a stream before.
    pub(super) is_fresh: bool,
}

impl Connection {
    /// Begins to speak HTTP/2 on `io`. A task of its own drives it to its end, and calls `leave` when
    /// it is to be taken out of use: because it is over, or, if it still is so then, idle.
    pub(super) async fn establish(
        io: impl Stream,
        buffered: &Arc<Share>,
        leave: impl FnMut(&Arc<Connection>) + Send + 'static,
    ) -> Result<Arc<Self>, h2::Error> {
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(WINDOW_OF_SERVER)
            .data_frame_budget(FRAMES)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADER_BYTES)
            // What still comes for streams of clients that gave up is no reason to end all others.
            .max_concurrent_reset_streams(STREAMS_TO_SERVER)
            .max_local_error_reset_streams(None)
            .initial_max_send_streams(UNTOLD)
            .enable_push(false)
            .handshake(io)
            .await?;
        let heard = watch::Sender::default();
        let this = Arc::new(Self {
            sender,
            open: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            seen: Mutex::new((0, Instant::now())),
            heard: heard.clone(),
            extends: OnceLock::new(),
            inflow: Inflow::new(buffered, STREAM_WINDOW, WINDOW_OF_SERVER),
        });
        tokio::spawn(drive(connection, Arc::downgrade(&this), heard, leave));
        Ok(this)
    }

    /// Room for one more stream, where there is. Never two such at once for the last place: callers
    /// hold a lock.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Reserved> {
        let heard = *self.heard.borrow();
        (heard.limit && !heard.end && self.open.load(Relaxed) < self.limit()).then(|| self.take())
    }

    fn limit(&self) -> usize {
        self.sender.current_max_send_streams().min(STREAMS_TO_SERVER)
    }

    /// Room for a stream, whatever else there is.
    pub(super) fn take(self: &Arc<Self>) -> Reserved {
        self.open.fetch_add(1, Relaxed);
        let is_fresh = self.begun.fetch_add(1, Relaxed) == 0;
        Reserved { connection: self.clone(), is_fresh }
    }

    /// What has been heard on it, now and later.
    pub(super) fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.subscribe()
    }

    /// Whether anything came from its server that is HTTP/2.
    pub(super) fn speaks(&self) -> bool {
        self.heard.borrow().http2
    }

    /// Whether its server takes CONNECT for other protocols. To be asked once it has said anything.
    pub(super) fn extends(&self) -> bool {
        *self.extends.get_or_init(|| self.sender.is_extended_connect_protocol_enabled())
    }

    /// Whether nothing is lost when it is taken out of use.
    pub(super) fn is_done(&self) -> bool {
        self.open.load(Relaxed) == 0 || self.heard.borrow().end
    }

    /// Whether it has carried nothing for long. Asked now and then.
    fn is_idle(&self) -> bool {
        let (open, begun) = (self.open.load(Relaxed), self.begun.load(Relaxed));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if open > 0 || seen.0 != begun {
            *seen = (begun, Instant::now());
        }
        seen.1.elapsed() >= SERVER_IDLE
    }
}

impl Reserved {
    /// Sends the head of a request; `is_all` says that nothing follows.
    pub(super) fn send(
        &self,
        head: request::Parts,
        is_all: bool,
    ) -> Result<(ResponseFuture, SendStream<Piece>), h2::Error> {
        let mut request = Request::from_parts(head, ());
        if request.uri().authority().is_none() {
            // h2 sends only those without that were HTTP/1.
            *request.version_mut() = Version::HTTP_11;
        }
        self.connection.sender.clone().send_request(request, is_all)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.connection.open.fetch_sub(1, Relaxed);
    }
}

/// Drives one connection to its end.
async fn drive<S: Stream>(
    mut connection: h2::client::Connection<S, Piece>,
    this: Weak<Connection>,
    heard: watch::Sender<Heard>,
    mut leave: impl FnMut(&Arc<Connection>),
) {
    let mut patience = pin!(sleep(SETTINGS));
    let mut look = interval(SERVER_IDLE / 4);
    let mut now = Heard::default();
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ended);
        }
        if !now.http2 {
            now.http2 = connection.max_concurrent_send_streams() != UNTOLD;
            let told = now.http2 || patience.as_mut().poll(cx).is_ready();
            if told && (now.http2 || !now.limit) {
                now.limit = true;
                heard.send_replace(now);
            }
        }
        while look.poll_tick(cx).is_ready() {
            if let Some(this) = this.upgrade()
                && this.is_idle()
            {
                leave(&this);
            }
        }
        Poll::Pending
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "upstream HTTP/2 connection ended");
    }
    heard.send_replace(Heard { end: true, ..now });
    if let Some(this) = this.upgrade() {
        leave(&this);
    }
}
