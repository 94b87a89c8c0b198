//! The protobuf wire format, as far as OTLP traces need it.
//!
//! Writing appends to a buffer that lives on; reading covers the few small answers of a
//! receiver. Field numbers are those of `opentelemetry/proto` 1.x.

use std::fmt;

/// The longest attribute value written; what is longer is cut, so that one request cannot
/// fill a message.
pub(super) const LONGEST_VALUE: usize = 4096;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(out: &mut Vec<u8>, field: u64, kind: u64) {
    varint(out, field << 3 | kind);
}

/// How many bytes `value` takes as a varint.
pub(super) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(super) fn uint(out: &mut Vec<u8>, field: u64, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

pub(super) fn fixed64(out: &mut Vec<u8>, field: u64, value: u64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn fixed32(out: &mut Vec<u8>, field: u64, value: u32) {
    tag(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    header(out, field, value.len());
    out.extend_from_slice(value);
}

/// The head of a length-delimited field whose `len` bytes follow.
pub(super) fn header(out: &mut Vec<u8>, field: u64, len: usize) {
    tag(out, field, LENGTH_DELIMITED);
    varint(out, len as u64);
}

/// A length-delimited field whose length is known only once `content` has written it.
pub(super) fn nested(out: &mut Vec<u8>, field: u64, content: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, LENGTH_DELIMITED);
    let at = out.len();
    out.push(0);
    content(out);
    let len = (out.len() - at - 1) as u64;
    if len < 0x80 {
        out[at] = len as u8;
    } else {
        // Room for the longer length is made by moving the content once.
        let mut length = Vec::with_capacity(5);
        varint(&mut length, len);
        out.splice(at..=at, length);
    }
}

/// A text field from whatever can be displayed, without a string of its own. Text that is too
/// long is cut.
pub(super) fn display(out: &mut Vec<u8>, field: u64, value: impl fmt::Display) {
    nested(out, field, |out| {
        let start = out.len();
        // Writing to a Vec cannot fail.
        let _ = fmt::Write::write_fmt(&mut Text(out), format_args!("{value}"));
        if out.len() - start > LONGEST_VALUE {
            let mut end = start + LONGEST_VALUE;
            // Not within a character: its bytes after the first begin with the bits 10.
            while out[end] & 0xc0 == 0x80 {
                end -= 1;
            }
            out.truncate(end);
        }
    });
}

struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Writes `KeyValue`s into the `attributes` field of a span or resource.
pub(super) struct Attributes<'a> {
    out: &'a mut Vec<u8>,
    field: u64,
}

impl<'a> Attributes<'a> {
    /// Attributes of the message being written to `out`, which numbers them `field`.
    pub(super) fn new(out: &'a mut Vec<u8>, field: u64) -> Self {
        Self { out, field }
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        let value = &value[..value.floor_char_boundary(LONGEST_VALUE)];
        self.pair(key, |any| bytes(any, 1, value.as_bytes()));
    }

    pub(super) fn display(&mut self, key: &str, value: impl fmt::Display) {
        self.pair(key, |any| display(any, 1, value));
    }

    pub(super) fn bool(&mut self, key: &str, value: bool) {
        self.pair(key, |any| uint(any, 2, value.into()));
    }

    /// Counts and sizes; what does not fit OTLP's signed integer is its largest.
    pub(super) fn int(&mut self, key: &str, value: u64) {
        self.pair(key, |any| uint(any, 3, value.min(i64::MAX as u64)));
    }

    pub(super) fn double(&mut self, key: &str, value: f64) {
        self.pair(key, |any| fixed64(any, 4, value.to_bits()));
    }

    fn pair(&mut self, key: &str, value: impl FnOnce(&mut Vec<u8>)) {
        nested(self.out, self.field, |pair| {
            bytes(pair, 1, key.as_bytes());
            nested(pair, 2, value);
        });
    }
}

/// One field of a message that was received.
#[derive(Debug, PartialEq)]
pub(super) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of `message`, up to the first that is malformed.
pub(super) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let tag = read_varint(&mut message)?;
        let field = match tag & 7 {
            VARINT => Field::Number(read_varint(&mut message)?),
            FIXED64 => Field::Number(u64::from_le_bytes(*message.split_off(..8)?.first_chunk()?)),
            FIXED32 => {
                Field::Number(u32::from_le_bytes(*message.split_off(..4)?.first_chunk()?).into())
            }
            LENGTH_DELIMITED => {
                let len = usize::try_from(read_varint(&mut message)?).ok()?;
                Field::Bytes(message.split_off(..len)?)
            }
            _ => return None,
        };
        Some((tag >> 3, field))
    })
}

/// The bytes of the first field numbered `number`.
pub(super) fn submessage(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message).find_map(|field| match field {
        (n, Field::Bytes(bytes)) if n == number => Some(bytes),
        _ => None,
    })
}

/// The number in the first field numbered `number`; zero when it is absent, as proto3 has it.
pub(super) fn number(message: &[u8], number: u64) -> u64 {
    fields(message)
        .find_map(|field| match field {
            (n, Field::Number(value)) if n == number => Some(value),
            _ => None,
        })
        .unwrap_or(0)
}

pub(super) fn read_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *input.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_reads_back_and_is_as_long_as_said(value: u64) {
            let mut out = Vec::new();
            varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(read_varint(&mut &*out), Some(value));
        }

        #[test]
        fn nested_content_of_any_length_reads_back(content: Vec<u8>, long in 0usize..40_000) {
            for content in [content, vec![7; long]] {
                let mut out = vec![0xff];
                nested(&mut out, 3, |out| out.extend_from_slice(&content));
                let mut read = fields(&out[1..]);
                prop_assert_eq!(read.next(), Some((3, Field::Bytes(&content))));
                prop_assert_eq!(read.next(), None);
            }
        }

        #[test]
        fn reading_garbage_never_panics(garbage: Vec<u8>) {
            fields(&garbage).for_each(drop);
        }
    }

    #[test]
    fn a_value_that_is_too_long_is_cut_between_characters() {
        let long = format!("x{}", "é".repeat(LONGEST_VALUE));
        let mut out = Vec::new();
        Attributes::new(&mut out, 1).text("k", &long);
        Attributes::new(&mut out, 2).display("k", &long);
        for field in [1, 2] {
            let pair = submessage(&out, field).unwrap();
            let value = submessage(submessage(pair, 2).unwrap(), 1).unwrap();
            assert_eq!(value.len(), LONGEST_VALUE - 1);
            assert!(std::str::from_utf8(value).is_ok());
        }
    }
}
