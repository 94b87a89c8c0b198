//! What tests ask for and what they see, in words.

use super::{
    check::About,
    claims::{ClaimPath, Claims},
    request::{Connection, hosts_as_they_came, remote},
    spec::{Account, Lists, PathPattern, Rule, Test},
};
use crate::http::{AnyRequest, Fields};

/// What stands for what is not there.
const NONE: &str = "none";

/// What one test asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// As a source, an operation or a condition names it.
    pub(super) field: String,
    pub(super) values: Vec<String>,
    pub(super) not_values: Vec<String>,
}

impl Test {
    /// What it asks for, as part of a rule's `when` or of a source or an operation.
    pub(super) fn wanted(&self, in_when: bool) -> Wanted {
        let field = |in_clause: &str, key: &str| (if in_when { key } else { in_clause }).to_owned();
        let (field, (values, not_values)) = match self {
            Self::Principal(lists) => (field("principals", "source.principal"), words(lists)),
            Self::Namespace(lists) => (field("namespaces", "source.namespace"), words(lists)),
            Self::ServiceAccount(lists) => {
                (field("serviceAccounts", "source.serviceAccount"), words_by(lists, account))
            }
            Self::TrustDomain(lists) => (field("trustDomains", "source.trustDomain"), words(lists)),
            Self::SourceIp(lists) => (field("ipBlocks", "source.ip"), words(lists)),
            Self::RemoteIp(lists) => (field("remoteIpBlocks", "remote.ip"), words(lists)),
            Self::RequestPrincipal(lists) => {
                (field("requestPrincipals", "request.auth.principal"), words(lists))
            }
            Self::Claim(path, lists) => (claim(path), words(lists)),
            Self::Host(lists) => (field("hosts", "hosts"), words(lists)),
            Self::Method(lists) => (field("methods", "methods"), words(lists)),
            Self::Path(lists) => (field("paths", "paths"), words_by(lists, path)),
            Self::Header(name, lists) => (format!("request.headers[{name}]"), words(lists)),
            Self::DestinationIp(lists) => (field("ipBlocks", "destination.ip"), words(lists)),
            Self::DestinationPort(lists) => (field("ports", "destination.port"), words(lists)),
            Self::Sni(lists) => (field("sni", "connection.sni"), words(lists)),
        };
        Wanted { field, values, not_values }
    }

    /// What it looks at.
    pub(super) fn seen<H: AnyRequest>(
        &self,
        connection: &Connection<'_>,
        about: &About<'_, H>,
    ) -> String {
        let client = connection.principal;
        let of_client = match self {
            Self::Principal(_) => client.map(|client| client.without_scheme().to_owned()),
            Self::Namespace(_) => client.map(|client| client.namespace().to_owned()),
            Self::TrustDomain(_) => client.map(|client| client.trust_domain().to_string()),
            Self::ServiceAccount(_) => {
                client.map(|client| format!("{}/{}", client.namespace(), client.service_account()))
            }
            Self::SourceIp(_) => Some(connection.source.to_canonical().to_string()),
            Self::DestinationIp(_) => Some(connection.destination.ip().to_canonical().to_string()),
            Self::DestinationPort(_) => Some(connection.destination.port().to_string()),
            Self::RemoteIp(_) => match about {
                About::Request(request) => {
                    Some(remote(request.head, connection.source).to_string())
                }
                About::Nothing { .. } => Some(connection.source.to_canonical().to_string()),
            },
            Self::RequestPrincipal(_)
            | Self::Claim(..)
            | Self::Host(_)
            | Self::Method(_)
            | Self::Path(_)
            | Self::Header(..)
            | Self::Sni(_) => match about {
                About::Request(request) => self.seen_of(request),
                About::Nothing { may_be_http: true, .. } => Some("not known yet".to_owned()),
                About::Nothing { .. } => Some("none, for it is not HTTP".to_owned()),
            },
        };
        of_client.unwrap_or_else(|| match self {
            Self::Principal(_)
            | Self::Namespace(_)
            | Self::TrustDomain(_)
            | Self::ServiceAccount(_) => format!("{NONE}, for it is plaintext"),
            _ => NONE.to_owned(),
        })
    }

    fn seen_of<H: AnyRequest>(&self, request: &super::Request<'_, H>) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let all = |texts: Vec<String>| (!texts.is_empty()).then(|| texts.join(", "));
        match self {
            Self::RequestPrincipal(_) => request.claims.and_then(Claims::principal),
            Self::Claim(path, _) => request.claims.and_then(|claims| claims.in_words(path)),
            Self::Method(_) => Some(text(request.head.method())),
            Self::Host(_) => all(hosts_as_they_came(request.head).map(text).collect()),
            Self::Header(name, _) => all(Fields::values_of(request.head, name).map(text).collect()),
            Self::Path(_) => {
                let paths = &request.paths;
                let other = paths.strict.iter().chain(&paths.bare);
                let other: Vec<_> = other.map(|path| text(path)).collect();
                let base = text(&paths.base);
                Some(match other.is_empty() {
                    true => base,
                    false => format!("{base} (which may be read as {})", other.join(" or ")),
                })
            }
            _ => None,
        }
    }
}

impl Rule {
    /// What it asks for: `from principals a; to methods GET`.
    pub fn in_words(&self) -> String {
        let clause = |tests: &Vec<Test>| {
            let tests = tests.iter().map(|test| test.wanted(false).to_string());
            tests.collect::<Vec<_>>().join(" and ")
        };
        let mut parts = Vec::new();
        for (word, clauses) in [("from", &self.from), ("to", &self.to)] {
            if !clauses.is_empty() {
                let clauses: Vec<_> = clauses.iter().map(clause).collect();
                parts.push(format!("{word} {}", clauses.join(", or ")));
            }
        }
        if !self.when.is_empty() {
            let tests = self.when.iter().map(|test| test.wanted(true).to_string());
            parts.push(format!("when {}", tests.collect::<Vec<_>>().join(" and ")));
        }
        if parts.is_empty() { "everything".to_owned() } else { parts.join("; ") }
    }
}

impl std::fmt::Display for Wanted {
    /// `methods GET or POST, but not DELETE`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { field, values, not_values } = self;
        f.write_str(field)?;
        match (values.as_slice(), not_values.as_slice()) {
            (values, []) => write!(f, " {}", values.join(" or ")),
            ([], not) => write!(f, " not {}", not.join(" nor ")),
            (values, not) => write!(f, " {}, but not {}", values.join(" or "), not.join(" nor ")),
        }
    }
}

fn words<T: ToString>(lists: &Lists<T>) -> (Vec<String>, Vec<String>) {
    words_by(lists, T::to_string)
}

fn words_by<T>(lists: &Lists<T>, word: impl Fn(&T) -> String) -> (Vec<String>, Vec<String>) {
    let list = |list: &[T]| list.iter().map(&word).collect();
    (list(&lists.values), list(&lists.not_values))
}

fn account(account: &Account) -> String {
    format!("{}/{}", account.namespace, account.name)
}

/// The key of a condition about a claim.
fn claim(path: &ClaimPath) -> String {
    match &**path {
        [aud] if **aud == *"aud" => "request.auth.audiences".to_owned(),
        [azp] if **azp == *"azp" => "request.auth.presenter".to_owned(),
        names => format!("request.auth.claims[{}]", names.join("][")),
    }
}

fn path(path: &PathPattern) -> String {
    match path {
        PathPattern::Text(pattern) => pattern.to_string(),
        PathPattern::Template(template) => template.to_string(),
    }
}
