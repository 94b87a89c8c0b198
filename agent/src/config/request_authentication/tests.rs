use std::{sync::Arc, time::Duration};

use super::super::{MeshSettings, testing::Loader};
use crate::{
    jwt::{
        Authentication, ClaimHeader, HeaderLocation, KeySource, RemoteSource, Rule, testing::Issuer,
    },
    mesh::Snapshot,
};

/// `order` and `cart` of namespace `shop`, and a Service for `order`.
const PODS: &str = "
---
apiVersion: v1
kind: Pod
metadata:
  {name: order, namespace: shop, uid: o, labels: {app: order, istio.io/dataplane-mode: ambient}}
spec: {}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata:
  {name: cart, namespace: shop, uid: c, labels: {app: cart, istio.io/dataplane-mode: ambient}}
spec: {}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: order, namespace: shop}
spec: {clusterIP: None, selector: {app: order}, ports: [{port: 80}]}
";

fn loader() -> Loader {
    let root_namespace = "root".parse().unwrap();
    Loader::new(MeshSettings { root_namespace, ..MeshSettings::default() })
}

fn of(snapshot: &Snapshot, ip: &str) -> Arc<Authentication> {
    snapshot.workload(ip.parse().unwrap()).unwrap().authentication.clone()
}

/// What is in force for `order`, or the problems, one a line.
fn order(text: &str) -> Result<Arc<Authentication>, String> {
    let (snapshot, _) = loader().load(&format!("{text}{PODS}"))?;
    Ok(of(&snapshot, "10.0.0.1"))
}

fn names(text: &str) -> Vec<String> {
    order(text).unwrap().in_words()
}

fn object(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}

fn rule(rule: &str) -> Result<Rule, String> {
    let in_force = order(&object("shop", "a", &format!("{{jwtRules: [{rule}]}}")))?;
    Ok(in_force.all()[0].spec().rules[0].clone())
}

#[test]
fn one_speaks_for_its_namespace_for_what_it_selects_or_for_the_mesh() {
    let all = object("shop", "b", "{selector: {matchLabels: {app: order}}}")
        + &object("shop", "c", "{selector: {matchLabels: {app: cart}}}")
        + &object("root", "z", "{}")
        + &object("other", "x", "{}")
        + &object("shop", "d", "{targetRefs: [{kind: Service, name: order}]}")
        + &object("shop", "e", "{targetRefs: [{kind: Service, name: cart}]}")
        + &object(
            "shop",
            "f",
            "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: order}}",
        );
    assert_eq!(names(&all), ["root/z", "shop/b", "shop/d"]);
    let old = object("shop", "a", "{}").replace("/v1", "/v1beta1");
    assert_eq!(names(&old), ["shop/a"]);
}

#[test]
fn pods_with_the_same_have_it_in_common_and_keep_it() {
    let mut loader = loader();
    let text = object("shop", "a", "{jwtRules: [{issuer: a}]}") + PODS;
    let (first, _) = loader.load(&text).unwrap();
    assert!(Arc::ptr_eq(&of(&first, "10.0.0.1"), &of(&first, "10.0.0.2")));
    let (second, _) = loader.load(&format!("{text}{}", object("other", "b", "{}"))).unwrap();
    assert!(Arc::ptr_eq(&of(&first, "10.0.0.1"), &of(&second, "10.0.0.1")));
    let (third, _) = loader.load(&text.replace("issuer: a", "issuer: b")).unwrap();
    assert!(!Arc::ptr_eq(&of(&first, "10.0.0.1"), &of(&third, "10.0.0.1")));
    let (none, _) = loader.load(PODS).unwrap();
    assert!(of(&none, "10.0.0.1").is_empty());
}

#[test]
fn every_field_is_read() {
    let jwks = Issuer::new("k").jwks();
    let text = format!(
        "{{issuer: 'https://a.example', audiences: [x, z], jwks: '{jwks}', fromHeaders: [{{name: \
         X-Jwt, prefix: 'JWT '}}], fromParams: [t], fromCookies: [c], outputPayloadToHeader: X-P, \
         outputClaimToHeaders: [{{header: X-Sub, claim: a.b}}], forwardOriginalToken: true, timeout: \
         2s, spaceDelimitedClaims: [roles], presence: REQUIRED}}"
    );
    let expected = Rule {
        issuer: "https://a.example".into(),
        audiences: vec!["x".into(), "z".into()],
        keys: KeySource::Inline(jwks.into()),
        from_headers: vec![HeaderLocation { name: "x-jwt".into(), prefix: "JWT ".into() }],
        from_params: vec!["t".into()],
        from_cookies: vec!["c".into()],
        forward: true,
        payload_header: Some("x-p".into()),
        claim_headers: vec![ClaimHeader { header: "x-sub".into(), claim: "a.b".into() }],
        space_delimited: vec!["roles".into()],
        required: true,
    };
    assert_eq!(rule(&text), Ok(expected));
}

