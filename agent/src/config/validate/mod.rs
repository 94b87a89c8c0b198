//! Judges Kubernetes YAML that nobody has put in force yet.
//!
//! Enters: files, directories, standard input. Leaves: a [`Report`] of what cannot be obeyed, by the reader
//! of [`super::files`], and of what can be and is probably not meant. It asks no server: what is not among
//! the files is not known, and nothing is said about it.

mod authorization;
mod foreign;
mod inputs;
mod peer_authentication;
mod read;
mod report;
mod rules;
mod services;
#[cfg(test)]
mod tests;
mod walk;

use std::path::PathBuf;

pub use inputs::InputError;
pub(in crate::config) use inputs::files;
pub use report::{Finding, Report, Severity};

use super::{
    MeshSettings, compile::Compiler, directory::File, error::Problem, manifest::Manifests,
    template::Template,
};
use read::Read;

/// Judges what is in `paths`: files, directories, and `-` for standard input. `strict` is as an agent judges
/// its directory, where nothing may be that it does not obey.
///
/// # Errors
/// Where a path leads nowhere.
pub fn validate(
    paths: &[PathBuf],
    settings: &MeshSettings,
    strict: bool,
) -> Result<Report, InputError> {
    let mut problems = Vec::new();
    let files = files(paths, &mut problems)?;
    Ok(judge(&files, settings, strict, problems))
}

fn judge(
    files: &[File],
    settings: &MeshSettings,
    strict: bool,
    mut problems: Vec<Problem>,
) -> Report {
    let manifests = Manifests::read(files, &mut problems);
    let mut compiler = Compiler::new(settings.clone());
    compiler.replace(manifests.facts(settings, &mut problems));
    compiler.compile();
    let conflicts = compiler.conflicts();
    problems.extend(conflicts.iter().map(|conflict| manifests.conflict(conflict)));
    if strict {
        problems.extend(manifests.foreign.iter().map(|foreign| foreign.problem.clone()));
    }
    let templates: Vec<_> = manifests.foreign.iter().filter_map(Template::of).collect();
    let read = Read::new(&manifests, &templates, compiler.facts(), settings);
    let mut warnings = Vec::new();
    authorization::check(&read, &mut warnings);
    peer_authentication::check(&read, &mut warnings);
    services::check(&read, &mut warnings);
    foreign::check(&read, strict, &mut warnings);
    Report::new(files.len(), &read, problems, warnings)
}
