//! The one form of a path that is judged, and sent on.
//!
//! It is Envoy's `normalize_path`, which Istio has on by default (`pathNormalization: BASE`):
//! backslashes become slashes, segments of dots are resolved (RFC 3986 §5.2.4), also those with
//! parameters behind a semicolon, which some applications drop first, escapes of letters,
//! digits and `-._~` are undone, and what no path may hold is escaped. Applications differ over what
//! is left: whether two slashes are one, and `%2F` is one. [`strict`] is the other way to read those, and
//! [`without_parameters`] the one of applications for which `/a;b` is `/a`.

use std::borrow::Cow;

use memchr::memmem;

/// Why a path has no such form. Envoy answers those with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    /// One is never sent to a server (RFC 3986 §3.5), and applications differ over where its path ends.
    #[error("its path has a fragment")]
    Fragment,
    /// Applications differ over whether a text ends there.
    #[error("its path has a NUL")]
    Nul,
    /// What is not UTF-8 has no one way to be escaped.
    #[error("its path is not UTF-8")]
    NotUtf8,
    /// It has none of the forms of RFC 9112 §3.2. Applications make different paths of such.
    #[error("its target is neither a path nor a URL of HTTP")]
    NoTarget,
    /// It names no server, or one behind a user's name. Applications make different servers of such.
    #[error("it names its server in a way that none has")]
    NoServer,
}

/// The form of `path`, which has no query. What begins with no slash is no path, and stays as it is: `*`
/// and, of CONNECT, nothing. Others are [no target](super::target::check).
///
/// # Errors
/// Where there is none.
pub fn base(path: &[u8]) -> Result<Cow<'_, [u8]>, NoPath> {
    if !matches!(path.first(), Some(b'/' | b'\\')) || is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    let undone = undone(path)?;
    let resolved = resolved(&undone);
    Ok(if resolved == path { Cow::Borrowed(path) } else { Cow::Owned(resolved) })
}

/// How an application may read `normal` that undoes more escapes and merges slashes: Istio's
/// `DECODE_AND_MERGE_SLASHES`.
pub(super) fn strict(normal: &[u8]) -> Cow<'_, [u8]> {
    let escaped = has_escaped_slash(normal);
    if !normal.starts_with(b"/") {
        return Cow::Borrowed(normal);
    }
    if !escaped && memmem::find(normal, b"//").is_none() {
        return Cow::Borrowed(normal);
    }
    let mut path = Vec::with_capacity(normal.len());
    let mut rest = normal;
    while let Some((&byte, after)) = rest.split_first() {
        match rest {
            [b'%', b'2', b'F' | b'f', after @ ..] | [b'%', b'5', b'C' | b'c', after @ ..] => {
                path.push(b'/');
                rest = after;
            }
            _ => {
                path.push(byte);
                rest = after;
            }
        }
    }
    if escaped {
        path = resolved(&path);
    }
    path.dedup_by(|next, former| *next == b'/' && *former == b'/');
    Cow::Owned(path)
}

/// How an application reads `path` that takes what is behind a semicolon for parameters of its segment,
/// as servlets do; `None` where nothing is.
pub(super) fn without_parameters(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b';', path)?;
    let bare: Vec<_> = path.split(|byte| *byte == b'/').map(bare).collect();
    Some(bare.join(&b'/'))
}

/// A segment without its parameters.
fn bare(segment: &[u8]) -> &[u8] {
    memchr::memchr(b';', segment).map_or(segment, |at| &segment[..at])
}

/// Whether `text`, of a policy, speaks of how a path is written rather than of what it leads to.
pub(super) fn is_verbatim(text: &str) -> bool {
    text.contains("//") || has_escaped_slash(text.as_bytes())
}

fn has_escaped_slash(path: &[u8]) -> bool {
    memchr::memchr_iter(b'%', path)
        .any(|at| matches!(path[at + 1..], [b'2', b'F' | b'f', ..] | [b'5', b'C' | b'c', ..]))
}

/// Whether nothing is to be done about a path, as about most.
fn is_plain(path: &[u8]) -> bool {
    let plain = |byte: &u8| must_not_be_escaped(*byte) && !matches!(byte, b'%' | b'\\');
    path.iter().all(plain) && memmem::find(path, b"/.").is_none()
}

/// With each escape that is none of its path's meaning undone, and what has to be escaped so.
fn undone(path: &[u8]) -> Result<Vec<u8>, NoPath> {
    str::from_utf8(path).map_err(|_| NoPath::NotUtf8)?;
    let mut undone = Vec::with_capacity(path.len() + 16);
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            0 => return Err(NoPath::Nul),
            b'#' => return Err(NoPath::Fragment),
            b'\\' => undone.push(b'/'),
            b'%' => match escaped(rest) {
                Some(0) => return Err(NoPath::Nul),
                Some(
                    byte @ (b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~'),
                ) => {
                    undone.push(byte);
                    rest = &rest[2..];
                }
                // One that is none goes on as it is, as in Envoy.
                _ => undone.push(b'%'),
            },
            byte if must_not_be_escaped(byte) => undone.push(byte),
            byte => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                undone.extend_from_slice(&[b'%', high, low]);
            }
        }
    }
    Ok(undone)
}

