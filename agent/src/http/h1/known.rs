//! Names of fields that mean something to the engine itself.

/// A field's name, as far as the engine cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// None of those below.
    Other,
    Connection,
    ContentLength,
    Host,
    Http2Settings,
    TransferEncoding,
    Upgrade,
}

impl Known {
    /// Names compare without regard to case (RFC 9110 §5.1).
    pub(super) fn of(name: &[u8]) -> Self {
        // By length first: most fields are told apart by it alone.
        let candidate = match name.len() {
            4 => (Self::Host, &b"host"[..]),
            7 => (Self::Upgrade, &b"upgrade"[..]),
            10 => (Self::Connection, &b"connection"[..]),
            14 if matches!(name[0], b'c' | b'C') => (Self::ContentLength, &b"content-length"[..]),
            14 => (Self::Http2Settings, &b"http2-settings"[..]),
            17 => (Self::TransferEncoding, &b"transfer-encoding"[..]),
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(candidate.1) { candidate.0 } else { Self::Other }
    }
}
