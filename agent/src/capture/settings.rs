//! The kernel's settings that keep answers to marked packets marked.

use std::io;

use super::{network::has_v6, procfs};

/// What makes answers to marked packets marked too, and so stay on `lo` (all Linux 3.16), by its
/// path below `/proc/sys`:
/// packets of accepted sockets, and the resets of ports where nobody listens. Without the
/// latter a refused dial would only time out.
const SETTINGS: [&str; 3] =
    ["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"];

/// Which of the settings are on: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings(pub(super) u8);

impl Settings {
    /// As capture needs them.
    pub(super) const ON: Self = Self(u8::MAX);

    /// Those of the calling thread's netns. A kernel without IPv6 lacks the last.
    pub(super) fn read() -> io::Result<Self> {
        let mut on = 0;
        for (bit, name) in SETTINGS.iter().enumerate() {
            if let Some(value) = procfs::setting(name)? {
                on |= u8::from(value != "0") << bit;
            }
        }
        Ok(Self(on))
    }

    /// The names of those that are off, of the families there are.
    pub(super) fn off(self) -> impl Iterator<Item = &'static str> {
        let v6 = has_v6();
        let here =
            SETTINGS.iter().enumerate().filter(move |(_, name)| v6 || !name.contains("ipv6"));
        here.filter(move |(bit, _)| self.0 >> bit & 1 == 0).map(|(_, name)| *name)
    }

    /// Sets those that are not as `self` says. Whether there were any.
    pub(super) fn restore(self) -> io::Result<bool> {
        let Self(now) = Self::read()?;
        let mut changed = false;
        for (bit, name) in SETTINGS.iter().enumerate() {
            let on = self.0 >> bit & 1;
            if now >> bit & 1 != on && procfs::setting(name)?.is_some() {
                procfs::set(name, &on.to_string())?;
                changed = true;
            }
        }
        Ok(changed)
    }
}
