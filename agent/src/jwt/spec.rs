//! What one RequestAuthentication says, and what is made of it once.

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderName;
use serde::{Deserialize, Serialize};

use super::{keys::KeySet, locations::Locations};

/// What one RequestAuthentication says about the workloads it selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Each about the tokens of an issuer.
    pub rules: Vec<Rule>,
    /// Why it cannot be obeyed. Then no request may pass: nobody knows where its tokens are.
    pub unreadable: Option<Box<str>>,
}

/// Which tokens are good, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What `iss` has to be; empty for anything.
    pub issuer: Box<str>,
    /// Of which one has to be in `aud`, where there are any.
    pub audiences: Vec<Box<str>>,
    /// By what it is signed.
    pub keys: KeySource,
    /// Fields that have a token.
    pub from_headers: Vec<HeaderLocation>,
    /// Parameters of the query that have one.
    pub from_params: Vec<Box<str>>,
    /// Cookies that have one.
    pub from_cookies: Vec<Box<str>>,
    /// The token goes on to the application.
    pub forward: bool,
    /// The field that has the payload for the application, in small letters.
    pub payload_header: Option<Box<str>>,
    /// Fields that have a claim for it.
    pub claim_headers: Vec<ClaimHeader>,
    /// Claims that are lists, with spaces between, beside `scope` and `permission`.
    pub space_delimited: Vec<Box<str>>,
    /// Requests without a token by this rule are refused.
    pub required: bool,
}

/// A field that has a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderLocation {
    /// In small letters.
    pub name: Box<str>,
    /// What is before the token; empty where nothing is.
    pub prefix: Box<str>,
}

/// A field that has a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimHeader {
    /// In small letters.
    pub header: Box<str>,
    /// Its name; a dot leads into it.
    pub claim: Box<str>,
}

/// Where keys are from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeySource {
    /// A JSON Web Key Set.
    Inline(Box<str>),
    /// A server.
    Remote(RemoteSource),
}

/// A server that has keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteSource {
    /// Where they are, or the issuer who says where (OpenID Connect Discovery 1.0 §4).
    pub uri: Box<str>,
    /// Whether it is the issuer.
    pub discovers: bool,
    /// How long the server may take.
    pub timeout: Duration,
}

/// One RequestAuthentication, compiled.
#[derive(Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct RequestAuthentication {
    name: Arc<str>,
    spec: Spec,
    /// Those of the rules, in their order.
    pub(super) providers: Vec<Provider>,
}

/// What is kept of one where it is not in force.
#[derive(Serialize, Deserialize)]
struct Written {
    name: Arc<str>,
    spec: Spec,
}

/// A rule, compiled.
pub(super) struct Provider {
    pub(super) locations: Locations,
    pub(super) keys: Keys,
    /// As Envoy compares them.
    pub(super) audiences: Vec<Box<str>>,
    pub(super) payload_header: Option<HeaderName>,
    pub(super) claim_headers: Vec<(HeaderName, Box<str>)>,
}

/// The keys of a rule.
pub(super) enum Keys {
    Inline(Arc<KeySet>),
    Remote(RemoteSource),
    /// Those that are written are none: nothing is signed by them.
    None,
}

impl RequestAuthentication {
    /// Compiles the one called `name`, as `namespace/name`.
    pub fn new(name: &str, spec: Spec) -> Self {
        let providers = spec.rules.iter().map(Provider::new).collect();
        Self { name: name.into(), spec, providers }
    }

    /// `namespace/name`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it says.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The servers that have keys for it.
    pub fn sources(&self) -> impl Iterator<Item = &RemoteSource> {
        self.spec.rules.iter().filter_map(|rule| match &rule.keys {
            KeySource::Remote(source) => Some(source),
            KeySource::Inline(_) => None,
        })
    }
}

impl Provider {
    fn new(rule: &Rule) -> Self {
        let header = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
        Self {
            locations: Locations::new(rule),
            keys: match &rule.keys {
                KeySource::Inline(text) => KeySet::parse(text.as_bytes())
                    .map_or(Keys::None, |set| Keys::Inline(set.into())),
                KeySource::Remote(source) => Keys::Remote(source.clone()),
            },
            audiences: rule.audiences.iter().map(|text| bare(text).into()).collect(),
            payload_header: rule.payload_header.as_deref().and_then(header),
            claim_headers: rule
                .claim_headers
                .iter()
                .filter_map(|one| Some((header(&one.header)?, one.claim.clone())))
                .collect(),
        }
    }

    /// Whether it is for tokens of which one is for `audiences`.
    pub(super) fn is_for<'a>(&self, mut audiences: impl Iterator<Item = &'a str>) -> bool {
        self.audiences.is_empty()
            || audiences.any(|audience| self.audiences.iter().any(|own| **own == *bare(audience)))
    }

    /// The fields that it writes.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header.iter().chain(self.claim_headers.iter().map(|(name, _)| name))
    }
}

/// An audience without the scheme of a URL and the slash at its end, by which Envoy does not tell them
/// apart.
fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

impl From<Written> for RequestAuthentication {
    fn from(Written { name, spec }: Written) -> Self {
        Self::new(&name, spec)
    }
}

impl From<RequestAuthentication> for Written {
    fn from(RequestAuthentication { name, spec, .. }: RequestAuthentication) -> Self {
        Self { name, spec }
    }
}

impl Clone for RequestAuthentication {
    fn clone(&self) -> Self {
        Self::new(&self.name, self.spec.clone())
    }
}

impl PartialEq for RequestAuthentication {
    /// What is compiled follows from the rest.
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.spec) == (&other.name, &other.spec)
    }
}

impl Eq for RequestAuthentication {}

impl fmt::Display for RequestAuthentication {
    /// `shop/order`, and what there is to know besides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.spec.unreadable {
            Some(why) => write!(f, " (cannot be read, so that no request passes: {why})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for RequestAuthentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RequestAuthentication");
        debug.field("name", &self.name).field("spec", &self.spec).finish()
    }
}
