//! The server's side of a connection: a future for each request, all in the task that drives it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::Reason;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    beginning::Beginning,
    exchange::{Client, exchange},
    farewell::{Ending, Patient},
    limits::{
        CLIENT_IDLE, FRAMES, HEADER_BYTES, MOST_STREAMS, PROVOKED_RESETS, REQUESTS_IN_WORK,
        RESET_UNSEEN, SEND_BUFFER, STREAM_WINDOW, WINDOW_OF_CLIENT,
    },
    pool::Shared,
};
use crate::{
    http::{Handler, Stream},
    limits::{Inflow, Share},
};

/// Serves HTTP/2 until the client is done, or `ending` is cancelled and the requests under way are
/// answered: a client is asked to go elsewhere, and loses no request. What waits for readers of
/// requests is counted in `buffered`.
///
/// # Errors
/// When the connection breaks or the client's bytes are not HTTP/2.
pub async fn serve<S, H>(
    io: S,
    handler: &H,
    buffered: &Arc<Share>,
    ending: &CancellationToken,
) -> Result<(), h2::Error>
where
    S: Stream,
    H: Handler<Route: Shared>,
{
    let ends = Ending::default();
    let io = Patient::new(Beginning::new(io), ends.clone());
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW_OF_CLIENT)
        .data_frame_budget(FRAMES)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_BYTES)
        .max_concurrent_streams(MOST_STREAMS)
        .max_pending_accept_reset_streams(RESET_UNSEEN)
        // What still comes of uploads that were answered early provokes no resets then.
        .max_concurrent_reset_streams(MOST_STREAMS as usize)
        .max_local_error_reset_streams(Some(PROVOKED_RESETS))
        .handshake(io)
        .await?;
    let client = Client {
        handler,
        inflow: Inflow::new(buffered, STREAM_WINDOW, WINDOW_OF_CLIENT),
        extends: AtomicBool::new(false),
        is_to_leave: AtomicBool::new(false),
    };
    let mut requests = FuturesUnordered::new();
    // A child: waiting on the one token of all connections takes its lock at every poll.
    let ending = ending.child_token();
    let mut asked = pin!(ending.cancelled());
    let mut idle = pin!(sleep(CLIENT_IDLE));
    let mut busy = Instant::now();
    let mut extends = false;
    poll_fn(|cx| {
        if !ends.has_begun() && asked.as_mut().poll(cx).is_ready() {
            ends.begin();
            connection.graceful_shutdown();
        }
        while let Poll::Ready(accepted) = connection.poll_accept(cx) {
            match accepted {
                Some(Ok((_, mut respond))) if requests.len() >= REQUESTS_IN_WORK => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                Some(Ok((request, respond))) => requests.push(exchange(&client, request, respond)),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        // Whatever they have to send wakes this task once more.
        while let Poll::Ready(Some(())) = requests.poll_next_unpin(cx) {}
        let mut over = client.is_to_leave.load(Relaxed);
        if client.extends.load(Relaxed) && !extends {
            // Fails while the client has not confirmed other settings.
            extends = connection.enable_connect_protocol().is_ok();
        }
        if !requests.is_empty() {
            busy = Instant::now();
        }
        while idle.as_mut().poll(cx).is_ready() {
            let until = busy + CLIENT_IDLE;
            over |= requests.is_empty() && until <= Instant::now();
            idle.as_mut().reset(until.max(Instant::now() + CLIENT_IDLE / 60));
        }
        if over && !ends.has_begun() {
            ends.begin();
            connection.graceful_shutdown();
            // It is said when the connection is polled next.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}
