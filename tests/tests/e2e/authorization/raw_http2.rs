//! HTTP/2 as bytes: clients made for it refuse to send what an attacker would.

use std::net::SocketAddr;

use anyhow::Context;
use sluice_tests::Pod;

use super::town::connect;

/// RFC 9113 §6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The body of what is answered to a GET of `path`, whatever that is; `None` where the stream, or its
/// connection, is ended without an answer.
pub(super) async fn get(
    client: &Pod,
    to: SocketAddr,
    path: &str,
) -> anyhow::Result<Option<String>> {
    let mut line = connect(client, to).await?;
    // RFC 7541 §6: `:method: GET` and `:scheme: http` are indexed, the others literals with indexed names.
    let mut fields = vec![0x82, 0x86];
    for (name, value) in [(1, "go-app"), (4, path)] {
        fields.extend([name, u8::try_from(value.len())?]);
        fields.extend(value.as_bytes());
    }
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[])?);
    request.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields)?);
    line.say(request).await?;
    let mut body = Vec::new();
    loop {
        let head = line.exactly(9).await.context("a frame's head")?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let payload = line.exactly(length as usize).await.context("a frame's payload")?;
        let (kind, flags, is_ours) = (head[3], head[4], head[5..] == [0, 0, 0, 1]);
        match kind {
            GOAWAY => return Ok(None),
            RST_STREAM if is_ours => return Ok(None),
            DATA if is_ours => body.extend(payload),
            _ => {}
        }
        if is_ours && [DATA, HEADERS].contains(&kind) && flags & END_STREAM != 0 {
            return Ok(Some(String::from_utf8(body)?));
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u8::try_from(payload.len())?;
    Ok([&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat())
}
