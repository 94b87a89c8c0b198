//! ttrpc: calls and answers on one logical connection.
//!
//! A message is ten bytes (length, stream, type, flags; numbers in network order) and a
//! protobuf `Request` or `Response`. All calls of NRI are unary.

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;

use super::{
    NriError,
    messages::{Request, Response, Status},
};

pub(super) const HEADER: usize = 10;
/// ttrpc's own limit.
pub(super) const LONGEST: usize = 4 << 20;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
/// gRPC's code for a method that is not there.
const UNIMPLEMENTED: i32 = 12;

/// What arrived.
#[derive(Debug)]
pub(super) enum Incoming {
    Request(u32, Request),
    Response(Response),
}

/// The bytes of one logical connection that are not yet whole messages.
#[derive(Debug, Default)]
pub(super) struct Messages {
    buffered: BytesMut,
}

impl Messages {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffered.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Incoming>, NriError> {
        let Some(mut header) = self.buffered.get(..HEADER) else { return Ok(None) };
        let length = header.get_u32() as usize;
        let (stream, kind) = (header.get_u32(), header.get_u8());
        if length > LONGEST {
            return Err(NriError::Malformed("a message larger than the protocol allows"));
        }
        if self.buffered.len() < HEADER + length {
            return Ok(None);
        }
        self.buffered.advance(HEADER);
        let body = self.buffered.split_to(length).freeze();
        let malformed = |_| NriError::Malformed("a message that is no protobuf of ttrpc");
        match kind {
            REQUEST => {
                Ok(Some(Incoming::Request(stream, Request::decode(body).map_err(malformed)?)))
            }
            RESPONSE => Ok(Some(Incoming::Response(Response::decode(body).map_err(malformed)?))),
            _ => Err(NriError::Malformed("a message of a type that NRI does not use")),
        }
    }
}

/// A call of `service.method`.
pub(super) fn request(
    stream: u32,
    service: &str,
    method: &str,
    argument: &impl Message,
) -> Vec<u8> {
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: argument.encode_to_vec(),
        ..Request::default()
    };
    message(stream, REQUEST, &request)
}

/// The answer to a call.
pub(super) fn answer(stream: u32, result: &impl Message) -> Vec<u8> {
    message(stream, RESPONSE, &Response { status: None, payload: result.encode_to_vec() })
}

/// The answer to a call of something that is not there.
pub(super) fn unimplemented(stream: u32, method: &str) -> Vec<u8> {
    let status = Status { code: UNIMPLEMENTED, message: format!("no method {method}") };
    message(stream, RESPONSE, &Response { status: Some(status), payload: Vec::new() })
}

fn message(stream: u32, kind: u8, body: &impl Message) -> Vec<u8> {
    let length = body.encoded_len();
    let mut message = Vec::with_capacity(HEADER + length);
    message.put_u32(length as u32);
    message.put_u32(stream);
    message.put_u8(kind);
    message.put_u8(0);
    body.encode(&mut message).expect("a Vec grows");
    message
}
