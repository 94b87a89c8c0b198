//! Frames, read and written by hand.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;

/// END_STREAM and END_HEADERS.
pub(super) const ENDS: u8 = 0x5;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const ACK: u8 = 0x1;

/// `:status: 200`, by HPACK's static table.
pub(super) const OK: &[u8] = &[0x88];
/// `:method: GET`, `:scheme: http`, `:path: /` and `:authority: a`.
pub(super) const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];

/// One frame.
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) async fn write(to: &mut DuplexStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    to.write_all(&frame).await.unwrap();
}

pub(super) async fn next(from: &mut DuplexStream) -> Frame {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    from.read_exact(&mut payload).await.unwrap();
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Frame { kind: head[3], flags: head[4], stream, payload }
}

/// Skips to the next frame of `kind`.
pub(super) async fn next_of(kind: u8, from: &mut DuplexStream) -> Frame {
    loop {
        let frame = next(from).await;
        if frame.kind == kind {
            return frame;
        }
    }
}

/// Begins as a client.
pub(super) async fn begin_as_client(stream: &mut DuplexStream) {
    stream.write_all(PREFACE).await.unwrap();
    write(stream, SETTINGS, 0, 0, &[]).await;
}

/// Begins as a server.
pub(super) async fn begin_as_server(stream: &mut DuplexStream) {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await.unwrap();
    assert_eq!(preface, PREFACE);
    write(stream, SETTINGS, 0, 0, &[]).await;
}
