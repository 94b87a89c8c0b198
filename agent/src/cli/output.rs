//! Answers on the terminal, and the forms they can have.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Output {
    Text,
    Json,
}

impl Output {
    /// Prints `answer` in this form.
    pub(super) fn print(self, answer: &(impl Display + Serialize)) -> anyhow::Result<()> {
        match self {
            Self::Text => print(&answer.to_string()),
            Self::Json => print(&(serde_json::to_string_pretty(answer)? + "\n")),
        }
    }
}

/// Prints `text`. Whoever reads it may stop when it has enough, as `head` does.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("could not write to standard output"),
    }
}
