//! Which upgrades a client may ask for.

use super::{
    head::{Lines, RequestHead},
    known::Known,
};
use crate::http::message::Fields;

/// Takes back a wish for HTTP/2 (RFC 7540 §3.2), with its settings: its frames would be bytes that
/// nobody looks into. The server answers in HTTP/1, as one does that does not know it.
pub(super) fn drop_h2c(head: &mut RequestHead) {
    let is_h2c = |token: &[u8]| token.eq_ignore_ascii_case(b"h2c");
    if !tokens(head, Known::Upgrade).any(is_h2c) {
        return;
    }
    let others = joined(tokens(head, Known::Upgrade).filter(|token| !is_h2c(token)));
    let goes = |token: &[u8]| {
        token.eq_ignore_ascii_case(b"http2-settings")
            || others.is_empty() && token.eq_ignore_ascii_case(b"upgrade")
    };
    let options = joined(tokens(head, Known::Connection).filter(|token| !goes(token)));
    for (name, known, value) in
        [("connection", Known::Connection, options), ("upgrade", Known::Upgrade, others)]
    {
        head.remove_known(known);
        if !value.is_empty() {
            head.add(name, &value);
        }
    }
    head.remove_known(Known::Http2Settings);
}

fn tokens(head: &RequestHead, name: Known) -> impl Iterator<Item = &[u8]> {
    let tokens = head.known(name).flat_map(|value| value.split(|byte| *byte == b','));
    tokens.map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn joined<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    tokens.collect::<Vec<_>>().join(&b", "[..])
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::*;

    fn passed(fields: &str) -> String {
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let mut head = RequestHead::parse(Bytes::from(head)).unwrap();
        drop_h2c(&mut head);
        let mut out = BytesMut::new();
        head.write(&mut out);
        let out = str::from_utf8(&out).unwrap();
        let fields = out.strip_prefix("GET / HTTP/1.1\r\nHost: h\r\n").unwrap();
        fields.strip_suffix("\r\n").unwrap().to_owned()
    }

    #[test]
    fn http_2_is_not_upgraded_to() {
        let asked =
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n";
        assert_eq!(passed(asked), "");
        let asked = "Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: H2C\r\n\
                     HTTP2-Settings: AAM\r\nA: b\r\n";
        assert_eq!(passed(asked), "A: b\r\nconnection: keep-alive\r\n");
        let asked = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\nHTTP2-Settings: AAM\r\n";
        assert_eq!(passed(asked), "connection: Upgrade\r\nupgrade: websocket\r\n");
    }

    #[test]
    fn other_upgrades_are_left_alone() {
        let asked = "Connection:  upgrade\r\nUpgrade: websocket\r\nHTTP2-Settings: x\r\n";
        assert_eq!(passed(asked), asked);
    }
}
