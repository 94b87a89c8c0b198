//! The framing of a chunked body, followed while it passes (RFC 9112 §7.1).
//!
//! Chunks go on as they came: what is counted here is where they end. Only extensions are left out:
//! no end means anything by them, and parsers disagree about what may be in one.

/// The most bytes that extensions of one body may have in all.
pub(super) const MOST_EXTENSIONS: usize = 16 << 10;
/// The most bytes that the trailers may have.
pub(super) const MOST_TRAILERS: usize = 64 << 10;

/// Where a body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the digits of a size, with as many of them behind.
    Size { size: u64, digits: u8 },
    /// Behind the size, in what is left out.
    Extension { size: u64 },
    /// Behind the carriage return of a size's line.
    SizeEnd { size: u64 },
    /// In a chunk, with as many bytes to come.
    Data(u64),
    /// Behind a chunk, before the carriage return, and behind that.
    DataEnd { returned: bool },
    /// Behind the last chunk.
    Trailers,
    /// Behind all of it.
    End,
}

/// Follows one body.
#[derive(Debug)]
pub(super) struct Chunked {
    at: At,
    extensions: usize,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// As many go on.
    pub(super) on: usize,
    /// As many behind those are left out.
    pub(super) out: usize,
    /// As many of those that go on are content.
    pub(super) data: usize,
}

/// Why a body cannot be told to end anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a chunk's size is no number")]
    Size,
    #[error("a chunk's extension has a byte that none may have")]
    Extension,
    #[error("extensions of more than {MOST_EXTENSIONS} bytes")]
    Extensions,
    #[error("a chunk does not end where its size says")]
    Data,
    #[error("the trailers are malformed")]
    Trailers,
    #[error("trailers of more than {MOST_TRAILERS} bytes")]
    LongTrailers,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { at: At::Size { size: 0, digits: 0 }, extensions: 0 }
    }
}

impl Chunked {
    /// Whether the body is through.
    pub(super) fn is_through(&self) -> bool {
        self.at == At::End
    }

    /// Looks at the bytes that follow those of before, as far as they can be told: at all of them,
    /// but for trailers, which are told once all of them are there, and for bytes behind the end.
    /// Once nothing passes, more bytes are needed.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<Passed, Broken> {
        let mut passed = Passed::default();
        while let Some(&byte) = bytes.get(passed.on) {
            match self.at {
                At::Size { size, digits } => match (char::from(byte).to_digit(16), byte) {
                    (Some(digit), _) if digits < 16 => {
                        let size = size << 4 | u64::from(digit);
                        self.at = At::Size { size, digits: digits + 1 };
                        passed.on += 1;
                    }
                    (None, b'\r') if digits > 0 => {
                        self.at = At::SizeEnd { size };
                        passed.on += 1;
                    }
                    (None, b';' | b' ' | b'\t') if digits > 0 => self.at = At::Extension { size },
                    _ => return Err(Broken::Size),
                },
                // Its line ends as that of a size without one.
                At::Extension { size } if byte == b'\r' => self.at = At::Size { size, digits: 16 },
                At::Extension { .. } => {
                    let rest = &bytes[passed.on..];
                    let length = rest.iter().position(|byte| !is_extension(*byte));
                    passed.out = length.unwrap_or(rest.len());
                    if length.is_some_and(|length| rest[length] != b'\r') {
                        return Err(Broken::Extension);
                    }
                    self.extensions += passed.out;
                    if self.extensions > MOST_EXTENSIONS {
                        return Err(Broken::Extensions);
                    }
                    return Ok(passed);
                }
                At::SizeEnd { size } => {
                    if byte != b'\n' {
                        return Err(Broken::Size);
                    }
                    passed.on += 1;
                    self.at = if size == 0 { At::Trailers } else { At::Data(size) };
                }
                At::Data(left) => {
                    let there = bytes.len() - passed.on;
                    let data = usize::try_from(left).map_or(there, |left| left.min(there));
                    passed.on += data;
                    passed.data += data;
                    self.at = match left - data as u64 {
                        0 => At::DataEnd { returned: false },
                        left => At::Data(left),
                    };
                }
                At::DataEnd { returned } => {
                    self.at = match (returned, byte) {
                        (false, b'\r') => At::DataEnd { returned: true },
                        (true, b'\n') => At::Size { size: 0, digits: 0 },
                        _ => return Err(Broken::Data),
                    };
                    passed.on += 1;
                }
                At::Trailers => {
                    let Some(length) = trailers(&bytes[passed.on..])? else { break };
                    passed.on += length;
                    self.at = At::End;
                }
                At::End => break,
            }
        }
        Ok(passed)
    }
}

