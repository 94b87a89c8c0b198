//! What Istio makes of RequestAuthentications for Envoy, as its `pilot/pkg/security/authn` has it.

use serde_json::{Value, json};

const TYPES: &str = "type.googleapis.com/envoy";
/// What RBAC finds claims in.
pub(super) const FILTER: &str = "envoy.filters.http.jwt_authn";

/// The configuration of the filter, for the rules of each case; `of_case` is how to tell its requests.
pub(super) fn filter(cases: &[Vec<Value>], of_case: impl Fn(usize) -> Value) -> Value {
    let mut providers = serde_json::Map::new();
    let mut rules = Vec::new();
    for (case, of) in cases.iter().enumerate().filter(|(_, rules)| !rules.is_empty()) {
        let mut of: Vec<_> = of.iter().collect();
        of.sort_by_key(|rule| rule["issuer"].as_str());
        let names: Vec<_> = (0..of.len()).map(|at| format!("case-{case}-origins-{at}")).collect();
        for (name, rule) in names.iter().zip(of) {
            providers.insert(name.clone(), provider(rule));
        }
        rules.push(json!({"match": of_case(case), "requires": requirement(&names)}));
    }
    json!({"name": FILTER, "typed_config": {
        "@type": format!("{TYPES}.extensions.filters.http.jwt_authn.v3.JwtAuthentication"),
        "providers": providers, "rules": rules, "bypass_cors_preflight": true,
    }})
}

fn provider(rule: &Value) -> Value {
    let list = |field: &str| rule[field].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let headers = list("fromHeaders")
        .into_iter()
        .map(|header| json!({"name": header["name"], "value_prefix": text(&header["prefix"])}));
    let claims = list("outputClaimToHeaders").into_iter();
    let claims =
        claims.map(|one| json!({"header_name": one["header"], "claim_name": one["claim"]}));
    let mut delimited = list("spaceDelimitedClaims");
    delimited.extend([json!("permission"), json!("scope")]);
    json!({
        "issuer": text(&rule["issuer"]),
        "audiences": list("audiences"),
        "forward": rule["forwardOriginalToken"].as_bool().unwrap_or_default(),
        "forward_payload_header": text(&rule["outputPayloadToHeader"]),
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": {"space_delimited_claims": delimited},
        "claim_to_headers": claims.collect::<Vec<_>>(),
        "from_headers": headers.collect::<Vec<_>>(),
        "from_params": list("fromParams"),
        "from_cookies": list("fromCookies"),
        "local_jwks": {"inline_string": rule["jwks"]},
    })
}

/// A token that is there has to be good; where several look at one place, for one of them.
fn requirement(names: &[String]) -> Value {
    let own = |name: &String| json!({"provider_name": name});
    let or_missing = |name: &String| json!({"requires_any": {"requirements": [own(name), {"allow_missing": {}}]}});
    if let [name] = names {
        return or_missing(name);
    }
    let all: Vec<_> = names.iter().map(or_missing).collect();
    let any = names.iter().map(own).chain([json!({"requires_all": {"requirements": all}})]);
    json!({"requires_any": {"requirements": any.collect::<Vec<_>>()}})
}
