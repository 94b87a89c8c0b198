//! The namespace whose policies hold for the whole mesh.

use std::{fmt, str::FromStr, sync::Arc};

/// Istio's root namespace: what is said there without a selector is said for every namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootNamespace(Arc<str>);

/// Text that no namespace can have as its name.
#[derive(Debug, thiserror::Error)]
#[error("not the name of a namespace (hint: lower-case letters, digits and `-`, at most 63)")]
pub struct InvalidNamespace;

impl RootNamespace {
    /// The namespace's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RootNamespace {
    /// Istio's default.
    fn default() -> Self {
        Self("istio-system".into())
    }
}

impl fmt::Display for RootNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RootNamespace {
    type Err = InvalidNamespace;

    /// Accepts DNS-1123 labels, as Kubernetes does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
        let dashed = text.starts_with('-') || text.ends_with('-');
        if text.is_empty() || text.len() > 63 || dashed || !text.chars().all(legal) {
            return Err(InvalidNamespace);
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_namespace_is_called_is_refused() {
        assert_eq!("mesh-root".parse::<RootNamespace>().unwrap().as_str(), "mesh-root");
        for text in ["", "-a", "a-", "Mesh", "a.b", "a/b", &"a".repeat(64)] {
            assert!(text.parse::<RootNamespace>().is_err(), "{text:?} was accepted");
        }
    }
}
