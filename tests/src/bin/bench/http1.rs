//! The HTTP/1.1 that clients and servers speak: as little as does.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The body of every answer.
const BODY: &[u8] = b"ok";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";

/// After which the connection is kept.
pub(crate) const REQUEST: &[u8] =
    b"GET /order HTTP/1.1\r\nhost: shop\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
/// After which it is closed.
pub(crate) const LAST_REQUEST: &[u8] =
    b"GET /last HTTP/1.1\r\nhost: shop\r\nuser-agent: bench\r\naccept: */*\r\nconnection: close\r\n\r\n";

/// The head of a request with a body of so many bytes.
pub(crate) fn upload(length: u64) -> String {
    format!("POST /upload HTTP/1.1\r\nhost: shop\r\ncontent-length: {length}\r\n\r\n")
}

/// Sends a request and waits for all of its answer. `buffer` spares an allocation.
pub(crate) async fn exchange(
    stream: &mut TcpStream,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    stream.write_all(request).await?;
    answered(stream, buffer).await
}

/// Waits for all of an answer.
pub(crate) async fn answered(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    while !is_whole(buffer) {
        if stream.read_buf(buffer).await? == 0 {
            let got = format!("the answer ended after {:?}", String::from_utf8_lossy(buffer));
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, got));
        }
    }
    if buffer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(buffer).into_owned()))
}

fn is_whole(answer: &[u8]) -> bool {
    if answer.ends_with(BODY) {
        return answer[..answer.len() - BODY.len()].ends_with(b"\r\n\r\n");
    }
    // A refusal has another body, or none: its head says enough.
    !answer.starts_with(b"HTTP/1.1 200 ") && head_length(answer).is_some()
}

/// Answers each request with the same answer, when it has all of it.
pub(crate) async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let Some(length) = receive(&mut stream, &mut buffer).await? else { return Ok(()) };
        if length > 0 {
            swallow(&mut stream, length).await?;
        }
        if buffer.starts_with(b"GET /last ") {
            return stream.write_all(LAST_ANSWER).await;
        }
        stream.write_all(ANSWER).await?;
    }
}

/// Reads a request's head into `buffer` and returns how much of its body is yet to come; nothing
/// where the client has hung up.
async fn receive(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<u64>> {
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        if let Some(head) = head_length(buffer) {
            let body = if buffer.starts_with(b"GET ") { 0 } else { body_length(&buffer[..head])? };
            return Ok(Some(body.saturating_sub((buffer.len() - head) as u64)));
        }
    }
}

/// Reads so many bytes and forgets them.
async fn swallow(stream: &mut TcpStream, mut length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while length > 0 {
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => length = length.saturating_sub(read as u64),
        }
    }
    Ok(())
}

fn head_length(message: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    if message.ends_with(END) {
        return Some(message.len());
    }
    message.windows(END.len()).position(|window| window == END).map(|at| at + END.len())
}

fn body_length(head: &[u8]) -> io::Result<u64> {
    let text = String::from_utf8_lossy(head);
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, value)| value.trim().parse().ok());
    length.ok_or_else(|| io::Error::other(format!("a request without a length: {text}")))
}