/// What may be in an extension: anything that does not end a line (RFC 9112 §7.1.1 has tokens and
/// quoted strings).
fn is_extension(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=0x7e | 0x80..)
}

/// The length of the trailers that begin `bytes`; `None` while they have no end.
fn trailers(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let end = match bytes {
        [b'\r', b'\n', ..] => return Ok(Some(2)),
        _ => memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4),
    };
    if end.unwrap_or(bytes.len()) > MOST_TRAILERS {
        return Err(Broken::LongTrailers);
    }
    let Some(end) = end else { return Ok(None) };
    // They go on as they came, and not every reader ends a line there.
    if memchr::memchr_iter(b'\n', &bytes[..end]).any(|at| at == 0 || bytes[at - 1] != b'\r') {
        return Err(Broken::Trailers);
    }
    let mut fields = [httparse::EMPTY_HEADER; 100];
    match httparse::parse_headers(&bytes[..end], &mut fields) {
        Ok(httparse::Status::Complete((length, _))) if length == end => Ok(Some(end)),
        _ => Err(Broken::Trailers),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{
        super::oracle::{self, follow},
        *,
    };

    /// A body, mostly as it should be.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let extension = prop_oneof![
            4 => Just(String::new()),
            1 => "[; \t]([ -~]{0,8})",
        ];
        let chunk = (vec(any::<u8>(), 1..20), extension.clone(), 0..3_usize);
        let trailers =
            prop_oneof![3 => Just(String::new()), 1 => "([a-z-]{1,5}: ?[ -~]{0,5}\r\n){1,3}"];
        (vec(chunk, 0..4), extension, trailers, vec(any::<u8>(), 0..4)).prop_map(
            |(chunks, extension, trailers, behind)| {
                let mut body = Vec::new();
                for (data, extension, zeros) in chunks {
                    let zeros = "0".repeat(zeros);
                    body.extend(format!("{zeros}{:x}{extension}\r\n", data.len()).bytes());
                    body.extend(data);
                    body.extend(b"\r\n");
                }
                body.extend(format!("0{extension}\r\n{trailers}\r\n").bytes());
                body.extend(behind);
                body
            },
        )
    }

    fn in_pieces(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([bytes.len()]);
        starts.zip(ends).map(|(start, end)| bytes[start..end].to_vec()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_body_is_read_as_a_slow_reader_does(
            mut body in body(),
            cuts in vec(any::<prop::sample::Index>(), 0..5),
            change in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            if let Some((at, byte)) = change {
                let at = at.index(body.len());
                body[at] = byte;
            }
            let pieces = in_pieces(&body, &cuts);
            let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
            oracle::chunked(&pieces);
        }
    }

    #[test]
    fn chunks_go_on_as_they_came_but_for_extensions() {
        let body = b"5;a=\"b\"\r\nhello\r\n00A \r\n0123456789\r\n0\r\nx: y\r\n\r\nGET";
        let (on, data, left) = follow(&[body]).unwrap().unwrap();
        assert_eq!(on, b"5\r\nhello\r\n00A\r\n0123456789\r\n0\r\nx: y\r\n\r\n");
        assert_eq!((data, left), (15, 3));
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_broken() {
        for body in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "-1\r\n",
            "\r\n",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\0b\r\nhello\r\n0\r\n\r\n",
            "0\r\nx y: z\r\n\r\n",
            "0\r\nx: y\n\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert!(follow(&[body.as_bytes()]).is_err(), "{body:?}");
        }
    }

    #[test]
    fn what_is_without_end_is_not_held_for_ever() {
        let mut extension = b"5;".to_vec();
        extension.extend(vec![b'a'; MOST_EXTENSIONS]);
        assert_eq!(follow(&[&extension]), Err(Broken::Extensions));
        let mut trailers = b"0\r\nx: ".to_vec();
        trailers.extend(vec![b'a'; MOST_TRAILERS]);
        assert_eq!(follow(&[&trailers]), Err(Broken::LongTrailers));
    }
}
