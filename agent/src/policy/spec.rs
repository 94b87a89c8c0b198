//! What one policy says, and what is made of it once.

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    check::Checks,
    claims::{ClaimPath, TokenPrincipal},
    pattern::Pattern,
    template::Template,
};

/// What becomes of a request that a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It may pass, and what no such rule matches may not.
    #[default]
    Allow,
    /// It may not, whatever else allows it.
    Deny,
    /// It is noted.
    Audit,
    /// Somebody else is to be asked, before all others.
    Custom,
}

impl Action {
    /// As AuthorizationPolicy writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

/// What one AuthorizationPolicy says about the workloads it selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What becomes of what its rules match.
    pub action: Action,
    /// `istio.io/dry-run`: it is only told what would become of it.
    pub dry_run: bool,
    /// One of them is enough.
    pub rules: Vec<Rule>,
    /// Who is asked about what they match: of CUSTOM.
    pub provider: Option<Arc<str>>,
    /// Why it cannot be obeyed. Then nothing may pass.
    pub unreadable: Option<Box<str>>,
}

/// One rule: a source, an operation and all conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// One of them is enough; without any, everybody.
    pub from: Vec<Vec<Test>>,
    /// One of them is enough; without any, everything.
    pub to: Vec<Vec<Test>>,
    /// All of them.
    pub when: Vec<Test>,
}

/// What one attribute has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    /// `<trust domain>/ns/<namespace>/sa/<service account>`, of the client.
    Principal(Lists<Pattern>),
    /// Of the client.
    Namespace(Lists<Pattern>),
    /// Of the client.
    ServiceAccount(Lists<Account>),
    /// Of the client.
    TrustDomain(Lists<Pattern>),
    /// The address that the client has here.
    SourceIp(Lists<IpNet>),
    /// The address that the client had where it was last said in `X-Forwarded-For`.
    RemoteIp(Lists<IpNet>),
    /// Issuer and subject of the request's JWT.
    RequestPrincipal(Lists<TokenPrincipal>),
    /// What the request's JWT claims there.
    Claim(ClaimPath, Lists<Pattern>),
    /// Host or `:authority`, in small letters.
    Host(Lists<Pattern>),
    /// Such as `GET`.
    Method(Lists<Pattern>),
    /// Without the query.
    Path(Lists<PathPattern>),
    /// A header by its name, in small letters.
    Header(Box<str>, Lists<Pattern>),
    /// The workload's own.
    DestinationIp(Lists<IpNet>),
    /// The workload's own.
    DestinationPort(Lists<u16>),
    /// The name that a TLS handshake asks for. Nobody looks into those.
    Sni(Lists<Pattern>),
}

/// Values of which it has to be one, where there are any, and values of which it may be none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lists<T> {
    /// Of which it has to be one.
    pub values: Vec<T>,
    /// Of which it may be none.
    pub not_values: Vec<T>,
}

/// A service account, in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Account {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// A path as policies write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathPattern {
    /// As other texts.
    Text(Pattern),
    /// With `{*}` and `{**}`.
    Template(Template),
}

/// One AuthorizationPolicy, compiled.
#[derive(Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Policy {
    name: Arc<str>,
    spec: Spec,
    /// Those of the rules, in their order.
    pub(super) checks: Vec<Checks>,
}

/// What is kept of a policy where it is not in force.
#[derive(Serialize, Deserialize)]
struct Written {
    name: Arc<str>,
    spec: Spec,
}

impl Policy {
    /// Compiles the policy called `name`, as `namespace/name`.
    pub fn new(name: &str, spec: Spec) -> Self {
        let checks = spec.rules.iter().map(Checks::new).collect();
        Self { name: name.into(), spec, checks }
    }

    /// `namespace/name`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it says.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
}

impl From<Written> for Policy {
    fn from(Written { name, spec }: Written) -> Self {
        Self::new(&name, spec)
    }
}

impl From<Policy> for Written {
    fn from(Policy { name, spec, .. }: Policy) -> Self {
        Self { name, spec }
    }
}

impl Clone for Policy {
    fn clone(&self) -> Self {
        Self::new(&self.name, self.spec.clone())
    }
}

impl PartialEq for Policy {
    /// What is compiled follows from the rest.
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.spec) == (&other.name, &other.spec)
    }
}

impl Eq for Policy {}

impl fmt::Display for Policy {
    /// `DENY shop/order`, and what there is to know besides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spec { action, dry_run, unreadable, .. } = &self.spec;
        if let Some(why) = unreadable {
            return write!(f, "{} (cannot be read, so that nothing passes: {why})", self.name);
        }
        write!(f, "{} {}", action.as_str(), self.name)?;
        if *dry_run { f.write_str(" (dry run)") } else { Ok(()) }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("name", &self.name).field("spec", &self.spec).finish()
    }
}

impl Test {
    /// Whether it is about what only HTTP has.
    pub(super) fn is_of_http(&self) -> bool {
        match self {
            Self::RequestPrincipal(_) | Self::Claim(..)
            | Self::Host(_) | Self::Method(_) | Self::Path(_) | Self::Header(..)
            // ztunnel counts it so, which does not look into TLS either.
            | Self::Sni(_) => true,
            Self::Principal(_) | Self::Namespace(_) | Self::ServiceAccount(_)
            | Self::TrustDomain(_) | Self::SourceIp(_) | Self::RemoteIp(_)
            | Self::DestinationIp(_) | Self::DestinationPort(_) => false,
        }
    }
}
