//! An object as it arrives, readable or not.

use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// One object of a list or watch. One that does not have the form of its kind is an error of this
/// object, not of the list it is in.
#[derive(Clone, Debug)]
pub(super) struct Arrival<K> {
    pub(super) namespace: String,
    pub(super) name: String,
    /// `metadata.resourceVersion`: how far the watch has come.
    pub(super) version: Option<String>,
    /// The object; or the field that does not fit and why.
    pub(super) object: Result<K, Unfit>,
}

/// An object that does not have the form of its kind.
#[derive(Clone, Debug)]
pub(super) struct Unfit {
    /// The field that does not fit and why.
    pub(super) why: String,
    /// `spec.selector`, by which some kinds say whom they are about.
    pub(super) selector: Value,
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
        let (namespace, name) = (text("namespace").unwrap_or_default().to_owned(), name.to_owned());
        let version = text("resourceVersion").map(str::to_owned);
        let selector = value["spec"]["selector"].clone();
        let object = serde_path_to_error::deserialize(value).map_err(|error| {
            let why = format!("{}: {}", error.path(), error.inner());
            Unfit { why, selector }
        });
        Ok(Self { namespace, name, version, object })
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
        assert_eq!((arrival.namespace.as_str(), arrival.name.as_str()), ("shop", "a"));
        assert_eq!(arrival.version.as_deref(), Some("7"));
        let why = arrival.object.unwrap_err().why;
        assert_eq!(why, "status.podIPs[0].ip: invalid type: integer `7`, expected a string");
    }
}
