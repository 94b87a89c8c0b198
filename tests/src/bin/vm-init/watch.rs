//! An eye on the tests: if they do not end, they are killed, and it is said what they waited for.

use std::{
    fs,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Watches a program until dropped.
pub(crate) struct Watch {
    _ends: mpsc::Sender<()>,
}

impl Watch {
    pub(crate) fn over(program: Pid, at_most: Duration) -> Self {
        let (ends, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            if ended.recv_timeout(at_most) == Err(RecvTimeoutError::Timeout) {
                println!(
                    "error: not over after {} minutes; killed. Threads:",
                    at_most.as_secs() / 60
                );
                tell_of_threads();
                let _ = kill(program, Signal::SIGKILL);
            }
        });
        Self { _ends: ends }
    }
}

/// Where every thread waits in the kernel: of programs all, of the kernel's own those that cannot
/// be interrupted, for one of them may hold up the others.
fn tell_of_threads() {
    for process in numbered("/proc") {
        let of_kernel = fs::read(format!("{process}/cmdline")).is_ok_and(|line| line.is_empty());
        for thread in numbered(&format!("{process}/task")) {
            let read = |name: &str| {
                let text = fs::read_to_string(format!("{thread}/{name}")).unwrap_or_default();
                text.trim_end().to_owned()
            };
            // `NUMBER (NAME) STATE …`
            let stat = read("stat");
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            let Some(state) = state else { continue };
            if of_kernel && state != 'D' {
                continue;
            }
            println!("{thread} {} {state} syscall {}", read("comm"), read("syscall"));
            for line in read("stack").lines().take(8) {
                println!("    {line}");
            }
        }
    }
}

/// The entries of a folder that are named by a number.
fn numbered(folder: &str) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut numbers: Vec<u32> =
        names.filter_map(|name| name.to_str().and_then(|name| name.parse().ok())).collect();
    numbers.sort_unstable();
    numbers
        .iter()
        .map(|number| Path::new(folder).join(number.to_string()).display().to_string())
        .collect()
}
