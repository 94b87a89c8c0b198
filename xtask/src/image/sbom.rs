//! What an image is made of, for scanners: CycloneDX, from cargo's own metadata.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cargo;

/// All packages of the workspace and what they depend on, for one target.
pub(crate) struct Metadata(Value);

impl Metadata {
    pub(crate) fn read(target: &str) -> anyhow::Result<Self> {
        let mut cargo = cargo::cargo();
        cargo.args(["metadata", "--format-version=1", "--locked", "--filter-platform", target]);
        let output = cargo.output().with_context(|| format!("could not run {cargo:?}"))?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).map(Self).context("cargo's metadata is no JSON")
    }

    /// The bill of materials of a program that is made of these packages of ours. What only
    /// compiles it, or tests it, is not part of it.
    pub(crate) fn bill(&self, roots: &[&str]) -> anyhow::Result<Value> {
        let Self(metadata) = self;
        let packages = by_id(&metadata["packages"])?;
        let nodes = by_id(&metadata["resolve"]["nodes"])?;
        let members = metadata["workspace_members"].as_array().context("no workspace")?;
        let mut open = Vec::new();
        for root in roots {
            let is_root =
                |id: &&str| packages.get(id).is_some_and(|package| package["name"] == *root);
            let root = members.iter().filter_map(Value::as_str).find(is_root);
            open.push(root.context("no such package in the workspace")?);
        }
        let main = open[0];
        let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        while let Some(id) = open.pop() {
            if edges.contains_key(id) {
                continue;
            }
            let node = nodes.get(id).with_context(|| format!("{id} is not resolved"))?;
            let dependencies = node["deps"].as_array().into_iter().flatten();
            let needed: BTreeSet<_> = dependencies
                .filter(|one| is_linked(one))
                .filter_map(|d| d["pkg"].as_str())
                .collect();
            open.extend(&needed);
            edges.insert(id, needed);
        }
        let reference = |id: &str| purl(packages[id]);
        let mut components: Vec<_> =
            edges.keys().filter(|id| **id != main).map(|id| component(packages[id])).collect();
        components.sort_by_key(|component| component["purl"].as_str().map(str::to_owned));
        let mut dependencies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (id, needed) in &edges {
            let needed = needed.iter().map(|id| reference(id)).collect();
            dependencies.insert(reference(id), needed);
        }
        // What the main package carries without depending on it.
        let carried = roots[1..].iter().filter_map(|root| {
            edges.keys().find(|id| packages[*id]["name"] == *root).map(|id| reference(id))
        });
        dependencies.entry(reference(main)).or_default().extend(carried);
        let dependencies: Vec<_> =
            dependencies.into_iter().map(|(of, on)| json!({"ref": of, "dependsOn": on})).collect();
        let mut subject = component(packages[main]);
        subject["type"] = json!("application");
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": subject},
            "components": components,
            "dependencies": dependencies,
        }))
    }
}

fn by_id(list: &Value) -> anyhow::Result<BTreeMap<&str, &Value>> {
    let list = list.as_array().context("cargo's metadata lacks a list")?;
    Ok(list.iter().filter_map(|one| Some((one["id"].as_str()?, one))).collect())
}

/// Whether it is a dependency of the program itself, and not of its build script or tests.
fn is_linked(dependency: &Value) -> bool {
    dependency["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
}

fn component(package: &Value) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "purl": purl(package),
    });
    if let Some(license) = package["license"].as_str() {
        // Older crates separate alternatives as cargo once asked them to.
        let expression = license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ");
        component["licenses"] = json!([{"expression": expression}]);
    }
    if let Some(repository) = package["repository"].as_str() {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}

fn purl(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().unwrap_or_default().replace('+', "%2B");
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, license: &str) -> Value {
        json!({"id": name, "name": name, "version": "1.0.0+x", "license": license})
    }

    fn needs(name: &str, kind: &Value) -> Value {
        json!({"pkg": name, "dep_kinds": [{"kind": kind}]})
    }

    #[test]
    fn a_bill_has_what_is_linked_and_what_is_carried_but_not_what_compiles_or_tests() {
        let kinds = [needs("linked", &Value::Null), needs("build", &json!("build"))];
        let metadata = Metadata(json!({
            "workspace_members": ["agent", "object"],
            "packages": [
                package("agent", "Apache-2.0"),
                package("object", "Apache-2.0"),
                package("linked", "MIT / Apache-2.0"),
                package("build", "MIT"),
            ],
            "resolve": {"nodes": [
                {"id": "agent", "deps": kinds},
                {"id": "object", "deps": []},
                {"id": "linked", "deps": []},
                {"id": "build", "deps": []},
            ]},
        }));
        let bill = metadata.bill(&["agent", "object"]).unwrap();
        assert_eq!(bill["metadata"]["component"]["name"], "agent");
        let names: Vec<_> =
            bill["components"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["linked", "object"]);
        assert_eq!(bill["components"][0]["purl"], "pkg:cargo/linked@1.0.0%2Bx");
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let agent = &bill["dependencies"][0];
        assert_eq!(agent["dependsOn"].as_array().unwrap().len(), 2, "{agent}");
    }
}
