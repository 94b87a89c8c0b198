//! Progress: a spinner on a terminal, plain lines elsewhere.

use std::{
    env,
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Something that takes a moment.
pub(crate) struct Step {
    title: &'static str,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    pub(crate) fn start(title: &'static str) -> Self {
        let spinner = (stderr().is_terminal() && env::var_os("CI").is_none()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]");
            let bar = ProgressBar::new_spinner().with_message(title);
            bar.set_style(style.expect("the template is well-formed"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { title, started: Instant::now(), spinner }
    }

    /// It is over; `outcome` in a few words.
    pub(crate) fn done(self, outcome: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        println!("• {}: {outcome} ({:.1} s)", self.title, self.started.elapsed().as_secs_f64());
    }
}
