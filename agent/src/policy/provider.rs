//! External authorizers, as MeshConfig names them: who is asked about what the rules of CUSTOM policies
//! match. How they are asked is not for this room.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// All of them by their names; of one that cannot be obeyed, why.
pub type Providers = BTreeMap<Arc<str>, Result<Arc<Provider>, Arc<str>>>;

/// One authorizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// The namespace and name of its Service.
    pub service: (Box<str>, Box<str>),
    /// The Service's name as it was written, which it is addressed by.
    pub host: Box<str>,
    /// The Service's port.
    pub port: u16,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// Whether a request may pass where nothing is heard of it.
    pub fail_open: bool,
    /// What a client is answered otherwise.
    pub status_on_error: u16,
    /// What it speaks.
    pub speaks: Speaks,
}

/// How an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speaks {
    /// By a call of `envoy.service.auth.v3.Authorization`.
    Grpc,
    /// By a request like the one that is asked about.
    Http(Box<OverHttp>),
}

/// What such a request has of the one that is asked about, and what is taken of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverHttp {
    /// Comes before the path.
    pub path_prefix: Box<str>,
    /// Fields that it has of it.
    pub include: Names,
    /// Fields that it has besides.
    pub additional: Vec<(Box<str>, Box<str>)>,
    /// Fields of an answer that allows which the application gets.
    pub to_upstream_on_allow: Names,
    /// Fields of one that denies which the client gets; where none is named, all.
    pub to_downstream_on_deny: Names,
    /// Fields of one that allows which the client gets.
    pub to_downstream_on_allow: Names,
}

/// Names of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names(Vec<NamePattern>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum NamePattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
}

impl Names {
    /// As they are written: exact, `prefix*` or `*suffix`, without regard to case.
    ///
    /// # Errors
    /// With one that would stand for all.
    pub fn new(written: &[String]) -> Result<Self, &'static str> {
        let pattern = |name: &String| {
            let name = name.to_ascii_lowercase();
            match (name.strip_prefix('*'), name.strip_suffix('*')) {
                (Some(""), _) => {
                    Err("a single star is no name (hint: a prefix or suffix with one)")
                }
                (Some(suffix), _) => Ok(NamePattern::Suffix(suffix.into())),
                (None, Some(prefix)) => Ok(NamePattern::Prefix(prefix.into())),
                (None, None) => Ok(NamePattern::Exact(name.into())),
            }
        };
        written.iter().map(pattern).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `name`, in small letters, is one of them.
    pub fn contain(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            NamePattern::Exact(exact) => **exact == *name,
            NamePattern::Prefix(prefix) => name.starts_with(&**prefix),
            NamePattern::Suffix(suffix) => name.ends_with(&**suffix),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact_or_begin_or_end_alike_without_regard_to_case() {
        let names = ["X-User", "x-auth-*", "*-Token"].map(str::to_owned);
        let names = Names::new(&names).unwrap();
        for (name, is_one) in [
            ("x-user", true),
            ("x-user-id", false),
            ("x-auth-", true),
            ("x-auth-groups", true),
            ("x-token", true),
            ("x-token-id", false),
        ] {
            assert_eq!(names.contain(name), is_one, "{name}");
        }
        assert!(Names::new(&["*".to_owned()]).unwrap_err().contains("single star"));
    }
}
