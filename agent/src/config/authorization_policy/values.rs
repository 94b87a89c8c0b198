//! The values in a policy's lists.

use std::net::IpAddr;

use http::HeaderName;
use ipnet::IpNet;

use crate::{
    mesh::TrustDomain,
    policy::{Account, ClaimPath, PathPattern, Pattern, Template},
};

/// The trust domain that stands for the mesh's own in policies, whatever that is called.
const OWN_TRUST_DOMAIN: &str = "cluster.local";

/// What is wrong with a value.
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) hint: String,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }

    fn of(text: &str, what: &str, hint: &str) -> Self {
        Self::new(format!("`{}` {what}", text.escape_debug()), hint)
    }
}

pub(super) fn text(text: &str) -> Result<Pattern, Wrong> {
    Ok(Pattern::of(text))
}

pub(super) fn glob(text: &str) -> Result<Pattern, Wrong> {
    Ok(Pattern::glob(text))
}

/// As Istio's `ReplaceTrustDomainAliases` has it.
pub(super) fn principal(text: &str, trust_domain: &TrustDomain) -> Pattern {
    match text.split_once('/') {
        Some((OWN_TRUST_DOMAIN, rest)) if rest.matches('/').count() == 3 => {
            Pattern::of(&format!("{trust_domain}/{rest}"))
        }
        _ => Pattern::of(text),
    }
}

pub(super) fn trust_domain(text: &str) -> Result<Pattern, Wrong> {
    let star_within = text.trim_start_matches('*').trim_end_matches('*').contains('*');
    if text.contains('/') || star_within || (text.matches('*').count() > 1) {
        let hint = "such as cluster.local, with one star at the beginning or at the end";
        return Err(Wrong::of(text, "is no trust domain", hint));
    }
    Ok(Pattern::of(text))
}

/// Without a namespace, one of the policy's own, `namespace`.
pub(super) fn account(text: &str, namespace: &str) -> Result<Account, Wrong> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') || text.contains('*') {
        let hint = "its name, or its namespace, a slash and its name; no star";
        return Err(Wrong::of(text, "is no service account", hint));
    }
    Ok(Account { namespace: namespace.into(), name: name.into() })
}

pub(super) fn block(text: &str) -> Result<IpNet, Wrong> {
    let block = match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse().ok().map(|ip: IpAddr| IpNet::from(ip)),
    };
    block.ok_or_else(|| {
        Wrong::of(text, "is no block of addresses", "such as 203.0.113.4 or 203.0.113.0/24")
    })
}

pub(super) fn port(text: &str) -> Result<u16, Wrong> {
    text.parse()
        .map_err(|_| Wrong::of(text, "is not a port", "1 to 65535, a port of the workload itself"))
}

pub(super) fn path(text: &str) -> Result<PathPattern, Wrong> {
    if Template::is_one(text) {
        return Template::parse(text).map(PathPattern::Template).map_err(|why| {
            let hint = "`{*}` is one segment, and `{**}`, the last operator, any number of them";
            Wrong::of(text, why, hint)
        });
    }
    if text.contains(['{', '}']) {
        return Err(Wrong::of(text, "has a brace", "the operators are `{*}` and `{**}`"));
    }
    Ok(PathPattern::Text(Pattern::of(text)))
}

/// The name of a header, in small letters.
pub(super) fn header(name: &str) -> Result<Box<str>, Wrong> {
    if name.starts_with(':') {
        let hint = "operations have hosts, methods and paths";
        return Err(Wrong::of(name, "is no header", hint));
    }
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(name.as_str().into()),
        Err(_) => {
            Err(Wrong::of(name, "is not the name of a header", "such as request.headers[x-team]"))
        }
    }
}

/// Names in brackets, one behind the other; as Istio has it, what is none of those is one name.
pub(super) fn claim(brackets: &str) -> ClaimPath {
    let whole = brackets.strip_prefix('[').and_then(|names| names.strip_suffix(']'));
    let whole = whole.unwrap_or(brackets);
    let names: Vec<_> = whole.split("][").collect();
    match names.iter().any(|name| name.contains(['[', ']'])) {
        true => [whole.into()].into(),
        false => names.into_iter().map(Into::into).collect(),
    }
}
