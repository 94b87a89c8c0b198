//! An object as it arrives, readable or not.

use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::config::compile::Key;

/// One object of a list or watch. One that does not have the form of its kind is an error of this
/// object, not of the list it is in.
#[derive(Clone, Debug)]
pub(super) struct Arrival<K> {
    /// Namespace and name.
    pub(super) key: Key,
    /// `metadata.resourceVersion`: how far the watch has come.
    pub(super) version: Option<String>,
    /// The object; or the field that does not fit and why.
    pub(super) object: Result<K, String>,
}

impl<'de, K> Deserialize<'de> for Arrival<K>
where
    K: DeserializeOwned + Metadata<Ty = ObjectMeta>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = |field: &str| value["metadata"][field].as_str();
        let name =
            text("name").ok_or_else(|| serde::de::Error::custom("an object without name"))?;
        let key = (text("namespace").unwrap_or_default().into(), name.into());
        let version = text("resourceVersion").map(str::to_owned);
        let object = serde_path_to_error::deserialize(value)
            .map_err(|error| format!("{}: {}", error.path(), error.inner()));
        Ok(Self { key, version, object })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn an_object_that_does_not_fit_is_named_with_its_field() {
        let text = r#"{"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"},
            "status": {"podIPs": [{"ip": 7}]}}"#;
        let arrival: Arrival<Pod> = serde_json::from_str(text).unwrap();
        assert_eq!(arrival.key, ("shop".into(), "a".into()));
        assert_eq!(arrival.version.as_deref(), Some("7"));
        let why = arrival.object.unwrap_err();
        assert_eq!(why, "status.podIPs[0].ip: invalid type: integer `7`, expected a string");
    }
}
