//! `chart`: whether the Helm chart, and the manifests made from it, are right.
//!
//! Enters: `deploy/chart`. Leaves: `deploy/manifests`, and an error that names everything that is
//! wrong. The chart is rendered with values that users change (`cases.rs`); what comes out is
//! checked against the schemas of Kubernetes (`schemas.rs`), and object against object
//! (`objects.rs`, and `agreement.rs` and `rights.rs` for what is Sluice's own). Istio's kinds in it are
//! compared with Istio's own (`crds.rs`). Nothing is asked of
//! a network once the programs are built.

mod agreement;
mod cases;
mod crds;
mod helm;
mod objects;
mod rights;
mod schemas;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use clap::Args;

use self::{
    cases::{CASES, Case, REFUSED},
    helm::Helm,
    objects::Objects,
};
use crate::{cargo, go, needs::Purpose, setup, step::Step};

const CHART: &str = "deploy/chart";
const MANIFESTS: &str = "deploy/manifests/sluice.yaml";
const SAMPLE: &str = "deploy/sample/kubernetes.yaml";
const SECURITY: &str = "docs/security.md";

/// Check the Helm chart and the manifests made from it
#[derive(Args, Debug)]
pub(crate) struct Chart {
    /// Write the manifests anew instead of comparing them
    #[arg(long)]
    write: bool,
}

impl Chart {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        setup::run(&[Purpose::Build, Purpose::Go])?;
        let helm = Helm::new(go::program("kube/helm")?, cargo::root().join(CHART));
        let kubeconform = go::program("kube/kubeconform")?;
        let folder = cargo::target_dir()?.join("chart");
        let step = Step::start("Checking the chart");
        let mut problems = crds::problems(self.write)?;
        problems.extend(helm.lint()?);
        problems.extend(versions()?);
        let security = read(&cargo::root().join(SECURITY))?;

        let _ = fs::remove_dir_all(&folder);
        let mut rendered = vec![(SAMPLE.to_owned(), read(&cargo::root().join(SAMPLE))?)];
        if let Ok(text) = helm.render(&Case::DEFAULTS)? {
            rendered.push((MANIFESTS.to_owned(), plain(&text)));
        }
        for case in &CASES {
            match helm.render(case)? {
                Ok(text) => {
                    problems.extend(case.surprises(&text));
                    rendered.push((case.name.to_owned(), text));
                }
                Err(said) => problems.push(format!("{}: helm refuses it: {said}", case.name)),
            }
        }
        for refused in &REFUSED {
            problems.extend(refused.surprise(&helm.render(&refused.case())?));
        }
        let mut all = Vec::new();
        // Most of what is wrong is so in every case.
        let mut found_in: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (name, text) in &rendered {
            let objects = Objects::read(text).with_context(|| name.clone())?;
            let mut found = objects.problems();
            if name != SAMPLE {
                found.extend(agreement::problems(&objects));
                found.extend(rights::problems(&objects, &security));
            }
            for problem in BTreeSet::from_iter(found) {
                found_in.entry(problem).or_default().push(name);
            }
            all.push(objects);
        }
        problems.extend(found_in.into_iter().map(|(problem, cases)| match &cases[1..] {
            [] => format!("{}: {problem}", cases[0]),
            others => format!("{} and {} others: {problem}", cases[0], others.len()),
        }));
        let kubernetes = go::files("kube/kubernetes", "k8s.io/kubernetes")?;
        schemas::write(&kubernetes, &all, &folder.join("schemas"))?;
        problems.extend(conform(&kubeconform, &folder, &rendered)?);
        problems.extend(self.manifests(&helm)?);
        if !problems.is_empty() {
            bail!("the chart is not right:\n  {}", problems.join("\n  "));
        }
        step.done();
        println!(
            "{} combinations of values render, {} are refused, {MANIFESTS} is theirs",
            CASES.len(),
            REFUSED.len()
        );
        Ok(())
    }

    /// Compares the manifests with the chart's, or makes them those.
    fn manifests(&self, helm: &Helm) -> anyhow::Result<Option<String>> {
        let Ok(text) = helm.render(&Case::DEFAULTS)? else { return Ok(None) };
        let text = plain(&text);
        let file = cargo::root().join(MANIFESTS);
        if self.write {
            fs::write(&file, text)
                .with_context(|| format!("could not write {}", file.display()))?;
            return Ok(None);
        }
        let differs = fs::read_to_string(&file).ok().as_ref() != Some(&text);
        Ok(differs.then(|| {
            format!("{MANIFESTS} is not what the chart renders (hint: cargo xtask chart --write)")
        }))
    }
}

/// What is rendered, for `kubectl apply`: with its namespace, and without what is Helm's.
fn plain(rendered: &str) -> String {
    let mut text = format!(
        "# The chart's objects with its defaults, made by `cargo xtask chart --write`.\n\
         apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}\n  labels:\n    \
         # The agent is in the node's pid namespace and mounts folders of the node.\n    \
         pod-security.kubernetes.io/enforce: privileged\n",
        Case::DEFAULTS.namespace
    );
    for line in rendered.lines() {
        let is_helms = ["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "];
        if !line.is_empty() && !is_helms.iter().any(|start| line.trim_start().starts_with(start)) {
            text += line;
            text.push('\n');
        }
    }
    text
}

/// The chart and the image it installs have the workspace's version.
fn versions() -> anyhow::Result<Vec<String>> {
    let version = env!("CARGO_PKG_VERSION");
    let text = read(&cargo::root().join(CHART).join("Chart.yaml"))?;
    let expected = [format!("version: {version}"), format!("appVersion: \"{version}\"")];
    let missing = expected.into_iter().filter(|line| !text.lines().any(|one| one == line));
    Ok(missing.map(|line| format!("{CHART}/Chart.yaml has no line `{line}`")).collect())
}

/// What Kubernetes' own schemas say.
fn conform(
    kubeconform: &Path,
    folder: &Path,
    rendered: &[(String, String)],
) -> anyhow::Result<Vec<String>> {
    let files = folder.join("rendered");
    fs::create_dir_all(&files).with_context(|| format!("could not make {}", files.display()))?;
    for (name, text) in rendered {
        let file = files.join(format!("{}.yaml", name.replace(['/', ' '], "-")));
        fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))?;
    }
    let mut command = Command::new(kubeconform);
    command.args(["-strict", "-schema-location"]).arg(schemas::location(&folder.join("schemas")));
    let output = command.arg(&files).output();
    let output = output.with_context(|| format!("could not run {command:?}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let folder = format!("{}/", files.display());
    let lines: Vec<_> = said.lines().map(|line| line.replace(&folder, "")).collect();
    if output.status.success() == lines.is_empty() {
        return Ok(lines);
    }
    bail!("kubeconform ended with {} and said {lines:?}", output.status)
}

fn read(file: &PathBuf) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))
}
