//! Schemas of Kubernetes' kinds, made of the OpenAPI document in its own module.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::objects::Objects;

const REFERENCE: &str = "#/definitions/";
/// What YAML may hold as a number too.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// Where kubeconform finds what [`write`] wrote.
pub(super) fn location(folder: &Path) -> PathBuf {
    folder.join("{{.Group}}.{{.ResourceAPIVersion}}.{{.ResourceKind}}.json")
}

/// Writes a schema of each kind that occurs in `all`. `kubernetes` is the folder of its module.
pub(super) fn write(kubernetes: &Path, all: &[Objects], folder: &Path) -> anyhow::Result<()> {
    let file = kubernetes.join("api/openapi-spec/swagger.json");
    let text = fs::read(&file).with_context(|| format!("could not read {}", file.display()))?;
    let document: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no OpenAPI document", file.display()))?;
    let definitions =
        document["definitions"].as_object().context("the OpenAPI document defines nothing")?;
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    let kinds: BTreeMap<_, _> =
        all.iter().flat_map(Objects::kinds).map(|kind| (kind, ())).collect();
    for (version, kind) in kinds.into_keys() {
        // A kind that is not there has no schema, which kubeconform tells.
        let Some(name) = definition_of(definitions, &version, &kind) else { continue };
        let file = folder.join(file_of(&version, &kind));
        fs::write(&file, schema(definitions, name).to_string())
            .with_context(|| format!("could not write {}", file.display()))?;
    }
    Ok(())
}

fn file_of(version: &str, kind: &str) -> String {
    let (group, version) = version.split_once('/').unwrap_or((version, version));
    format!("{group}.{version}.{}.json", kind.to_lowercase())
}

/// The name of the definition of a kind.
fn definition_of<'a>(
    definitions: &'a Map<String, Value>,
    version: &str,
    kind: &str,
) -> Option<&'a String> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let wanted = json!([{"group": group, "kind": kind, "version": version}]);
    let mut all = definitions.iter();
    all.find(|(_, definition)| definition["x-kubernetes-group-version-kind"] == wanted)
        .map(|(name, _)| name)
}

/// A schema of the definition `name`, with all that it refers to.
fn schema(definitions: &Map<String, Value>, name: &str) -> Value {
    let mut needed = vec![name.to_owned()];
    let mut closed = Map::new();
    while let Some(name) = needed.pop() {
        if closed.contains_key(&name) {
            continue;
        }
        let mut definition = definitions.get(&name).cloned().unwrap_or(Value::Bool(false));
        if name == QUANTITY {
            definition = json!({"type": ["string", "number"]});
        }
        close(&mut definition, &mut needed);
        closed.insert(name, definition);
    }
    json!({"$ref": format!("{REFERENCE}{name}"), "definitions": closed})
}

/// Lets no object have fields that it is not said to have, and adds what is referred to to
/// `needed`.
fn close(schema: &mut Value, needed: &mut Vec<String>) {
    let Value::Object(fields) = schema else { return };
    if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
        fields.insert("additionalProperties".into(), Value::Bool(false));
    }
    if fields.get("format").is_some_and(|format| format == "int-or-string") {
        fields.insert("type".into(), json!(["string", "integer"]));
    }
    if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
        needed.extend(name.strip_prefix(REFERENCE).map(str::to_owned));
    }
    for (name, value) in fields {
        match name.as_str() {
            "properties" => {
                let properties = value.as_object_mut().into_iter().flatten();
                properties.for_each(|(_, property)| close(property, needed));
            }
            "items" | "additionalProperties" => close(value, needed),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Map<String, Value> {
        let document = json!({
            "Pod": {
                "x-kubernetes-group-version-kind": [{"group": "", "kind": "Pod", "version": "v1"}],
                "type": "object",
                "properties": {"spec": {"$ref": "#/definitions/Spec"}},
            },
            "Spec": {
                "type": "object",
                "properties": {
                    "port": {"type": "string", "format": "int-or-string"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
            "Other": {"type": "object"},
        });
        document.as_object().unwrap().clone()
    }

    #[test]
    fn a_schema_holds_what_it_refers_to_and_lets_no_other_field_in() {
        let document = document();
        let name = definition_of(&document, "v1", "Pod").unwrap();
        let schema = schema(&document, name);
        let definitions = schema["definitions"].as_object().unwrap();
        assert_eq!(definitions.keys().collect::<Vec<_>>(), ["Pod", "Spec"]);
        assert_eq!(definitions["Pod"]["additionalProperties"], json!(false));
        assert_eq!(definitions["Spec"]["additionalProperties"], json!(false));
        let properties = &definitions["Spec"]["properties"];
        assert_eq!(properties["port"]["type"], json!(["string", "integer"]));
        assert_eq!(properties["labels"]["additionalProperties"], json!({"type": "string"}));
    }

    #[test]
    fn a_kind_is_found_by_group_and_version() {
        assert!(definition_of(&document(), "apps/v1", "Pod").is_none());
        assert_eq!(file_of("v1", "Pod"), "v1.v1.pod.json");
        assert_eq!(file_of("apps/v1", "DaemonSet"), "apps.v1.daemonset.json");
    }
}
