//! Windows, frame sizes, caps and times of HBONE connections.

use std::time::Duration;

/// Streams the server lets a client open on one connection, and the client opens.
pub(super) const STREAMS: u32 = 100;
// The sizes below were chosen by moving 1 GiB through TLS over loopback, both ends in one
// process on two shared cores, release build, 64 KiB writes; medians of five rounds:
//
// | frame  | window  | 1 stream                | 16 streams              |
// |--------|---------|-------------------------|-------------------------|
// | 16 KiB | 1 MiB   | 0.94 GiB/s, 1.02 s/GiB  | 0.95 GiB/s, 0.95 s/GiB  |
// | 32 KiB | 1 MiB   | 1.02 GiB/s, 0.91 s/GiB  | 1.10 GiB/s, 0.81 s/GiB  |
// | 64 KiB | 1 MiB   | 0.95 GiB/s, 0.95 s/GiB  | 0.97 GiB/s, 0.84 s/GiB  |
// | 32 KiB | 512 KiB | 1.12 GiB/s, 0.82 s/GiB  | 1.16 GiB/s, 0.78 s/GiB  |
//
// Larger frames than 32 KiB gain nothing, and make a small message wait longer behind a
// large one. A smaller window stays in the processor's cache, but 1 MiB is what 1 Gbit/s at
// 10 ms takes. A longer send buffer and a larger rustls buffer made no difference.

/// Bytes one stream may have under way before its reader takes them.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// All streams' windows together: readers that stand still, however many, leave the others'
/// share untouched. It bounds what one connection can make this side hold.
pub(super) const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// The largest DATA frame the peer may send.
pub(super) const FRAME: u32 = 32 << 10;
/// Bytes of one stream that may wait here for the socket.
pub(super) const SEND_BUFFER: usize = 256 << 10;

/// Decoded header bytes of one CONNECT.
pub(super) const HEADER_BYTES: u32 = 64 << 10;
/// CONNECTs of one connection that may be in work, those the client has reset meanwhile
/// included: a client that opens and resets in a loop (CVE-2023-44487) meets this bound.
pub(super) const CONNECTS_IN_WORK: usize = 2 * STREAMS as usize;
/// Streams reset by the client before they were looked at; beyond it the connection ends.
pub(super) const RESET_UNSEEN: usize = STREAMS as usize;
/// Streams this side may be provoked to reset (CVE-2025-8671); beyond it the connection ends.
pub(super) const PROVOKED_RESETS: usize = 1024;

pub(super) const TLS_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a refused client may take to read why.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// A connection without streams. Longer than any client keeps one, so that the client closes
/// first and no CONNECT meets a closing connection.
pub(super) const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A peer that is gone without a word is noticed after the two together.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(15);
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(10);