/// The byte of an escape, by what follows its percent sign.
fn escaped(rest: &[u8]) -> Option<u8> {
    let [high, low, ..] = rest else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

/// As Envoy's table has it: what stays as it is in a path. An escape's percent sign is dealt with apart.
fn must_not_be_escaped(byte: u8) -> bool {
    matches!(byte, b'!' | b'$'..=b';' | b'=' | b'@'..=b'[' | b']' | b'_' | b'a'..=b'z' | b'~')
}

/// Without segments of dots.
fn resolved(path: &[u8]) -> Vec<u8> {
    let mut resolved = Vec::with_capacity(path.len());
    resolved.push(b'/');
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        match bare(segment) {
            b"." => {}
            b".." => {
                resolved.pop();
                let parent = memchr::memrchr(b'/', &resolved).map_or(0, |slash| slash + 1);
                resolved.truncate(parent);
                if resolved.is_empty() {
                    resolved.push(b'/');
                }
            }
            _ => {
                resolved.extend_from_slice(segment);
                if segments.peek().is_some() {
                    resolved.push(b'/');
                }
            }
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(path: &str) -> String {
        match base(path.as_bytes()) {
            Ok(path) => String::from_utf8(path.into_owned()).unwrap(),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn a_path_has_the_form_that_envoy_gives_it() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a//b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a//../b", "/a/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/.hidden/...", "/.hidden/..."),
            ("/a\\..\\b", "/b"),
            ("\\a", "/a"),
            ("/%61dmin%2D", "/admin-"),
            ("/a%2Fb%2fc%5Cd", "/a%2Fb%2fc%5Cd"),
            ("/a%2Fb/..", "/"),
            ("/a/..;x=1/b", "/b"),
            ("/a/.;/b", "/a/b"),
            ("/a/%2e%2e;/b", "/b"),
            ("/a\\..;\\b", "/b"),
            ("/a;/...;/b", "/a;/...;/b"),
            ("/a/..%3b/b", "/a/..%3b/b"),
            ("/a%20b%zz%", "/a%20b%zz%"),
            ("/a\"b<c>d{e}f|g^h`i", "/a%22b%3Cc%3Ed%7Be%7Df%7Cg%5Eh%60i"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/a;b=c,d!e$f&g'h(i)j*k+l:m@n[o]p", "/a;b=c,d!e$f&g'h(i)j*k+l:m@n[o]p"),
            ("/a#b", "Fragment"),
            ("/a%23b", "/a%23b"),
            ("/a%00b", "Nul"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(normal(path), expected, "{path}");
        }
        assert_eq!(base(b"/caf\xe9"), Err(NoPath::NotUtf8));
        assert_eq!(base(b"/a\0"), Err(NoPath::Nul));
    }

    #[test]
    fn nothing_is_copied_of_a_path_that_has_its_form() {
        for path in ["/", "/api/v1/items", "/a%20b/c", "/a//b", "/.well-known/x"] {
            assert!(matches!(base(path.as_bytes()), Ok(Cow::Borrowed(_))), "{path}");
        }
        assert!(matches!(strict(b"/api/v1/items"), Cow::Borrowed(_)));
    }

    #[test]
    fn read_strictly_escaped_slashes_are_slashes_and_several_are_one() {
        for (path, expected) in [
            ("/a//b", "/a/b"),
            ("//a", "/a"),
            ("/a%2fb", "/a/b"),
            ("/a%5C..%2F/b", "/b"),
            ("/public/..%2Fadmin", "/admin"),
            ("/a%252Fb", "/a%252Fb"),
        ] {
            assert_eq!(strict(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }

    #[test]
    fn parameters_are_what_is_behind_a_semicolon_in_each_segment() {
        let bare = |path: &str| without_parameters(path.as_bytes());
        assert_eq!(bare("/a;b=c/d;e").unwrap(), b"/a/d");
        assert_eq!(bare("/;a/").unwrap(), b"//");
        assert_eq!(bare("/a/b"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_form_has_itself_as_its_form(path in "/([a./;\\\\]|%2[eEfF5]|%5c|%zz|\"){0,12}") {
            let once = base(path.as_bytes()).unwrap().into_owned();
            // What is left of `%252e` is not undone once more: it is no escape of a dot.
            prop_assert_eq!(&*base(&once).unwrap(), &once[..]);
            let segments = once.split(|byte| *byte == b'/');
            prop_assert!(segments.clone().all(|segment| segment != b"." && segment != b".."));
            let strictly = strict(&once);
            prop_assert!(!strictly.windows(2).any(|two| two == b"//"));
            prop_assert_eq!(strict(&strictly), strictly.clone());
        }
    }
}
