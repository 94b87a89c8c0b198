//! What was said at one end before it broke, on its way to the other end.
//!
//! A reset discards what it overtakes: of a socket what the peer's kernel has not got, of a tunnel's
//! stream what h2 has not sent. Without a mesh nothing is overtaken that was sent before it.

use std::{future::poll_fn, io, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::io::Io;
use crate::tunnel::HboneStream;

/// How long an end that is to be reset may take nothing of what was said to it before. A segment that
/// was lost is sent again after one second or three (RFC 6298 §2).
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long the other end of a tunnel's stream may take to end as well. What is on its way is 64 KiB and a
/// window, which a reader of 20 KiB a second takes in that time.
const LONGEST_END: Duration = Duration::from_secs(30);

/// How often the kernel is asked, at first and at last: it tells nobody when the last byte was
/// acknowledged.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Waits until a reset of `end` overtakes nothing that was written to it, or for as long as it
/// takes some of it.
pub(super) async fn delivered(end: &mut Io) {
    match end {
        Io::Tcp(stream) => acknowledged(stream).await,
        // What waits for the peer's reader is a buffer's content at most.
        Io::Hbone(stream) => drop(timeout(PATIENCE, stream.sent()).await),
    }
}

/// Ends `stream` in order, and keeps it until its other end has ended as well: one that is dropped before
/// is reset, which discards what waits here for its reader.
pub(super) async fn end(mut stream: HboneStream) {
    let ending = async {
        stream.shutdown().await?;
        while !poll_fn(|cx| stream.poll_read_bytes(cx)).await?.is_empty() {}
        io::Result::Ok(())
    };
    let _ = timeout(LONGEST_END, ending).await;
}

async fn acknowledged(stream: &TcpStream) {
    let (mut left, mut since, mut pause) = (u32::MAX, Instant::now(), FIRST_PAUSE);
    loop {
        let now = agent_common::unacknowledged(stream).unwrap_or(0);
        // Whoever is gone acknowledges nothing.
        if now == 0 || !matches!(stream.take_error(), Ok(None)) {
            return;
        }
        if now < left {
            (left, since) = (now, Instant::now());
        } else if since.elapsed() >= PATIENCE {
            return;
        }
        sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}
