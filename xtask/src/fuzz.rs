//! `fuzz`: the agent's parsers, against whatever libFuzzer finds.
//!
//! Enters: which targets, and for how long. Leaves: an error that names the input which broke one.
//! `tests/fuzz` has the targets and the seeds; what is found beside those is kept in the target
//! directory, for the next run to begin with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::{cargo, needs::Purpose, setup, step::Step};

/// Where the crate is.
const CRATE: &str = "tests/fuzz";
/// What counts which ways of a program were taken: LLVM's part of libFuzzer, as cargo-fuzz asks for
/// it, without the sanitizers, which take a nightly compiler. Code without `unsafe` has no use for them.
const COUNTERS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Fuzz the agent's parsers, several at once
#[derive(Args, Debug)]
pub(crate) struct Fuzz {
    /// How long each is fuzzed
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// One target alone; its seeds are in tests/fuzz/seeds/TARGET
    target: Option<String>,
}

impl Fuzz {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        setup::run(&[Purpose::Build, Purpose::Fuzz])?;
        let all = targets()?;
        let chosen = match self.target {
            Some(target) if all.contains(&target) => vec![target],
            Some(target) => bail!("no target is called {target} (hint: {})", all.join(", ")),
            None => all,
        };
        let program = build()?;
        let step = Step::start(&format!("Fuzzing {}, {} s each", chosen.join(", "), self.seconds));
        let (waiting, red) = (Mutex::new(chosen.into_iter()), Mutex::new(Vec::new()));
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let at_once = thread::available_parallelism().context("could not count processors")?;
        thread::scope(|scope| {
            for _ in 0..at_once.get() {
                scope.spawn(|| {
                    while let Some(target) = next() {
                        if let Err(error) = fuzz(&program, &target, self.seconds) {
                            let mut red = red.lock().unwrap_or_else(PoisonError::into_inner);
                            red.push(format!("{error:#}"));
                        }
                    }
                });
            }
        });
        let red = red.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(red.is_empty(), "{}", red.join("\n       "));
        step.done();
        Ok(())
    }
}

/// Those that have seeds.
fn targets() -> anyhow::Result<Vec<String>> {
    let seeds = cargo::root().join(CRATE).join("seeds");
    let folders = fs::read_dir(&seeds).with_context(|| format!("no {}", seeds.display()))?;
    let mut names: Vec<_> =
        folders.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn build() -> anyhow::Result<PathBuf> {
    let mut cargo = cargo::cargo();
    cargo.args(["build", "--package", "sluice-fuzz", "--features", "libfuzzer"]);
    // For a named target the flags do not concern build scripts.
    cargo.args(["--profile", "fuzz", "--target", &cargo::target()]);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", COUNTERS.join("\x1f"));
    cargo::run(&mut cargo, "the build of the fuzzer")?;
    Ok(cargo::target_dir()?.join(cargo::target()).join("fuzz/sluice-fuzz"))
}

/// Fuzzes one target, and says how many inputs it was given.
fn fuzz(program: &Path, target: &str, seconds: u32) -> anyhow::Result<()> {
    let folder = cargo::target_dir()?.join("fuzzing").join(target);
    let corpus = folder.join("corpus");
    fs::create_dir_all(&corpus).with_context(|| format!("could not make {}", corpus.display()))?;
    let mut command = Command::new(program);
    command.env("FUZZ_TARGET", target).env("RUST_BACKTRACE", "0").current_dir(&folder);
    command.args([&format!("-max_total_time={seconds}"), "-print_final_stats=1", "-timeout=10"]);
    // What breaks it is tried first from then on, until it does no more.
    command.arg(format!("-artifact_prefix={}/", corpus.display()));
    command.arg(&corpus).arg(cargo::root().join(CRATE).join("seeds").join(target));
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let last: Vec<_> = said.lines().rev().take(20).collect();
        let last: String = last.iter().rev().map(|line| format!("\n    {line}")).collect();
        bail!(
            "{target} failed ({}); the input is in {} (hint: `FUZZ_TARGET={target} {} FILE` tries it \
             again):{last}",
            output.status,
            corpus.display(),
            program.display(),
        );
    }
    let inputs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    println!("{target}: {} inputs", inputs.unwrap_or_default().trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds_and_all_seeds_are_of_one() {
        let source = fs::read_to_string(cargo::root().join(CRATE).join("src/lib.rs")).unwrap();
        let (_, list) = source.split_once("TARGETS").unwrap();
        let (list, _) = list.split_once("];\n").unwrap();
        let mut named: Vec<_> =
            list.split("(\"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
        named.sort_unstable();
        assert_eq!(targets().unwrap(), named);
        for target in named {
            let seeds = cargo::root().join(CRATE).join("seeds").join(target);
            assert!(fs::read_dir(seeds).unwrap().count() > 0, "{target}");
        }
    }
}
