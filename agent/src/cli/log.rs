//! Log options, the same for every command that keeps running.

use anyhow::Context;
use clap::{Args, ValueEnum};
use tracing_subscriber::{
    EnvFilter, fmt::writer::MakeWriterExt, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::{
    admin::RecentLog,
    log::{Form, Limit, Short},
};

#[derive(Args, Debug)]
pub(super) struct Log {
    /// What to log: a level, or levels by module as in `info,sluice::capture=debug`
    #[arg(long = "log", env = "SLUICE_LOG", value_name = "FILTER", default_value = "info")]
    filter: String,

    /// Form of the log lines
    #[arg(long = "log-format", env = "SLUICE_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Log {
    /// Sends what is logged from here on to stderr, and keeps the last of it.
    pub(super) fn to_stderr(&self) -> anyhow::Result<RecentLog> {
        let Self { filter, format } = self;
        let filter = EnvFilter::builder().parse(filter).with_context(|| {
            format!("`{filter}` is no log filter (hint: `debug`, or `info,sluice::capture=debug`)")
        })?;
        let recent = RecentLog::default();
        let both = std::io::stderr.and(recent.clone());
        let log = tracing_subscriber::fmt().with_env_filter(filter);
        let limit = Limit::start().context("could not start the log's thread")?;
        match format {
            Format::Text => {
                let log = log.with_writer(Short::new(both, Form::Text)).with_ansi(false);
                log.finish().with(limit).init();
            }
            Format::Json => {
                log.with_writer(Short::new(both, Form::Json)).json().finish().with(limit).init();
            }
        }
        Ok(recent)
    }
}
