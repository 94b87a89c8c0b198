//! The kinds of Istio's that the chart brings along: as they are in Istio's own module, which
//! `xtask/kube/istio` pins.

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};

use crate::{cargo, go};

const MODULE: &str = "istio.io/api";
const ALL: &str = "kubernetes/customresourcedefinitions.gen.yaml";
/// Where they are in the chart.
const FOLDER: &str = "deploy/chart/istio";
/// The licence that they come under.
const LICENSE: &str = "LICENSE";

/// Those that the agent obeys.
const NAMES: [&str; 3] = [
    "authorizationpolicies.security.istio.io",
    "peerauthentications.security.istio.io",
    "requestauthentications.security.istio.io",
];

/// Files of the chart that are not what the module has; with `write`, they are made that.
pub(super) fn problems(write: bool) -> anyhow::Result<Vec<String>> {
    let folder = go::files("kube/istio", MODULE)?;
    let read = |name: &str| {
        let file = folder.join(name);
        fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))
    };
    let (all, version) = (read(ALL)?, go::required("kube/istio", MODULE)?);
    let mut wanted = vec![(LICENSE.to_owned(), read(LICENSE)?)];
    for name in NAMES {
        wanted.push((format!("{name}.yaml"), file(&version, find(&all, name)?)));
    }
    let mut problems = Vec::new();
    let here = cargo::root().join(FOLDER);
    for (name, text) in &wanted {
        let file = here.join(name);
        if write {
            fs::create_dir_all(&here).with_context(|| format!("could not make {FOLDER}"))?;
            fs::write(&file, text)
                .with_context(|| format!("could not write {}", file.display()))?;
        } else if fs::read_to_string(&file).ok().as_ref() != Some(text) {
            problems.push(format!(
                "{FOLDER}/{name} is not that of {MODULE} {version} (hint: cargo xtask chart --write)"
            ));
        }
    }
    problems
        .extend(others(&here, &wanted)?.map(|name| format!("{FOLDER}/{name} is none of Istio's")));
    Ok(problems)
}

/// What else is in `folder`: the chart would bring it along.
fn others(
    folder: &PathBuf,
    wanted: &[(String, String)],
) -> anyhow::Result<impl Iterator<Item = String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("could not read {FOLDER}"))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| !wanted.iter().any(|(known, _)| known == name)))
}

fn file(version: &str, definition: &str) -> String {
    format!(
        "# From {MODULE} {version}, {ALL}, as it is there.\n# Copyright Istio Authors, under the Apache \
         License 2.0, which is beside it. Made by `cargo xtask chart --write`.\n{}\n",
        definition.trim()
    )
}

/// The document of the definition `name` among `all`.
fn find<'a>(all: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let line = format!("\n  name: {name}\n");
    let mut found = all.split("\n---\n").filter(|document| document.contains(&line));
    let document = found.next().with_context(|| format!("{MODULE} defines no {name}"))?;
    ensure!(found.next().is_none(), "{MODULE} defines {name} twice");
    // What is said before the first one is about all of them.
    Ok(document.find("apiVersion:").map_or(document, |start| &document[start..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# DO NOT EDIT\napiVersion: v1\nmetadata:\n  name: one\nspec: 1\n---\n\
                       apiVersion: v1\nmetadata:\n  name: two\nspec: 2\n";

    #[test]
    fn a_definition_is_found_by_its_name_and_copied_as_it_is() {
        assert_eq!(find(TWO, "one").unwrap(), "apiVersion: v1\nmetadata:\n  name: one\nspec: 1");
        let two = file("v1.0.0", find(TWO, "two").unwrap());
        assert!(two.ends_with("\napiVersion: v1\nmetadata:\n  name: two\nspec: 2\n"), "{two}");
        assert!(two.starts_with("# From istio.io/api v1.0.0, "), "{two}");
    }

    #[test]
    fn a_definition_that_is_not_there_or_twice_is_an_error() {
        assert!(find(TWO, "three").unwrap_err().to_string().contains("defines no three"));
        let twice = [TWO, TWO].join("---\n");
        assert!(find(&twice, "two").unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn each_is_in_the_chart_in_the_version_that_is_pinned() {
        let version = go::required("kube/istio", MODULE).unwrap();
        for name in NAMES {
            let path = cargo::root().join(FOLDER).join(format!("{name}.yaml"));
            let text = fs::read_to_string(path).unwrap();
            let start = format!("# From {MODULE} {version}, ");
            assert!(text.starts_with(&start) && text.contains(&format!("\n  name: {name}\n")));
        }
    }
}
