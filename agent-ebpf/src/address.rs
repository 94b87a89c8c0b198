//! Addresses as the programs' contexts have them.

use agent_common::Address;

/// An IPv4 address, given as the context's network-order word, as IPv4-mapped IPv6.
#[inline(always)]
pub fn v4(word: u32) -> Address {
    of_words([0, 0, u32::to_be(0xffff), word])
}

/// The four network-order words of an IPv6 address as an address.
#[inline(always)]
pub fn of_words(words: [u32; 4]) -> Address {
    // SAFETY: both are sixteen plain bytes, and network order is the order of an address.
    unsafe { core::mem::transmute(words) }
}

/// Reads the four words of the IPv6 address that is the array `$field` of `$context`.
///
/// A macro, and word by word: the verifier allows only 4-byte reads of these fields at offsets
/// it sees as constants. A function over a pointer, or a loop, gets its offset computed.
macro_rules! read_v6 {
    ($context:expr, $field:ident) => {
        [
            (&raw const (*$context).$field[0]).read_volatile(),
            (&raw const (*$context).$field[1]).read_volatile(),
            (&raw const (*$context).$field[2]).read_volatile(),
            (&raw const (*$context).$field[3]).read_volatile(),
        ]
    };
}
pub(crate) use read_v6;

/// 127.0.0.0/8, also as IPv4-mapped IPv6, and ::1.
#[inline(always)]
pub fn is_loopback(address: &Address) -> bool {
    is_v4(address) && address[12] == 127
        || *address == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
}

/// 0.0.0.0, also as IPv4-mapped IPv6, and ::, which connect() takes for loopback.
#[inline(always)]
pub fn is_unspecified(address: &Address) -> bool {
    *address == [0; 16] || is_v4(address) && address[12..] == [0; 4]
}

/// Whether the address is an IPv4 one.
#[inline(always)]
fn is_v4(address: &Address) -> bool {
    address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}
