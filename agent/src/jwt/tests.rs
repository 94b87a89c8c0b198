//! Which requests pass, and how the application sees them.

use std::sync::{Arc, Mutex};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{StatusCode, request::Parts};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::{
    Authentication, ClaimHeader, Fault, HeaderLocation, KeySet, KeySource, Refused, RemoteKeys,
    RemoteSource, RequestAuthentication, Rule, Spec,
    testing::{Issuer, rule},
};
use crate::{http::Fields, policy::Claims};

const NOW: u64 = 1_800_000_000;

/// Nobody has keys elsewhere.
struct Nowhere;

impl RemoteKeys for Nowhere {
    fn known(&self, _: &RemoteSource) -> Option<Arc<KeySet>> {
        None
    }

    async fn newer(&self, _: &RemoteSource, _: Option<&Arc<KeySet>>) -> Option<Arc<KeySet>> {
        None
    }
}

fn under(rules: Vec<Rule>) -> Authentication {
    let spec = Spec { rules, unreadable: None };
    Authentication::new(vec![RequestAuthentication::new("shop/a", spec).into()])
}

fn request(target: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::get(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn bearing(token: &str) -> Parts {
    request("/", &[("authorization", &format!("Bearer {token}"))])
}

async fn ask_with(
    authentication: &Authentication,
    head: &mut Parts,
    keys: &impl RemoteKeys,
) -> Result<Option<Claims>, Fault> {
    match authentication.authenticate(head, keys, NOW).await {
        Ok(claims) => Ok(claims),
        Err(Refused::Fault(fault, ..)) => Err(fault),
        Err(unreadable) => panic!("{unreadable}"),
    }
}

async fn ask(authentication: &Authentication, head: &mut Parts) -> Result<Option<Claims>, Fault> {
    ask_with(authentication, head, &Nowhere).await
}

/// Who sends a request with `token`.
async fn subject(authentication: &Authentication, token: &str) -> Result<String, Fault> {
    let claims = ask(authentication, &mut bearing(token)).await?.expect("there is a token");
    Ok(claims.text("sub").unwrap_or_default().to_owned())
}

fn encoded(value: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value)
}

#[tokio::test]
async fn a_request_without_a_token_is_nobodys_and_one_with_a_good_token_somebodys() {
    let issuer = Issuer::new("k");
    let rules = under(vec![rule("a.example", &issuer.jwks())]);
    assert_eq!(ask(&rules, &mut request("/", &[])).await, Ok(None));
    assert_eq!(ask(&rules, &mut request("/", &[("authorization", "Basic YTpi")])).await, Ok(None));
    let mut head = bearing(&issuer.token(&json!({"iss": "a.example", "sub": "order"})));
    let claims = ask(&rules, &mut head).await.unwrap().unwrap();
    assert_eq!(claims.text("sub"), Some("order"));
    assert_eq!(head.value_of("authorization"), None, "the token is not for the application");
}

#[tokio::test]
async fn each_algorithm_verifies_what_its_own_key_has_signed() {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let rsa = Issuer::with("rsa", RS256, &rcgen::PKCS_RSA_SHA256);
    let rsa_by = [RS256, RS384, RS512, PS256, PS384, PS512].map(|one| rsa.signing_by(one));
    let others = [
        Issuer::with("p256", ES256, &rcgen::PKCS_ECDSA_P256_SHA256),
        Issuer::with("p384", ES384, &rcgen::PKCS_ECDSA_P384_SHA384),
        Issuer::with("ed", EdDSA, &rcgen::PKCS_ED25519),
    ];
    let claims = json!({"iss": "a", "sub": "order"});
    for issuer in rsa_by.iter().chain(&others) {
        let rules = under(vec![rule("a", &issuer.jwks())]);
        assert_eq!(subject(&rules, &issuer.token(&claims)).await.as_deref(), Ok("order"));
        // Without a name, every key is tried; with another's, none.
        assert!(subject(&rules, &issuer.sign(None, &claims)).await.is_ok());
        let other = issuer.sign(Some("other"), &claims);
        assert_eq!(subject(&rules, &other).await, Err(Fault::NoSuchKey));
        let somebody = Issuer::new(&issuer_id(issuer));
        let forged = somebody.token(&claims);
        assert_eq!(subject(&rules, &forged).await, Err(Fault::VerificationFails));
    }
}

fn issuer_id(issuer: &Issuer) -> String {
    issuer.jwk()["kid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn nothing_unsigned_and_no_public_key_taken_for_a_secret_passes() {
    let issuer = Issuer::with("k", Algorithm::RS256, &rcgen::PKCS_RSA_SHA256);
    let rules = under(vec![rule("a", &issuer.jwks())]);
    let payload = encoded(r#"{"iss": "a", "sub": "admin"}"#);
    let head = |text: &str| encoded(text);
    let none = head(r#"{"alg": "none"}"#);
    assert_eq!(subject(&rules, &format!("{none}.{payload}.")).await, Err(Fault::BadFormat));
    for alg in ["none", "None", "RS257", "HS1", "ES512"] {
        let token = format!("{}.{payload}.AAAA", head(&format!(r#"{{"alg": "{alg}"}}"#)));
        assert_eq!(subject(&rules, &token).await, Err(Fault::UnsupportedAlg), "{alg}");
    }
    // Signed with what everybody knows of the issuer.
    for secret in [issuer.jwks(), issuer.jwk()["n"].as_str().unwrap().to_owned()] {
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes()).unwrap();
        let header = jsonwebtoken::Header::new(Algorithm::HS256);
        let token =
            jsonwebtoken::encode(&header, &json!({"iss": "a", "sub": "admin"}), &key).unwrap();
        assert_eq!(subject(&rules, &token).await, Err(Fault::VerificationFails));
    }
    // What a header says to be critical has to be understood.
    let critical = head(r#"{"alg": "RS256", "crit": ["b64"], "b64": false}"#);
    let token = format!("{critical}.{payload}.AAAA");
    assert_eq!(subject(&rules, &token).await, Err(Fault::VerificationFails));
    // The issuer's keys are what the rule says, whatever a token brings along.
    let thief = Issuer::with("k", Algorithm::RS256, &rcgen::PKCS_RSA_SHA256);
    let header = format!(r#"{{"alg": "RS256", "kid": "k", "jwk": {}}}"#, thief.jwk());
    let token = thief.token(&json!({"iss": "a", "sub": "admin"}));
    let signature = token.rsplit('.').next().unwrap();
    let token = format!("{}.{payload}.{signature}", head(&header));
    assert_eq!(subject(&rules, &token).await, Err(Fault::VerificationFails));
}

#[tokio::test]
async fn every_fault_is_told_in_envoys_words() {
    let issuer = Issuer::new("k");
    let mut about = rule("a", &issuer.jwks());
    about.audiences = vec!["https://shop.example/".into()];
    let rules = under(vec![about]);
    let good = json!({"iss": "a", "sub": "s", "aud": "shop.example"});
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        issuer.token(&claims)
    };
    let raw =
        |header: &str, payload: &str| format!("{}.{}.AAAA", encoded(header), encoded(payload));
    for (token, expected) in [
        (issuer.token(&good), Ok("s")),
        (with("aud", json!(["x", "http://shop.example"])), Ok("s")),
        (with("exp", json!(NOW - 60)), Ok("s")),
        (with("exp", json!(0)), Ok("s")),
        (with("nbf", json!(NOW + 60)), Ok("s")),
        (with("exp", json!(NOW as f64 + 0.5)), Ok("s")),
        (with("exp", json!(NOW - 61)), Err("Jwt is expired")),
        (with("nbf", json!(NOW + 61)), Err("Jwt not yet valid")),
        (with("iss", json!("b")), Err("Jwt issuer is not configured")),
        (with("aud", json!("shop")), Err("Audiences in Jwt are not allowed")),
        (with("aud", json!([])), Err("Audiences in Jwt are not allowed")),
        (with("exp", json!("soon")), Err("Jwt payload [exp] field is not an integer")),
        (with("nbf", json!(-1)), Err("Jwt payload [nbf] field is not a positive 64 bit integer")),
        (with("sub", json!(7)), Err("Jwt payload [sub] field is not a string")),
        (with("aud", json!([7])), Err("Jwt payload [aud] field is not a string or string list")),
        (issuer.token(&good) + "AAAA", Err("Jwt verification fails")),
        (
            "a.b".into(),
            Err("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
        ),
        (
            "a.b.c.d".into(),
            Err("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
        ),
        ("a!.b.c".into(), Err("Jwt header is an invalid Base64url encoded")),
        (raw("[]", "{}"), Err("Jwt header is an invalid JSON")),
        (raw("{}", "{}"), Err("Jwt header [alg] field is required and must be a string")),
        (raw(r#"{"alg": "ES256", "kid": 1}"#, "{}"), Err("Jwt header [kid] field is not a string")),
        (raw(r#"{"alg": "ES256"}"#, "7"), Err("Jwt payload is an invalid JSON")),
    ] {
        let said = subject(&rules, &token).await.map_err(|fault| fault.to_string());
        let said = said.as_ref().map(String::as_str).map_err(String::as_str);
        assert_eq!(said, expected, "{token}");
    }
    assert_eq!(Fault::AudienceNotAllowed.status(), StatusCode::FORBIDDEN);
    assert_eq!(Fault::Expired.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn several_issuers_each_have_their_tokens_in_the_same_place() {
    let (one, two) = (Issuer::new("one"), Issuer::new("two"));
    let rules = under(vec![rule("b", &two.jwks()), rule("a", &one.jwks())]);
    let claims = |issuer: &str| json!({"iss": issuer, "sub": issuer});
    assert_eq!(subject(&rules, &one.token(&claims("a"))).await.as_deref(), Ok("a"));
    assert_eq!(subject(&rules, &two.token(&claims("b"))).await.as_deref(), Ok("b"));
    assert_eq!(subject(&rules, &one.token(&claims("c"))).await, Err(Fault::UnknownIssuer));
    let wrong = subject(&rules, &two.sign(None, &claims("a"))).await;
    assert_eq!(wrong, Err(Fault::VerificationFails));
    assert_eq!(subject(&rules, &one.token(&claims("b"))).await, Err(Fault::NoSuchKey));
}

#[tokio::test]
async fn every_token_has_to_be_good_wherever_it_is() {
    let (one, two) = (Issuer::new("one"), Issuer::new("two"));
    let mut other = rule("b", &two.jwks());
    other.from_headers = vec![HeaderLocation { name: "x-b".into(), prefix: "".into() }];
    let rules = under(vec![rule("a", &one.jwks()), other]);
    let good = one.token(&json!({"iss": "a", "sub": "one"}));
    let bearer = format!("Bearer {good}");
    let good_too = two.token(&json!({"iss": "b", "sub": "two"}));
    let mut both = request("/", &[("authorization", &bearer), ("x-b", &good_too)]);
    let claims = ask(&rules, &mut both).await.unwrap().unwrap();
    assert_eq!(claims.text("sub"), Some("one"), "the first by its issuer");
    assert!(both.headers.is_empty());
    for bad in ["", "x", &one.token(&json!({"iss": "b"}))] {
        let mut head = request("/", &[("authorization", &bearer), ("x-b", bad)]);
        assert!(ask(&rules, &mut head).await.is_err(), "{bad}");
    }
    // Of several of a name, an application may look at any.
    let mut twice = request("/?access_token=x", &[("authorization", &bearer)]);
    assert_eq!(ask(&rules, &mut twice).await, Err(Fault::BadFormat));
    let fields = [("authorization", bearer.as_str()), ("authorization", "Bearer x")];
    assert_eq!(ask(&rules, &mut request("/", &fields)).await, Err(Fault::BadFormat));
}

#[tokio::test]
async fn a_bad_token_hides_behind_none_that_is_good_for_another_rule() {
    let (one, two) = (Issuer::new("one"), Issuer::new("two"));
    let header = |name: &str| HeaderLocation { name: name.into(), prefix: "".into() };
    let [mut both, mut first] = [rule("a", &one.jwks()), rule("b", &two.jwks())];
    both.from_headers = vec![header("x-1"), header("x-2")];
    first.from_headers = vec![header("x-1")];
    let rules = under(vec![both, first]);
    let of_a = one.token(&json!({"iss": "a", "sub": "a"}));
    let of_b = two.token(&json!({"iss": "b", "sub": "b"}));
    for (second, expected) in [("x", Err(Fault::BadFormat)), (of_a.as_str(), Ok(Some("b")))] {
        for fields in [[("x-1", of_b.as_str()), ("x-2", second)], [("x-2", second), ("x-1", &of_b)]]
        {
            let claims = ask(&rules, &mut request("/", &fields)).await;
            let subject = claims.as_ref().map(|claims| claims.as_ref()?.text("sub"));
            assert_eq!(subject.map_err(|fault| *fault), expected, "{second}");
        }
    }
    // Neither rule has good ones alone.
    let swapped = under(vec![
        Rule { from_headers: vec![header("x-1"), header("x-2")], ..rule("a", &one.jwks()) },
        Rule { from_headers: vec![header("x-1"), header("x-2")], ..rule("b", &two.jwks()) },
    ]);
    let fields = [("x-1", of_a.as_str()), ("x-2", of_b.as_str())];
    assert_eq!(ask(&swapped, &mut request("/", &fields)).await, Err(Fault::UnknownIssuer));
    let many: Vec<_> = (0..17).map(|_| ("x-1", of_b.as_str())).collect();
    assert!(ask(&rules, &mut request("/", &many[..16])).await.is_ok());
    assert_eq!(ask(&rules, &mut request("/", &many)).await, Err(Fault::TooMany));
}

#[tokio::test]
async fn a_token_that_has_to_be_there_is_asked_for_but_by_no_preflight() {
    let (one, two) = (Issuer::new("one"), Issuer::new("two"));
    let mut required = rule("a", &one.jwks());
    required.required = true;
    let rules = under(vec![required, rule("b", &two.jwks())]);
    assert_eq!(ask(&rules, &mut request("/", &[])).await, Err(Fault::Missing));
    let claims = |issuer: &str| json!({"iss": issuer, "sub": "s"});
    assert!(subject(&rules, &one.token(&claims("a"))).await.is_ok());
    let other = subject(&rules, &two.token(&claims("b"))).await;
    assert_eq!(other, Err(Fault::UnknownIssuer));
    let asks = [("origin", "http://a"), ("access-control-request-method", "PUT")];
    let mut preflight = request("/", &asks);
    assert_eq!(ask(&rules, &mut preflight).await, Err(Fault::Missing));
    preflight.method = http::Method::OPTIONS;
    assert_eq!(ask(&rules, &mut preflight).await, Ok(None));
}

#[tokio::test]
async fn the_application_is_told_of_the_token_and_nobody_else_can_tell_it() {
    let issuer = Issuer::new("k");
    let mut telling = rule("a", &issuer.jwks());
    telling.payload_header = Some("x-payload".into());
    let header =
        |header: &str, claim: &str| ClaimHeader { header: header.into(), claim: claim.into() };
    telling.claim_headers =
        vec![header("x-sub", "sub"), header("x-team", "deep.team"), header("x-bad", "line")];
    telling.forward = true;
    let rules = under(vec![telling]);
    let claims = json!({
        "iss": "a", "sub": "order", "deep": {"team": 7}, "line": "a\r\nx-sub: admin", "scope": "a b",
    });
    let token = issuer.token(&claims);
    let bearer = format!("Bearer {token}");
    let forged = [
        ("x-payload", "x"),
        ("X-Sub", "admin"),
        ("x-sub", "root"),
        ("x-team", "x"),
        ("x-bad", "x"),
    ];
    let mut with = request("/", &[&forged[..], &[("authorization", &bearer)]].concat());
    let found = ask(&rules, &mut with).await.unwrap().unwrap();
    let payload = token.split('.').nth(1).unwrap();
    let values = |head: &Parts, name: &str| {
        let values = head.values_of(name).map(|value| String::from_utf8_lossy(value).into_owned());
        values.collect::<Vec<_>>()
    };
    assert_eq!(values(&with, "x-payload"), [payload]);
    assert_eq!(values(&with, "x-sub"), ["order"]);
    assert_eq!(values(&with, "x-team"), ["7"]);
    assert!(values(&with, "x-bad").is_empty());
    assert_eq!(values(&with, "authorization"), [bearer.as_str()]);
    let mut expected = claims.as_object().unwrap().clone();
    expected["scope"] = json!(["a", "b"]);
    assert_eq!(found, Claims::new(expected));
    let mut without = request("/", &forged);
    assert_eq!(ask(&rules, &mut without).await, Ok(None));
    assert!(without.headers.is_empty());
    let mut preflight = request("/", &[&forged[..], &[("origin", "a")]].concat());
    preflight.headers.insert("access-control-request-method", "PUT".parse().unwrap());
    preflight.method = http::Method::OPTIONS;
    assert_eq!(ask(&rules, &mut preflight).await, Ok(None));
    assert_eq!(preflight.headers.len(), 2);
}

#[tokio::test]
async fn nobody_passes_where_nobody_knows_which_tokens_are_good() {
    let issuer = Issuer::new("k");
    let good = Spec { rules: vec![rule("a", &issuer.jwks())], unreadable: None };
    let bad = Spec { rules: Vec::new(), unreadable: Some("no".into()) };
    let all = [("shop/a", good), ("shop/b", bad)];
    let all = all.map(|(name, spec)| RequestAuthentication::new(name, spec).into());
    let rules = Authentication::new(all.to_vec());
    let mut head = request("/", &[]);
    let refused = rules.authenticate(&mut head, &Nowhere, NOW).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "RequestAuthentication shop/b cannot be read, so that no request passes whose token it may be \
         about: no"
    );
    assert_eq!(rules.in_words()[1], "shop/b (cannot be read, so that no request passes: no)");
}

/// Somebody has keys, and others when they are asked for again.
struct Elsewhere {
    known: Option<Arc<KeySet>>,
    newer: Option<Arc<KeySet>>,
    asked: Mutex<u32>,
}

impl RemoteKeys for Elsewhere {
    fn known(&self, _: &RemoteSource) -> Option<Arc<KeySet>> {
        self.known.clone()
    }

    async fn newer(&self, _: &RemoteSource, _: Option<&Arc<KeySet>>) -> Option<Arc<KeySet>> {
        *self.asked.lock().unwrap() += 1;
        self.newer.clone()
    }
}

#[tokio::test]
async fn keys_elsewhere_are_asked_for_anew_where_none_has_the_tokens_name() {
    let (one, two) = (Issuer::new("one"), Issuer::new("two"));
    let source = RemoteSource {
        uri: "https://a.example/keys".into(),
        discovers: false,
        timeout: std::time::Duration::from_secs(5),
    };
    let rules = under(vec![Rule { keys: KeySource::Remote(source), ..rule("a", "") }]);
    let keys = |issuer: &Issuer| Some(Arc::new(KeySet::parse(issuer.jwks().as_bytes()).unwrap()));
    let claims = json!({"iss": "a", "sub": "s"});
    for (known, newer, token, expected, asked) in [
        (keys(&one), None, one.token(&claims), Ok(()), 0),
        (keys(&one), keys(&two), two.token(&claims), Ok(()), 1),
        (None, keys(&two), two.token(&claims), Ok(()), 1),
        (None, None, two.token(&claims), Err(Fault::KeysMissing), 1),
        (keys(&one), None, two.token(&claims), Err(Fault::NoSuchKey), 1),
        // It says that a key has signed it that is there.
        (keys(&one), keys(&two), two.sign(Some("one"), &claims), Err(Fault::VerificationFails), 0),
        // A token that is not good anyway asks for nothing.
        (None, keys(&two), two.token(&json!({"iss": "b"})), Err(Fault::UnknownIssuer), 0),
    ] {
        let keys = Elsewhere { known, newer, asked: Mutex::new(0) };
        let found = ask_with(&rules, &mut bearing(&token), &keys).await;
        assert_eq!(found.map(drop), expected, "{token}");
        assert_eq!(*keys.asked.lock().unwrap(), asked, "{token}");
    }
}

#[test]
fn a_key_set_is_what_of_it_is_of_use() {
    let issuer = Issuer::new("k");
    let parsed = |text: String| KeySet::parse(text.as_bytes()).map(|set| set.len());
    let mixed = json!({"keys": [issuer.jwk(), {"kty": "??"}, 7, {"kty": "RSA"}], "x": 1});
    assert_eq!(parsed(mixed.to_string()), Ok(1));
    let says = |text: &str| parsed(text.into()).unwrap_err().to_string();
    assert!(says("{").starts_with("no JSON object: "));
    assert_eq!(says("{}"), "no list of `keys`");
    assert_eq!(says(r#"{"keys": {}}"#), "no list of `keys`");
    assert_eq!(says(r#"{"keys": []}"#), "no key that could verify a token: the list is empty");
    assert!(says(r#"{"keys": [7]}"#).starts_with("no key that could verify a token: "));
}
