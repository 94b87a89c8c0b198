//! Values that match nobody.

use super::{Checked, Wrong};
use crate::{
    config::{error::nearest, validate::read::Read},
    policy::Template,
};

/// The trust domain that stands for the mesh's own in policies.
const OWN: &str = "cluster.local";

fn is_pattern(text: &str) -> bool {
    text.starts_with('*') || text.ends_with('*')
}

fn did_you_mean(near: Option<&str>) -> Option<String> {
    near.map(|near| format!("did you mean `{near}`?"))
}

pub(super) fn principal(read: &Read<'_>, text: &str) -> Option<Wrong> {
    if let Some(rest) = text.strip_prefix("spiffe://") {
        let what = format!("`{text}` matches nobody: principals are written without a scheme");
        return Some((what, Some(format!("`{rest}`"))));
    }
    if is_pattern(text) {
        return None;
    }
    let parts: Vec<_> = text.split('/').collect();
    let [domain, "ns", namespace, "sa", account] = parts[..] else {
        let what = format!("`{text}` matches nobody: it is no principal");
        let hint = match parts[..] {
            [namespace, account] => format!("`{OWN}/ns/{namespace}/sa/{account}`"),
            _ => "<trust domain>/ns/<namespace>/sa/<service account>".to_owned(),
        };
        return Some((what, Some(hint)));
    };
    let own = read.settings.trust_domain.as_str();
    if domain != OWN && domain != own {
        return None;
    }
    runs_as(read, namespace, account)
}

pub(super) fn account(read: &Read<'_>, own: &str, text: &str) -> Option<Wrong> {
    let (namespace, account) = text.split_once('/').unwrap_or((own, text));
    runs_as(read, namespace, account)
}

/// The complaint where no pod of what was read is `account` of `namespace`, although others are of it.
fn runs_as(read: &Read<'_>, namespace: &str, account: &str) -> Option<Wrong> {
    let there = || read.runners.iter().filter(|runner| runner.namespace == namespace);
    if there().next().is_none() {
        return self::namespace(read, namespace);
    }
    if there().any(|runner| runner.account == account) {
        return None;
    }
    let what = format!(
        "matches nobody that was read: no pod of namespace {namespace} runs as service account {account}"
    );
    let mut accounts: Vec<_> = there().map(|runner| runner.account).collect();
    accounts.sort_unstable();
    accounts.dedup();
    let hint = did_you_mean(nearest(account, accounts.iter().copied()))
        .unwrap_or_else(|| format!("those there run as {}", accounts.join(", ")));
    Some((what, Some(hint)))
}

pub(super) fn namespace(read: &Read<'_>, text: &str) -> Option<Wrong> {
    if text.contains('*') {
        return None;
    }
    if text.contains('/') {
        let what = format!("`{text}` matches nobody: it is no namespace");
        return Some((what, Some("`principals` and `serviceAccounts` say who in it".to_owned())));
    }
    let known = read.namespaces();
    if known.contains(text) {
        return None;
    }
    // Others than those that were read may be there.
    let near = nearest(text, known.iter().copied())?;
    let what = format!("matches nobody that was read: nothing is of namespace `{text}`");
    Some((what, did_you_mean(Some(near))))
}

pub(super) fn method(text: &str) -> Option<Wrong> {
    if text.bytes().any(|byte| matches!(byte, b',' | b' ' | b'|')) {
        let what = format!("`{text}` matches nothing: it is no method");
        return Some((what, Some("one method for each item of the list".to_owned())));
    }
    text.bytes().any(|byte| byte.is_ascii_lowercase()).then(|| {
        let what = format!("`{text}` is not the method that clients use: methods regard case");
        (what, Some(format!("`{}`", text.to_ascii_uppercase())))
    })
}

pub(super) fn path(text: &str) -> Option<Wrong> {
    if text.contains("://") {
        let what = format!("`{text}` matches nothing: it is a URL");
        return Some((
            what,
            Some("`hosts` has the server, `paths` what comes behind it".to_owned()),
        ));
    }
    if !text.starts_with(['/', '*']) && !text.starts_with("{*") {
        let what = format!("`{text}` matches nothing: paths begin with a slash");
        return Some((what, Some(format!("`/{text}`"))));
    }
    if text.contains('?') {
        let what = format!("`{text}` matches nothing: what is behind a `?` is no part of a path");
        let hint = text.split('?').next().map(|path| format!("`{path}`"));
        return Some((what, hint));
    }
    if Template::is_one(text) || text == "*" {
        return None;
    }
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
    inner.contains('*').then(|| {
        let what =
            format!("`{text}` has a star that stands for itself: one at an end alone does not");
        (what, Some("`{*}` stands for one segment, `{**}` at the end for any number".to_owned()))
    })
}

pub(super) fn host(checked: &Checked<'_, '_>, text: &str) -> Option<Wrong> {
    let read = checked.read;
    if text.contains('/') {
        let what = format!("`{text}` matches nothing: it is no host");
        return Some((what, Some("`paths` has what comes behind it".to_owned())));
    }
    if is_pattern(text) || read.facts.services.is_empty() {
        return None;
    }
    let (server, port) = match text.rsplit_once(':') {
        Some((server, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (server, Some(port))
        }
        _ => (text, None),
    };
    let (name, namespace) = service_of(checked, &server.to_ascii_lowercase())?;
    match read.service(&namespace, &name) {
        None => {
            let there = read.facts.services.keys().filter(|(of, _)| **of == *namespace);
            let near = nearest(&name, there.map(|(_, name)| &**name));
            let what = format!("`{text}` is the host of no Service that was read");
            Some((what, did_you_mean(near)))
        }
        // Clients leave out the port that the scheme has anyway.
        Some(service) if port.is_none() => {
            let ports: Vec<_> = service.ports.iter().map(|port| port.number).collect();
            let first = ports.first().filter(|_| !ports.contains(&80))?;
            let what = format!(
                "`{text}` is not what clients send: behind the host of Service {namespace}/{name} they \
                 say its port, as in `{text}:{first}`"
            );
            Some((what, Some(format!("hosts: [\"{text}\", \"{text}:*\"]"))))
        }
        Some(_) => None,
    }
}

/// The name and the namespace of the Service that `host` would be; `None` where it may be anybody's.
fn service_of(checked: &Checked<'_, '_>, host: &str) -> Option<(String, String)> {
    let mut parts = host.trim_end_matches('.').split('.');
    let name = parts.next()?.to_owned();
    let namespace = parts.next();
    let rest: Vec<_> = parts.collect();
    let namespace = match (namespace, rest.as_slice()) {
        (None, _) => checked.policy.namespace(),
        (Some(namespace), ["svc"] | ["svc", "cluster", "local"]) => namespace,
        (Some(namespace), []) if checked.read.namespaces().contains(namespace) => namespace,
        _ => return None,
    };
    Some((name, namespace.to_owned()))
}