#[test]
fn keys_are_in_the_rule_at_a_url_or_where_the_issuer_says() {
    let remote = |uri: &str, discovers, timeout| {
        let timeout = Duration::from_millis(timeout);
        KeySource::Remote(RemoteSource { uri: uri.into(), discovers, timeout })
    };
    for (text, expected) in [
        ("{issuer: 'https://a.example'}", remote("https://a.example", true, 5000)),
        ("{issuer: a, jwksUri: 'http://b/k'}", remote("http://b/k", false, 5000)),
        ("{jwks_uri: 'https://b/k', timeout: 1.5s}", remote("https://b/k", false, 1500)),
        ("{issuer: a, jwksUri: 'http://b/k', timeout: 1m}", remote("http://b/k", false, 60_000)),
    ] {
        assert_eq!(rule(text).unwrap().keys, expected, "{text}");
    }
}

#[test]
fn mistakes_are_named_with_their_places() {
    for (text, expected) in [
        (
            "{issuer: a, jwkUri: x}",
            "mesh.yaml:5:31: spec.jwtRules[0].jwkUri is not a field of JWTRule (hint: did you mean \
             `jwksUri`?)",
        ),
        ("{}", "spec.jwtRules[0].issuer is missing (hint: what the claim `iss` of the tokens has)"),
        (
            "{issuer: a, jwks: '{}', jwksUri: 'http://b'}",
            "spec.jwtRules[0].jwks is there beside jwksUri (hint: one of the two)",
        ),
        (
            "{issuer: a, jwks_uri: 'http://b', jwksUri: 'http://b'}",
            "spec.jwtRules[0].jwks_uri is there beside jwksUri (hint: jwksUri alone)",
        ),
        (
            "{issuer: a, jwks: '{}'}",
            "spec.jwtRules[0].jwks is no JSON Web Key Set: no list of `keys` (hint: {\"keys\": […]}, \
             with public keys of kty RSA, EC or OKP)",
        ),
        (
            "{issuer: a, jwksUri: 'ftp://b'}",
            "spec.jwtRules[0].jwksUri `ftp://b` is no URL of HTTP (hint: https://…, or http://… \
             within the mesh)",
        ),
        (
            "{issuer: a, timeout: 5}",
            "spec.jwtRules[0].timeout: integer `5`, expected a string (hint: quote the value to \
             make it a string)",
        ),
        (
            "{issuer: a, timeout: 0s}",
            "spec.jwtRules[0].timeout `0s` is no duration (hint: such as 5s, and at least 1ms)",
        ),
        (
            "{issuer: a, audiences: [x, '']}",
            "spec.jwtRules[0].audiences[1] is empty (hint: leave it out)",
        ),
        (
            "{issuer: a, fromHeaders: [{prefix: x}]}",
            "spec.jwtRules[0].fromHeaders[0].name is missing (hint: the name of a header)",
        ),
        (
            "{issuer: a, outputClaimToHeaders: [{header: 'a b', claim: c}]}",
            "spec.jwtRules[0].outputClaimToHeaders[0].header `a b` is not the name of a header (hint: \
             such as x-jwt-payload)",
        ),
        (
            "{issuer: a, outputClaimToHeaders: [{header: a}]}",
            "spec.jwtRules[0].outputClaimToHeaders[0].claim is missing (hint: the name of a claim of \
             the token)",
        ),
        (
            "{issuer: a, outputPayloadToHeader: Content-Length}",
            "spec.jwtRules[0].outputPayloadToHeader `content-length` says how a message is carried \
             (hint: a header of the application's own)",
        ),
        (
            "{issuer: a, presence: REQUIERD}",
            "spec.jwtRules[0].presence `REQUIERD` is no presence (hint: did you mean `REQUIRED`?)",
        ),
    ] {
        let problem = rule(text).unwrap_err();
        assert!(problem.contains(expected), "{text}\n{problem}\n{expected}");
    }
    let both = object("shop", "a", "{selector: {}, targetRefs: [{kind: Service, name: a}]}");
    assert!(order(&both).unwrap_err().contains("spec.targetRefs is there beside a selector"));
}
