//! What Istio makes of an AuthorizationPolicy for Envoy, as its `pilot/pkg/security/authz` has it.

use serde_json::{Value, json};

use super::jwt;

const TYPES: &str = "type.googleapis.com/envoy";

/// The configuration of an RBAC filter for the policies of one action.
pub(super) fn rules(action: &str, policies: &[Value]) -> Value {
    let mut rules = serde_json::Map::new();
    for (at, spec) in policies.iter().enumerate().filter(|(_, spec)| action_of(spec) == action) {
        let all = spec["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (number, one) in all.iter().enumerate() {
            rules.insert(format!("policy[{at}]-rule[{number}]"), rule(one));
        }
        if all.is_empty() {
            let never = json!({
                "permissions": [{"not_rule": {"any": true}}],
                "principals": [{"not_id": {"any": true}}],
            });
            rules.insert(format!("policy[{at}]"), never);
        }
    }
    let is_asked = policies.iter().any(|spec| action_of(spec) == action);
    let rules = is_asked.then(|| json!({"action": action, "policies": rules}));
    json!({
        "@type": format!("{TYPES}.extensions.filters.http.rbac.v3.RBACPerRoute"),
        "rbac": {"rules": rules},
    })
}

fn action_of(spec: &Value) -> &str {
    spec["action"].as_str().unwrap_or("ALLOW")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn rule(rule: &Value) -> Value {
    let mut of_operation = Vec::new();
    let mut of_source = Vec::new();
    for condition in items(&rule["when"]) {
        let key = condition["key"].as_str().unwrap_or_default();
        let of = |sides: (Value, Value)| (key.to_owned(), sides.0, sides.1);
        let sides = of((condition["values"].clone(), condition["notValues"].clone()));
        match key.split('.').next() {
            Some("destination" | "connection") => of_operation.push(sides),
            _ => of_source.push(sides),
        }
    }
    let clause = |entry: &Value, fields: &[(&str, &str, &str)]| -> Vec<(String, Value, Value)> {
        fields
            .iter()
            .map(|(key, field, not)| {
                ((*key).to_owned(), entry[*field].clone(), entry[*not].clone())
            })
            .collect()
    };
    let operations = items(&rule["to"]).iter().map(|to| {
        let fields = [
            (":authority", "hosts", "notHosts"),
            (":method", "methods", "notMethods"),
            (":path", "paths", "notPaths"),
            ("destination.port", "ports", "notPorts"),
        ];
        clause(&to["operation"], &fields)
    });
    let sources = items(&rule["from"]).iter().map(|from| {
        let fields = [
            ("source.principal", "principals", "notPrincipals"),
            ("request.auth.principal", "requestPrincipals", "notRequestPrincipals"),
            ("source.namespace", "namespaces", "notNamespaces"),
            ("source.serviceAccount", "serviceAccounts", "notServiceAccounts"),
            ("source.trustDomain", "trustDomains", "notTrustDomains"),
            ("source.ip", "ipBlocks", "notIpBlocks"),
            ("remote.ip", "remoteIpBlocks", "notRemoteIpBlocks"),
        ];
        clause(&from["source"], &fields)
    });
    json!({
        "permissions": all_of(operations.collect(), &of_operation, "rules", "rule"),
        "principals": all_of(sources.collect(), &of_source, "ids", "id"),
    })
}

/// One clause for each entry, with the conditions of all.
fn all_of(
    entries: Vec<Vec<(String, Value, Value)>>,
    conditions: &[(String, Value, Value)],
    many: &str,
    one: &str,
) -> Vec<Value> {
    let entries = if entries.is_empty() { vec![Vec::new()] } else { entries };
    let clauses = entries.into_iter().map(|entry| {
        let mut all = Vec::new();
        for (key, values, not_values) in entry.iter().chain(conditions) {
            let or = |list: &Value| -> Vec<Value> {
                items(list).iter().filter_map(Value::as_str).map(|text| test(key, text)).collect()
            };
            let (is, is_not) = (or(values), or(not_values));
            if !is.is_empty() {
                all.push(json!({format!("or_{many}"): {many: is}}));
            }
            if !is_not.is_empty() {
                all.push(json!({format!("not_{one}"): {format!("or_{many}"): {many: is_not}}}));
            }
        }
        if all.is_empty() {
            all.push(json!({"any": true}));
        }
        json!({format!("and_{many}"): {many: all}})
    });
    clauses.collect()
}

fn test(key: &str, value: &str) -> Value {
    let authenticated = |matcher: Value| json!({"authenticated": {"principal_name": matcher}});
    let regex = |text: String| json!({"safe_regex": {"regex": text}});
    match key {
        ":authority" => json!({"header": header(key, value, true)}),
        ":method" => json!({"header": header(key, value, false)}),
        ":path" if value.contains("{*}") || value.contains("{**}") => {
            let template = value.replace("{*}", "*").replace("{**}", "**");
            json!({"uri_template": {"name": "uri-template", "typed_config": {
                "@type": format!("{TYPES}.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"),
                "path_template": template,
            }}})
        }
        ":path" => json!({"url_path": {"path": text(value)}}),
        "destination.port" => json!({"destination_port": value.parse::<u16>().unwrap_or_default()}),
        "destination.ip" => json!({"destination_ip": block(value)}),
        "connection.sni" => json!({"requested_server_name": text(value)}),
        "source.ip" => json!({"direct_remote_ip": block(value)}),
        "remote.ip" => json!({"remote_ip": block(value)}),
        "source.namespace" => {
            let pieces: Vec<_> = value.split('*').map(quoted).collect();
            authenticated(regex(format!(".*/ns/{}/.*", pieces.join(".*"))))
        }
        "source.serviceAccount" => {
            let (namespace, name) = value.split_once('/').unwrap_or(("default", value));
            let (namespace, name) = (quoted(namespace), quoted(name));
            authenticated(regex(format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{name}(/.+)?")))
        }
        "source.trustDomain" => authenticated(match value.split_once('*') {
            Some(("", "")) => json!({"prefix": "spiffe://"}),
            None => json!({"prefix": format!("spiffe://{value}/")}),
            Some((before, after)) => {
                regex(format!("spiffe://{}[^/]*{}/.*", quoted(before), quoted(after)))
            }
        }),
        "source.principal" => {
            authenticated(match (value.strip_prefix('*'), value.strip_suffix('*')) {
                _ if value == "*" => regex(".+".into()),
                (Some(end), _) => regex(format!("spiffe://.*{}", quoted(end))),
                (None, Some(beginning)) => json!({"prefix": format!("spiffe://{beginning}")}),
                (None, None) => json!({"exact": format!("spiffe://{value}")}),
            })
        }
        _ => match key.strip_prefix("request.headers[").and_then(|name| name.strip_suffix(']')) {
            Some(name) => json!({"header": header(name, value, false)}),
            None => of_token(key, value),
        },
    }
}

/// A test of what jwt_authn tells.
fn of_token(key: &str, value: &str) -> Value {
    let claim = |path: &[&str], value: Value| {
        let path = ["payload"].iter().chain(path).map(|key| json!({"key": key}));
        let path: Vec<_> = path.collect();
        json!({"metadata": {"filter": jwt::FILTER, "path": path, "value": value}})
    };
    if key == "request.auth.principal" {
        let any = || json!({"safe_regex": {"regex": ".+"}});
        let or_any =
            |kind: &str, text: &str| if text.is_empty() { any() } else { json!({kind: text}) };
        let exact = |text: &str| json!({"exact": text});
        let parts = value.rsplit_once('/');
        let (issuer, subject) = match (value.strip_prefix('*'), value.strip_suffix('*'), parts) {
            (Some(""), ..) => (any(), any()),
            (Some(_), _, Some((issuer, subject))) => {
                (or_any("suffix", &issuer[1..]), exact(subject))
            }
            (Some(end), _, None) => (any(), json!({"suffix": end})),
            (None, Some(_), Some((issuer, subject))) => {
                (exact(issuer), or_any("prefix", subject.trim_end_matches('*')))
            }
            (None, Some(beginning), None) => (json!({"prefix": beginning}), any()),
            (None, None, Some((issuer, subject))) => (exact(issuer), exact(subject)),
            (None, None, None) => (exact(value), exact("")),
        };
        let ids = [("iss", issuer), ("sub", subject)];
        let ids = ids.map(|(name, matcher)| claim(&[name], json!({"string_match": matcher})));
        return json!({"and_ids": {"ids": ids}});
    }
    let path: Vec<_> = match key {
        "request.auth.audiences" => vec!["aud"],
        "request.auth.presenter" => vec!["azp"],
        _ => {
            let names = key.strip_prefix("request.auth.claims[").unwrap_or(key);
            names.strip_suffix(']').unwrap_or(names).split("][").collect()
        }
    };
    let one = json!({"string_match": text(value)});
    let either = json!([{"list_match": {"one_of": one}}, one]);
    claim(&path, json!({"or_match": {"value_matchers": either}}))
}

fn header(name: &str, value: &str, any_case: bool) -> Value {
    if value == "*" {
        return json!({"name": name, "present_match": true});
    }
    let mut matcher = text(value);
    matcher["ignore_case"] = any_case.into();
    json!({"name": name, "string_match": matcher})
}

fn text(value: &str) -> Value {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        _ if value == "*" => json!({"safe_regex": {"regex": ".+"}}),
        (Some(end), _) => json!({"suffix": end}),
        (None, Some(beginning)) => json!({"prefix": beginning}),
        (None, None) => json!({"exact": value}),
    }
}

fn block(value: &str) -> Value {
    let (prefix, length) = match value.split_once('/') {
        Some((prefix, length)) => (prefix, length.parse().unwrap_or_default()),
        None => (value, if value.contains(':') { 128 } else { 32 }),
    };
    json!({"address_prefix": prefix, "prefix_len": length})
}

/// As Go's `QuoteMeta`.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for one in text.chars() {
        if r"\.+*?()|[]{}^$".contains(one) {
            quoted.push('\\');
        }
        quoted.push(one);
    }
    quoted
}
