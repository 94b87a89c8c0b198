//! What a process prints, as it prints it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, PipeReader, Write},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{sync::watch, time::timeout};

/// How many lines are kept; the lab's log file has all.
const KEPT: usize = 20_000;

/// The lines of a process, which can be awaited.
#[derive(Clone, Debug)]
pub struct Output {
    state: watch::Receiver<State>,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    ended: bool,
}

impl Output {
    /// Reads `pipe` to its end, into `log` too.
    pub(crate) fn follow(pipe: PipeReader, mut log: File) -> Self {
        let (sender, state) = watch::channel(State::default());
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                // The log is for people; a full disk must not stop the process that writes.
                let _ = writeln!(log, "{line}");
                sender.send_modify(|state| {
                    if state.lines.len() == KEPT {
                        state.lines.pop_front();
                    }
                    state.lines.push_back(line);
                });
            }
            sender.send_modify(|state| state.ended = true);
        });
        Self { state }
    }

    /// Waits for a line that `wanted` accepts, among those printed before too.
    ///
    /// # Errors
    /// When there is none after `at_most`, or the process ends without it.
    pub async fn line(
        &self,
        at_most: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        let mut state = self.state.clone();
        let find = |state: &State| state.lines.iter().find(|line| wanted(line)).cloned();
        let state = timeout(at_most, state.wait_for(|s| s.ended || find(s).is_some())).await;
        let found = match &state {
            Ok(Ok(state)) => find(state),
            _ => None,
        };
        drop(state);
        match found {
            Some(line) => Ok(line),
            None => bail!("the awaited line was not printed; the last were\n{}", self.tail(20)),
        }
    }

    /// Waits until the process and all that inherited its output have ended.
    pub(crate) async fn end(&self, at_most: Duration) -> anyhow::Result<()> {
        let mut state = self.state.clone();
        let ended = timeout(at_most, state.wait_for(|state| state.ended)).await;
        ended.map(drop).with_context(|| format!("still at work; it printed\n{}", self.tail(20)))
    }

    /// Whether the process and all that inherited its output have ended.
    pub fn has_ended(&self) -> bool {
        self.state.borrow().ended
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.state.borrow().lines.iter().cloned().collect()
    }

    /// The last lines as one text.
    pub fn tail(&self, lines: usize) -> String {
        let state = self.state.borrow();
        let skipped = state.lines.len().saturating_sub(lines);
        state.lines.iter().skip(skipped).map(|line| format!("{line}\n")).collect()
    }
}
