//! Programs in Go that others wrote, built from their modules into the cache: those of a cluster, and
//! those that judge HTTP. Also files of such modules.
//!
//! Each folder of `xtask/kube`, and `xtask/conformance`, is a Go module that names programs as its
//! tools, with the checksums of all they are made of. What is built from it is kept under a name that
//! holds the digest of that folder, so a change builds again and nothing else does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{cargo, image::Digest, needs, step::Step};

/// A module.
struct Module {
    /// Its folder in `xtask`.
    folder: &'static str,
    /// What is built: the module's tools, or its own program.
    package: &'static str,
    /// The one program, when there is one: Go would name it after the last part of its path.
    program: Option<&'static str>,
    /// A module whose version its programs are told, and the variables that hold it.
    version: Option<(&'static str, &'static [&'static str])>,
    minutes: &'static str,
}

const KUBE: [Module; 7] = [
    Module {
        folder: "kube/kubernetes",
        package: "tool",
        program: None,
        version: Some(("k8s.io/kubernetes", &["k8s.io/component-base/version.gitVersion"])),
        minutes: "6 minutes",
    },
    Module {
        folder: "kube/etcd",
        package: "tool",
        program: Some("etcd"),
        version: None,
        minutes: "a minute",
    },
    Module {
        folder: "kube/containerd",
        package: "tool",
        program: None,
        version: Some((
            "github.com/containerd/containerd/v2",
            &["github.com/containerd/containerd/v2/version.Version"],
        )),
        minutes: "2 minutes",
    },
    Module {
        folder: "kube/coredns",
        package: ".",
        program: Some("coredns"),
        version: None,
        minutes: "a minute",
    },
    Module {
        folder: "kube/kube-router",
        package: ".",
        program: Some("kube-router"),
        version: None,
        minutes: "2 minutes",
    },
    Module {
        folder: "kube/helm",
        package: "tool",
        program: Some("helm"),
        version: Some(("helm.sh/helm/v4", &["helm.sh/helm/v4/internal/version.version"])),
        minutes: "a minute",
    },
    Module {
        folder: "kube/kubeconform",
        package: "tool",
        program: Some("kubeconform"),
        version: None,
        minutes: "a minute",
    },
];

/// What judges HTTP in the end-to-end tests.
const CONFORMANCE: Module = Module {
    folder: "conformance",
    package: "tool",
    program: None,
    version: None,
    minutes: "2 minutes",
};

/// Builds what is not in the cache of a cluster's programs. Returns the folders of all of them.
pub(crate) fn kube() -> anyhow::Result<Vec<PathBuf>> {
    KUBE.iter().map(Module::programs).collect()
}

/// Builds what judges HTTP, if it is not in the cache. Returns the folder.
pub(crate) fn conformance() -> anyhow::Result<PathBuf> {
    CONFORMANCE.programs()
}

/// Builds the one program of a folder of `xtask`, if it is not in the cache.
pub(crate) fn program(folder: &str) -> anyhow::Result<PathBuf> {
    let module = KUBE.iter().find(|module| module.folder == folder);
    let module = module.with_context(|| format!("xtask has no {folder}"))?;
    let program = module.program.with_context(|| format!("{folder} is several programs"))?;
    Ok(module.programs()?.join(program))
}

/// The files of `module` in the version that a folder of `xtask` requires, where Go keeps them.
pub(crate) fn files(folder: &str, module: &str) -> anyhow::Result<PathBuf> {
    let mut command = go()?;
    command.args(["mod", "download", "-json", module]);
    command.current_dir(source(folder));
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match said["Dir"].as_str() {
        Some(folder) if output.status.success() => Ok(folder.into()),
        _ => bail!(
            "could not get the files of {module}: {}{}",
            said["Error"].as_str().unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// The version of `module` that a folder of `xtask` requires.
pub(crate) fn required(folder: &str, module: &str) -> anyhow::Result<String> {
    version(&source(folder), module)
}

/// The Go to use: the one that is there.
fn go() -> anyhow::Result<Command> {
    let go = needs::go().context("no Go of this machine fits (hint: cargo xtask setup)")?;
    let mut command = Command::new(go);
    command.env("GOTOOLCHAIN", "local").env("GOWORK", "off").env_remove("GOFLAGS");
    Ok(command)
}

impl Module {
    fn programs(&self) -> anyhow::Result<PathBuf> {
        let source = source(self.folder);
        let built = needs::cache().join(format!("{}-{}", self.folder, key(&source)?));
        if built.is_dir() {
            return Ok(built);
        }
        let name = self.folder.trim_start_matches("kube/");
        let step = Step::start(&format!("Building {name} ({} on 2 cores)", self.minutes));
        // Under another name until it is complete.
        let partial = built.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)
            .with_context(|| format!("could not make {}", partial.display()))?;
        step.run(&mut self.build(&source, &partial)?)?;
        fs::rename(&partial, &built)
            .with_context(|| format!("could not make {}", built.display()))?;
        step.done();
        Ok(built)
    }

    fn build(&self, source: &Path, into: &Path) -> anyhow::Result<Command> {
        let mut linker = "-s -w".to_owned();
        if let Some((module, variables)) = self.version {
            let version = version(source, module)?;
            for variable in variables {
                linker += &format!(" -X {variable}={version}");
            }
        }
        // A folder, for Go, when it ends with a slash.
        let output = format!("{}/{}", into.display(), self.program.unwrap_or_default());
        let mut command = go()?;
        command.args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly"]);
        command.args(["-ldflags", &linker, "-o", &output, self.package]).current_dir(source);
        // Without C, programs need no libraries.
        command.env("CGO_ENABLED", "0");
        Ok(command)
    }
}

/// A folder of `xtask`.
fn source(folder: &str) -> PathBuf {
    cargo::root().join("xtask").join(folder)
}

/// The beginning of the digest of a module's files.
fn key(source: &Path) -> anyhow::Result<String> {
    let entries = fs::read_dir(source);
    let entries = entries.with_context(|| format!("could not read {}", source.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        all.extend(file.file_name().unwrap_or_default().as_encoded_bytes());
        all.extend(fs::read(&file).with_context(|| format!("could not read {}", file.display()))?);
    }
    Ok(Digest::of(&all).hex()[..12].to_owned())
}

/// The version of `module` that a `go.mod` requires.
fn version(source: &Path, module: &str) -> anyhow::Result<String> {
    let file = source.join("go.mod");
    let text =
        fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
    let found = text.lines().find_map(|line| {
        let mut words = line.trim_start_matches("require").split_whitespace();
        (words.next() == Some(module)).then(|| words.next().map(str::to_owned))?
    });
    found.with_context(|| format!("{} requires no {module}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_there_with_its_checksums_and_version() {
        for module in KUBE.iter().chain([&CONFORMANCE]) {
            let source = source(module.folder);
            assert!(source.join("go.sum").is_file(), "{}", module.folder);
            if let Some((required, _)) = module.version {
                assert!(version(&source, required).unwrap().starts_with('v'));
            }
        }
    }
}
