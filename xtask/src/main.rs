//! `cargo xtask`: every chore of the project.
//!
//! Enters: arguments. Leaves: child processes, mostly cargo's, and one exit code. Kept small in
//! dependencies, since it is compiled before anything else on a fresh machine.

mod apt;
mod arch;
mod cargo;
mod chart;
mod cli;
mod cross;
#[cfg(test)]
mod documents;
mod ebpf;
mod fuzz;
mod go;
mod image;
mod install;
mod kube;
mod lint;
mod needs;
mod setup;
mod step;
mod vm;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
