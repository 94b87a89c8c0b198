//! The last lines of the log, for who comes when something is wrong already.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

/// How many bytes of lines are kept.
const ROOM: usize = 256 * 1024;

/// Keeps what is logged last. Clones share one log.
#[derive(Clone, Debug, Default)]
pub struct RecentLog(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl RecentLog {
    /// The lines, oldest first.
    pub fn text(&self) -> String {
        let lines = self.lock();
        lines.lines.iter().map(|line| String::from_utf8_lossy(line)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> MakeWriter<'a> for RecentLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Each write is a line: so tracing-subscriber does it.
impl io::Write for RecentLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.lock();
        lines.bytes += line.len();
        lines.lines.push_back(line.into());
        while lines.bytes > ROOM
            && let Some(oldest) = lines.lines.pop_front()
        {
            lines.bytes -= oldest.len();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_newest_lines_stay_within_bounds() {
        let log = RecentLog::default();
        for number in 0..10_000 {
            writeln!(log.make_writer(), "{number:0100}").unwrap();
        }
        let text = log.text();
        assert!(text.len() <= ROOM && text.len() > ROOM - 200, "{}", text.len());
        assert!(text.ends_with("9999\n"));
    }
}
