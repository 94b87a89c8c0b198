//! Names of objects that live in a namespace.

use std::{fmt, str::FromStr};

/// A Secret, a ConfigMap or a service account, written `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

/// Text that is no [`NamespacedName`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` does not read namespace/name (hint: sluice-system/sluice-ca)")]
pub struct InvalidName(String);

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for NamespacedName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(InvalidName(text.escape_debug().to_string())),
        }
    }
}
