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

// Memory decides about the rest. Whatever arrives for a reader that stands still is held by this
// process, up to the stream's window, and somebody else says for how long. So the window is large
// where few streams can fill it and small where many can: 512 KiB take 4 Gbit/s at 1 ms, and 64 KiB,
// HTTP/2's default, half a Gbit/s; within a rack, five times as much. What is too small costs processor
// time as well, since its sender stops more often and each window given back is a frame: one upload
// between two agents took 1.8 s/GB of both with 1 MiB, 1.9 with 512 KiB, 2.1 with 192.
//
// HTTP/2 has a window for the connection as well. Where it is less than its streams' together, a
// few readers that stand still stop all others (ztunnel: 4 MiB a stream, 16 MiB a connection;
// Envoy's default: 256 MiB for each, with watermarks of 1 MiB behind it). Here it is more than all
// streams of a connection can hold, by the sizes below, so that nobody waits for another's reader:
// 8 × 512 KiB and 92 × 64 KiB are 9.8 MiB. The rest is for streams that are opened before the peer
// knows of a smaller window. A hundred readers that stand still thus cost 12 MiB at most, and
// `crate::limits` bounds what those of a pod cost together.

/// Bytes one stream may have under way before its reader takes them, with [`FEW`] others.
pub(super) const LARGEST_WINDOW: u32 = 512 << 10;
/// The same with more.
pub(super) const SMALLEST_WINDOW: u32 = 64 << 10;
/// So many streams of a connection may have the largest window.
pub(super) const FEW: usize = 8;
/// So many connections of a pod may.
pub(super) const FEW_CONNECTIONS: usize = 32;
/// All streams' windows together.
pub(super) const CONNECTION_WINDOW: u32 = 12 << 20;
/// The largest DATA frame the peer may send. With its header of 9 bytes (RFC 9113 §4.1) it fills two
/// records of TLS (RFC 8446 §5.1: 16 KiB each): 32 KiB would take a third for nine bytes.
pub(super) const FRAME: u32 = (2 << 14) - 9;
/// Bytes of one stream that may wait here for the socket. Not for the peer's reader: h2 takes no
/// more than its window has room for. Whoever writes as much at once fills two frames.
pub const SEND_BUFFER: usize = 2 * FRAME as usize;

/// Decoded header bytes of one CONNECT.
pub(super) const HEADER_BYTES: u32 = 64 << 10;
/// CONNECTs of one connection that may be in work, those the client has reset meanwhile
/// included: a client that opens and resets in a loop (CVE-2023-44487) meets this bound.
pub(super) const CONNECTS_IN_WORK: usize = 2 * STREAMS as usize;
/// Streams reset by the client before they were looked at; beyond it the connection ends.
pub(super) const RESET_UNSEEN: usize = STREAMS as usize;
/// Streams this side has reset that are remembered for a second, and may still be spoken on: what crosses a
/// reset is nobody's fault. Whatever comes for one that is forgotten counts as provoked.
pub(super) const RESET_REMEMBERED: usize = 1024;
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
