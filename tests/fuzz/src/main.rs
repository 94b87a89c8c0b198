//! libFuzzer, on the target that `FUZZ_TARGET` names.

#![no_main]

use std::{env, process::exit, sync::OnceLock};

use sluice_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

/// The target, or the end where none is named.
fn target() -> Target {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    let named = TARGETS.iter().find(|(other, _)| *other == name);
    named.map(|(_, target)| *target).unwrap_or_else(|| {
        eprintln!("FUZZ_TARGET names no target: {name:?} (hint: cargo xtask fuzz)");
        exit(2)
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.get_or_init(target)(bytes));
