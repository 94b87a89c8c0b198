//! HTTP/1 as it passes: heads as the bytes they came in, framing judged once, content untouched.
//!
//! `head` marks a head's bytes and keeps the list of edits, `framing` says how long what follows is,
//! `chunked` follows chunks without changing them. `conn` is one end, `passing` a body between two,
//! `exchange` one request and its response in one task, and `serve` the client's connection.

mod chunked;
mod conn;
mod exchange;
mod framing;
mod head;
mod known;
#[cfg(test)]
mod oracle;
mod passing;
mod serve;
#[cfg(test)]
mod tests;
mod upgrade;
mod waiting;

pub use serve::{Served, Tunnel, serve};

use bytes::Bytes;

use super::AnyRequest;

/// The head of a request that is all of `bytes`, as a client's would be read: for whoever wants to know
/// what would become of it.
///
/// # Errors
/// With the reason why it is none.
pub fn request_head(bytes: Bytes) -> Result<impl AnyRequest, String> {
    head::RequestHead::parse(bytes).map_err(|malformed| malformed.to_string())
}
