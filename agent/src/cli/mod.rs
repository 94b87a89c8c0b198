//! The command line: options in, one exit code out.
//!
//! Enters: arguments and environment. Leaves: a running [`crate::node`] or [`crate::ca`], or
//! text on the terminal. An error is one line that says what was tried and a hint, never a
//! backtrace.

mod agent;
mod bugreport;
mod ca;
mod check;
mod duration;
mod explain;
mod log;
mod mesh_view;
mod output;
mod policy;
mod status;
#[cfg(test)]
mod tests;
mod uninstall;
mod validate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A node agent for a sidecarless service mesh: eBPF capture, mTLS between nodes, L4 and L7
/// traces over OTLP.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(Box<agent::Agent>),
    Bugreport(bugreport::Bugreport),
    Ca(Box<ca::Ca>),
    Check(check::Check),
    Explain(Box<explain::Explain>),
    Policy(policy::Policy),
    Status(status::Status),
    Uninstall(uninstall::Uninstall),
    Validate(validate::Validate),
}

/// Runs the command the arguments ask for.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Agent(agent) => agent.run(),
        Command::Bugreport(report) => report.run(),
        Command::Ca(ca) => ca.run(),
        Command::Check(check) => check.run(),
        Command::Explain(explain) => explain.run(),
        Command::Policy(policy) => policy.run(),
        Command::Status(status) => status.run(),
        Command::Uninstall(uninstall) => uninstall.run(),
        Command::Validate(validate) => validate.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
