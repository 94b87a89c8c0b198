//! Windows, caps and times of HTTP/2 connections.

use std::time::Duration;

/// What one message may bring before somebody reads it: 64 KiB take half a Gbit/s at 1 ms.
pub(super) const STREAM_WINDOW: u32 = 64 << 10;
/// Requests that one client may have open on one connection.
pub(super) const MOST_STREAMS: u32 = 1000;
/// Requests that are sent on one connection to a server, where it takes as many; more take another.
pub(super) const STREAMS_TO_SERVER: usize = 100;
// HTTP/2 has a window for the connection as well. Where it is less than its streams' together, a few
// readers that stand still stop all others. So it never is: what waits for a reader is counted
// stream by stream, and who goes beyond the limit of its pod is ended alone.
/// What a client's requests may bring together.
pub(super) const WINDOW_OF_CLIENT: u32 = MOST_STREAMS * STREAM_WINDOW;
/// What a server's responses on one connection may.
pub(super) const WINDOW_OF_SERVER: u32 = STREAMS_TO_SERVER as u32 * STREAM_WINDOW;
/// What small DATA frames that wait may cost beyond their content. h2 makes it half of the
/// connection's window otherwise.
pub(super) const FRAMES: usize = 512 << 10;
/// Bytes of one stream that may wait here for the socket. Not for the peer's reader: h2 takes no more
/// than its window has room for.
pub(super) const SEND_BUFFER: usize = 64 << 10;
/// The most decoded header bytes that one message may carry, 32 for each field included
/// (RFC 9113 §6.5.2).
pub(super) const HEADER_BYTES: u32 = 64 << 10;

/// Requests of one connection that may be in work, those included that the client has reset
/// meanwhile: one that asks and resets in a loop (CVE-2023-44487) meets this bound.
pub(super) const REQUESTS_IN_WORK: usize = 2 * MOST_STREAMS as usize;
/// Streams reset by the client before they were looked at; beyond it the connection ends.
pub(super) const RESET_UNSEEN: usize = 100;
/// Streams this side may be provoked to reset (CVE-2025-8671); beyond it the connection ends.
pub(super) const PROVOKED_RESETS: usize = 1024;
/// Interim responses that one request may have. They have no flow control, and wait for their reader.
pub(super) const MOST_INTERIM: usize = 64;
/// How often a request is sent again that a server has not looked at.
pub(super) const MOST_RESENT: usize = 2;

/// How long the beginning of a connection may take, from its first byte on.
pub(super) const BEGINNING: Duration = Duration::from_secs(20);
/// How long a client's connection may be without a request: as long as Envoy lets it.
pub(super) const CLIENT_IDLE: Duration = Duration::from_secs(3600);
/// How long a server's may. Shorter than the 60 s that many servers allow, so that this side closes
/// first and no request meets a connection that closes.
pub(super) const SERVER_IDLE: Duration = Duration::from_secs(50);
/// How long a server may take to say how many requests it takes at once. It is the first thing it has
/// to say (RFC 9113 §3.4).
pub(super) const SETTINGS: Duration = Duration::from_secs(1);
/// How long what a server said last may take to its client before it learns of the end.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);
