//! What the agent answers by itself.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};

use super::piece::Piece;
use crate::http::Answer;

/// How a client wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Of what would be said, by its head alone (RFC 9110 §9.3.2).
    Head,
    /// It speaks gRPC, and looks for a status there.
    Grpc,
}

impl Kind {
    /// By the head of a request.
    pub(super) fn of(request: &Parts) -> Self {
        if request.method == Method::HEAD {
            return Kind::Head;
        }
        let kind = request.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        match kind.and_then(|kind| kind.strip_prefix(b"application/grpc")) {
            // `application/grpc-web` is another protocol, in which all of this is in the body.
            Some([] | [b'+' | b';', ..]) => Kind::Grpc,
            _ => Kind::Plain,
        }
    }

    /// Sends `answer`, and nothing after it.
    pub(super) fn send(self, answer: &Answer, respond: &mut SendResponse<Piece>) {
        let text = answer.text.trim_end();
        let mut response = Response::new(());
        let fields = response.headers_mut();
        // Each fails only when the client is gone, and with it the need to answer.
        match self {
            Kind::Grpc => {
                let message = HeaderValue::from_str(&percent_encoded(text));
                fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                fields.insert("grpc-status", HeaderValue::from(status(answer.status)));
                if let Ok(message) = message {
                    fields.insert("grpc-message", message);
                }
                for (name, value) in answer.fields() {
                    if *name != header::CONTENT_TYPE && !name.as_str().starts_with("grpc-") {
                        fields.append(name, value.clone());
                    }
                }
                let _ = respond.send_response(response, true);
            }
            Kind::Plain | Kind::Head => {
                if let Some(more) = &answer.fields {
                    fields.clone_from(more);
                }
                if let Some(kind) = answer.kind() {
                    fields.insert(header::CONTENT_TYPE, kind);
                }
                fields.insert(header::CONTENT_LENGTH, HeaderValue::from(answer.text.len()));
                *response.status_mut() = StatusCode::from_u16(answer.status)
                    .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let body = respond.send_response(response, self == Kind::Head);
                if self == Kind::Plain
                    && let Ok(mut body) = body
                {
                    let text = Bytes::copy_from_slice(answer.text.as_bytes());
                    let _ = body.send_data(text.into(), true);
                }
            }
        }
    }
}

/// As Envoy has it for its own replies: `UNAVAILABLE` is what clients may try again.
fn status(http: u16) -> u16 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// As gRPC over HTTP/2 has it for `grpc-message`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_from_what_begins_alike() {
        for (kind, expected) in [
            ("application/grpc", Kind::Grpc),
            ("application/grpc+proto", Kind::Grpc),
            ("application/grpc;v=1", Kind::Grpc),
            ("application/grpc-web+proto", Kind::Plain),
            ("application/json", Kind::Plain),
        ] {
            let request = http::Request::post("/").header(header::CONTENT_TYPE, kind);
            let (head, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(Kind::of(&head), expected, "{kind}");
        }
    }

    #[test]
    fn a_message_is_encoded_as_grpc_has_it() {
        assert_eq!(percent_encoded("50% of ä\n"), "50%25 of %C3%A4%0A");
    }
}
