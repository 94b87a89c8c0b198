//! An object as it arrives, readable or not.

use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::de::{DeserializeOwned, Error};
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

impl<K: DeserializeOwned + Metadata<Ty = ObjectMeta>> Arrival<K> {
    /// An object that has the form of its kind.
    pub(super) fn of(object: K) -> serde_json::Result<Self> {
        let meta = object.metadata();
        let name = meta.name.clone().ok_or_else(nameless)?;
        let (namespace, version) = (meta.namespace.clone(), meta.resource_version.clone());
        Ok(Self { namespace: namespace.unwrap_or_default(), name, version, object: Ok(object) })
    }

    /// An object that may have any form.
    pub(super) fn of_any(value: Value) -> serde_json::Result<Self> {
        let text = |field: &str| value["metadata"][field].as_str().map(str::to_owned);
        let name = text("name").ok_or_else(nameless)?;
        let (namespace, version) = (text("namespace"), text("resourceVersion"));
        let selector = value["spec"]["selector"].clone();
        let object = serde_path_to_error::deserialize(value).map_err(|error| {
            let why = format!("{}: {}", error.path(), error.inner());
            Unfit { why, selector }
        });
        Ok(Self { namespace: namespace.unwrap_or_default(), name, version, object })
    }
}

fn nameless() -> serde_json::Error {
    Error::custom("an object without name")
}
