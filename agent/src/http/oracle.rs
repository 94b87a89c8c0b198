//! What is said of first bytes and targets, held against what can be said of them in few words. For
//! tests and fuzzers, as `h1/oracle.rs`.

use super::{
    sniff::{Sniff, sniff},
    target::Target,
};

/// That more bytes never change a verdict on the first ones.
///
/// # Panics
/// When they do.
pub(crate) fn verdict_stays(bytes: &[u8]) {
    let mut verdict = Sniff::Undecided;
    for end in 0..=bytes.len() {
        let next = sniff(&bytes[..end]);
        assert!(verdict == Sniff::Undecided || next == verdict, "{verdict:?}, then {next:?}");
        verdict = next;
    }
}

/// That a request's target is taken apart in the one way there is.
///
/// # Panics
/// When it is not.
pub(crate) fn target_is_right(method: &[u8], target: &[u8]) {
    let Target { scheme, authority, path, query } = Target::of(method, target);
    if method == b"CONNECT" {
        assert_eq!((scheme, authority, path, query), (None, Some(target), &b""[..], None));
        return;
    }
    // All of it is there, in its order.
    let mut whole = Vec::new();
    if let (Some(scheme), Some(authority)) = (scheme, authority) {
        whole.extend([scheme, b"://", authority].concat());
    }
    whole.extend(path);
    query.iter().for_each(|query| whole.extend([b"?", *query].concat()));
    assert_eq!(whole, target);
    assert!(!path.contains(&b'?'));
    // What begins as `scheme://` has both, and nothing else has one of them.
    let slashes = target.windows(3).position(|three| three == b"://");
    let absolute = slashes.map(|at| &target[..at]).filter(|before| {
        let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        before.first().is_some_and(u8::is_ascii_alphabetic) && before.iter().all(is_scheme)
    });
    assert_eq!((scheme, authority.is_some()), (absolute, absolute.is_some()));
    let authority = authority.unwrap_or_default();
    assert!(!authority.iter().any(|byte| b"/?#".contains(byte)));
    let follows = absolute.is_none() || matches!(path, [] | [b'/' | b'#', ..]);
    assert!(follows, "the authority ends too early");
}
