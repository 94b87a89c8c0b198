//! Addresses as the programs' contexts have them.

use agent_common::Address;

/// An IPv4 address, given as the context's network-order word, as IPv4-mapped IPv6.
#[inline(always)]
pub fn v4(word: u32) -> Address {
    let [a, b, c, d] = word.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// An IPv6 address, given as the context's network-order words.
///
/// # Safety
/// `words` must point at the four words of an address in a program's context.
#[inline(always)]
pub unsafe fn v6(words: *const u32) -> Address {
    let mut address = [0; 16];
    let mut word = 0;
    while word < 4 {
        // Volatile, word by word: the verifier allows only 4-byte reads of these fields, and the
        // compiler would otherwise merge two of them.
        // SAFETY: `words` has four elements, by the caller's promise.
        let bytes = unsafe { words.add(word).read_volatile() }.to_ne_bytes();
        let mut byte = 0;
        while byte < 4 {
            address[4 * word + byte] = bytes[byte];
            byte += 1;
        }
        word += 1;
    }
    address
}

/// 127.0.0.0/8, also as IPv4-mapped IPv6, and ::1.
#[inline(always)]
pub fn is_loopback(address: &Address) -> bool {
    is_v4(address) && address[12] == 127
        || *address == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
}

/// Whether the address is an IPv4 one.
#[inline(always)]
pub fn is_v4(address: &Address) -> bool {
    let prefix = [address[0], address[1], address[2], address[3], address[4], address[5]];
    let middle = [address[6], address[7], address[8], address[9], address[10], address[11]];
    prefix == [0; 6] && middle == [0, 0, 0, 0, 0xff, 0xff]
}
