//! The same of tokens: requests with all kinds of them, under RequestAuthentications and policies about
//! what they claim.

use std::{collections::BTreeSet, time::SystemTime};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use sluice_tests::TokenIssuer;

use super::*;

/// Requests that the agent refuses whatever Envoy says. `docs/compatibility.md` says why.
const STRICTER: &[&str] = &["a good parameter and a bad one", "two fields of which one is bad"];
/// Requests of which the application sees less than behind Envoy: no token that was verified.
const SEEN_LESS: &[&str] = &["two fields"];

/// Everybody who signs tokens.
struct Issuers {
    a: TokenIssuer,
    b: TokenIssuer,
    /// With a key of the name of `a`'s.
    thief: TokenIssuer,
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

fn claims() -> Value {
    json!({
        "iss": "https://a.example", "sub": "order", "aud": "shop", "azp": "web", "exp": now() + 3600,
        "iat": now(), "groups": ["admin", "dev"], "scope": "read write", "roles": "x y", "n": 7,
        "yes": true, "half": -0.5, "alone": {"a": ["b", 7]}, "deep": {"er": {"team": "blue", "list": ["one", "two"]}, "scope": "read write"},
    })
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().map(|claims| claims.remove(name));
    claims
}

/// A token of these parts, with a signature that is none.
fn raw(header: &str, payload: &str) -> String {
    let [header, payload] = [header, payload].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{payload}.AAAA")
}

/// Requests by what they are, each with its target and its fields.
fn requests(by: &Issuers) -> anyhow::Result<Vec<(String, String, Vec<String>)>> {
    let good = by.a.token(&claims())?;
    let of_b = by.b.token(&with(json!({"iss": "b.example"})))?;
    let payload = claims().to_string();
    let tokens = [
        ("good", good.clone()),
        ("of b", of_b.clone()),
        ("of nobody known", by.a.token(&with(json!({"iss": "c.example"})))?),
        ("without an issuer", by.a.token(&without("iss"))?),
        ("without a subject", by.a.token(&without("sub"))?),
        ("without an audience", by.a.token(&without("aud"))?),
        ("without an end", by.a.token(&without("exp"))?),
        ("expired", by.a.token(&with(json!({"exp": now() - 3600})))?),
        ("expired just now", by.a.token(&with(json!({"exp": now() - 30})))?),
        ("not yet valid", by.a.token(&with(json!({"nbf": now() + 3600})))?),
        ("valid soon", by.a.token(&with(json!({"nbf": now() + 30})))?),
        ("ending in a fraction", by.a.token(&with(json!({"exp": now() as f64 + 3600.5})))?),
        ("ending at a text", by.a.token(&with(json!({"exp": "2099"})))?),
        ("ending before all", by.a.token(&with(json!({"exp": -1})))?),
        ("for several", by.a.token(&with(json!({"aud": ["x", "shop"]})))?),
        ("for a URL", by.a.token(&with(json!({"aud": "https://shop/"})))?),
        ("for another", by.a.token(&with(json!({"aud": ["other"]})))?),
        ("for a number", by.a.token(&with(json!({"aud": 7})))?),
        ("of another subject", by.a.token(&with(json!({"sub": "cart/7"})))?),
        ("of a numbered subject", by.a.token(&with(json!({"sub": 7})))?),
        ("in other groups", by.a.token(&with(json!({"groups": ["guest"]})))?),
        ("in one group", by.a.token(&with(json!({"groups": "admin"})))?),
        ("with other scopes", by.a.token(&with(json!({"scope": "write", "roles": "z"})))?),
        ("by a thief", by.thief.token(&claims())?),
        ("by b for a", by.b.token(&claims())?),
        ("by nobody", raw(r#"{"alg": "none"}"#, &payload)),
        ("by nobody at all", raw(r#"{"alg": "none"}"#, &payload).replace(".AAAA", ".")),
        ("by a secret", raw(r#"{"alg": "HS256", "kid": "a"}"#, &payload)),
        ("by RSA", raw(r#"{"alg": "RS256", "kid": "a"}"#, &payload)),
        ("by another curve", raw(r#"{"alg": "ES384", "kid": "a"}"#, &payload)),
        ("by an unknown key", raw(r#"{"alg": "ES256", "kid": "x"}"#, &payload)),
        ("by a key of no name", raw(r#"{"alg": "ES256"}"#, &payload)),
        ("by a numbered key", raw(r#"{"alg": "ES256", "kid": 1}"#, &payload)),
        ("by an unknown algorithm", raw(r#"{"alg": "XX"}"#, &payload)),
        ("by no algorithm", raw("{}", &payload)),
        ("of no header", raw("no", &payload)),
        ("of no payload", raw(r#"{"alg": "ES256"}"#, "no")),
        ("of two parts", "a.b".into()),
        ("of four parts", format!("{good}.x")),
        ("of no text", "a!.b.c".into()),
        ("cut", good[..good.len() - 4].to_owned()),
        ("changed", good.replacen('.', ".e", 1)),
    ];
    let mut requests = vec![
        ("none".to_owned(), "GET /".to_owned(), Vec::new()),
        ("basic".into(), "GET /".into(), vec!["Authorization: Basic YTpi".into()]),
        (
            "bearer in small letters".into(),
            "GET /".into(),
            vec![format!("Authorization: bearer {good}")],
        ),
        ("a bearer of nothing".into(), "GET /".into(), vec!["Authorization: Bearer".into()]),
        ("two spaces".into(), "GET /".into(), vec![format!("Authorization: Bearer  {good}")]),
        ("a prefix within".into(), "GET /".into(), vec![format!("Authorization: x Bearer {good}")]),
        ("a parameter".into(), format!("GET /a?b=1&access_token={good}&c=2"), Vec::new()),
        ("an escaped parameter".into(), format!("GET /a?access%5Ftoken={good}"), Vec::new()),
        ("a bad parameter".into(), "GET /a?access_token=x".into(), Vec::new()),
        (
            "a field and a bad parameter".into(),
            "GET /?access_token=x".into(),
            vec![format!("Authorization: Bearer {good}")],
        ),
        (
            "a good parameter and a bad one".into(),
            format!("GET /?access_token={good}&access_token=x"),
            Vec::new(),
        ),
        ("a field of its own".into(), "GET /".into(), vec![format!("X-Jwt: {good}")]),
        ("a prefix of its own".into(), "GET /".into(), vec![format!("X-Jwt: JWT {good}")]),
        ("a bad field of its own".into(), "GET /".into(), vec!["X-Jwt: JWT x".into()]),
        ("a parameter of its own".into(), format!("GET /?t={good}&x=1"), Vec::new()),
        ("a cookie".into(), "GET /".into(), vec![format!("Cookie: b=1; jwt={good}")]),
        ("a quoted cookie".into(), "GET /".into(), vec![format!("Cookie: jwt=\"{good}\"")]),
        ("a bad cookie".into(), "GET /".into(), vec!["Cookie: jwt=x".into()]),
        (
            "two fields".into(),
            "GET /".into(),
            vec![format!("Authorization: Bearer {good}"), format!("X-Jwt: {of_b}")],
        ),
        (
            "two fields of which one is bad".into(),
            "GET /".into(),
            vec![format!("Authorization: Bearer {good}"), "X-Jwt: x".into()],
        ),
        (
            "a preflight".into(),
            "OPTIONS /".into(),
            vec![
                "Origin: http://a.example".into(),
                "Access-Control-Request-Method: PUT".into(),
                "Authorization: Bearer x".into(),
            ],
        ),
        (
            "no preflight".into(),
            "OPTIONS /".into(),
            vec!["Origin: http://a.example".into(), "Authorization: Bearer x".into()],
        ),
        ("forged".into(), "GET /".into(), vec!["X-Sub: admin".into(), "X-Payload: x".into()]),
        (
            "forged beside a token".into(),
            "GET /".into(),
            vec!["X-Sub: admin".into(), format!("Authorization: Bearer {good}")],
        ),
    ];
    requests.extend(tokens.into_iter().map(|(what, token)| {
        (
            format!("token {what}"),
            "GET /".to_owned(),
            vec![format!("Authorization: Bearer {token}")],
        )
    }));
    Ok(requests)
}

fn cases_of(by: &Issuers) -> anyhow::Result<Vec<(&'static str, Case)>> {
    let (a, b) = (by.a.jwks()?, by.b.jwks()?);
    let of_a = |more: Value| {
        let mut rule = json!({"issuer": "https://a.example", "jwks": a});
        for (name, value) in more.as_object().into_iter().flatten() {
            rule[name] = value.clone();
        }
        rule
    };
    let of_b = json!({"issuer": "b.example", "jwks": b});
    let only = |rule: Value| Case { policies: Vec::new(), tokens: vec![rule] };
    let under = |spec: Value| Case { policies: vec![spec], tokens: vec![of_a(json!({}))] };
    let source = |source: Value| json!([{"from": [{"source": source}]}]);
    let when = |key: &str, values: Value| {
        let mut condition = values;
        condition["key"] = key.into();
        json!([{"when": [condition]}])
    };
    let principals = |values: Value| json!({"rules": source(json!({"requestPrincipals": values}))});
    let claim = |key: &str, values: Value| json!({"rules": when(key, json!({"values": values}))});
    let elsewhere = json!({"issuer": "b.example", "jwks": b, "fromHeaders": [{"name": "x-jwt"}]});
    Ok(vec![
        ("one issuer", only(of_a(json!({})))),
        ("two issuers", Case { policies: Vec::new(), tokens: vec![of_b.clone(), of_a(json!({}))] }),
        ("two places", Case { policies: Vec::new(), tokens: vec![of_a(json!({})), elsewhere] }),
        ("audiences", only(of_a(json!({"audiences": ["shop", "http://x"]})))),
        (
            "other places",
            only(of_a(json!({
                "fromHeaders": [{"name": "x-jwt", "prefix": "JWT "}], "fromParams": ["t"],
                "fromCookies": ["jwt"],
            }))),
        ),
        ("a field of its own", only(of_a(json!({"fromHeaders": [{"name": "X-Jwt"}]})))),
        ("forwarded", only(of_a(json!({"forwardOriginalToken": true})))),
        (
            "told",
            only(of_a(json!({
                "outputPayloadToHeader": "x-payload",
                "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}],
            }))),
        ),
        (
            "told within",
            only(of_a(json!({
                "outputClaimToHeaders": [{"header": "x-sub", "claim": "deep.er.team"}],
            }))),
        ),
        (
            "told a number",
            only(of_a(json!({
                "outputClaimToHeaders": [{"header": "x-sub", "claim": "n"}],
            }))),
        ),
        (
            "told a boolean",
            only(of_a(json!({"outputClaimToHeaders": [{"header": "x-sub", "claim": "yes"}]}))),
        ),
        (
            "told a fraction",
            only(of_a(json!({"outputClaimToHeaders": [{"header": "x-sub", "claim": "half"}]}))),
        ),
        (
            "told a list",
            only(of_a(json!({"outputClaimToHeaders": [{"header": "x-sub", "claim": "groups"}]}))),
        ),
        (
            "told an object",
            only(of_a(json!({"outputClaimToHeaders": [{"header": "x-sub", "claim": "alone"}]}))),
        ),
        ("allow a principal", under(principals(json!(["https://a.example/order"])))),
        ("allow an issuer", under(principals(json!(["https://a.example/*"])))),
        ("allow a subject", under(principals(json!(["*/order", "x/*"])))),
        ("allow an ending", under(principals(json!(["*rder", "*example/cart/7"])))),
        ("allow anybody", under(principals(json!(["*"])))),
        ("allow no slash", under(principals(json!(["https://a.example"])))),
        (
            "deny nobody",
            under(
                json!({"action": "DENY", "rules": source(json!({"notRequestPrincipals": ["*"]}))}),
            ),
        ),
        (
            "deny a principal",
            under(json!({
                "action": "DENY",
                "rules": when("request.auth.principal", json!({"values": ["https://a.example/order"]})),
            })),
        ),
        ("allow an audience", under(claim("request.auth.audiences", json!(["shop"])))),
        ("allow a presenter", under(claim("request.auth.presenter", json!(["we*"])))),
        ("allow a group", under(claim("request.auth.claims[groups]", json!(["admin"])))),
        (
            "allow but a group",
            under(json!({
                "rules": when("request.auth.claims[groups]", json!({"notValues": ["admin"]})),
            })),
        ),
        (
            "deny a group",
            under(json!({
                "action": "DENY",
                "rules": when("request.auth.claims[groups]", json!({"values": ["guest", "d*"]})),
            })),
        ),
        ("allow a scope", under(claim("request.auth.claims[scope]", json!(["read"])))),
        ("allow all scopes", under(claim("request.auth.claims[scope]", json!(["read write"])))),
        ("allow a role", under(claim("request.auth.claims[roles]", json!(["x"])))),
        (
            "allow a role of a list",
            Case {
                policies: vec![claim("request.auth.claims[roles]", json!(["x"]))],
                tokens: vec![of_a(json!({"spaceDelimitedClaims": ["roles"]}))],
            },
        ),
        (
            "allow a scope within",
            Case {
                policies: vec![claim("request.auth.claims[deep][scope]", json!(["read"]))],
                tokens: vec![of_a(json!({"spaceDelimitedClaims": ["deep.scope"]}))],
            },
        ),
        ("allow within", under(claim("request.auth.claims[deep][er][team]", json!(["blue"])))),
        (
            "allow a list within",
            under(claim("request.auth.claims[deep][er][list]", json!(["two"]))),
        ),
        ("allow an object", under(claim("request.auth.claims[deep][er]", json!(["*"])))),
        ("allow a number", under(claim("request.auth.claims[n]", json!(["7", "*"])))),
        ("allow a boolean", under(claim("request.auth.claims[yes]", json!(["true", "*"])))),
        ("allow what is there", under(claim("request.auth.claims[sub]", json!(["*"])))),
        (
            "allow by a field that was told",
            Case {
                policies: vec![claim("request.headers[x-sub]", json!(["order"]))],
                tokens: vec![of_a(json!({
                    "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}],
                }))],
            },
        ),
        (
            "deny by the token's field",
            under(json!({
                "action": "DENY",
                "rules": when("request.headers[authorization]", json!({"values": ["*"]})),
            })),
        ),
    ])
}

#[tokio::test]
async fn an_agent_believes_the_tokens_that_envoy_does_or_fewer() -> anyhow::Result<()> {
    let by = Issuers {
        a: TokenIssuer::new("a")?,
        b: TokenIssuer::new("b")?,
        thief: TokenIssuer::new("a")?,
    };
    let (requests, cases) = (requests(&by)?, cases_of(&by)?);
    let all: Vec<_> = cases.iter().map(|(_, case)| case.clone()).collect();
    let court = Court::sit(&all).await?;
    let (mut asked, mut found) = (0, Vec::new());
    for (at, (name, case)) in cases.iter().enumerate() {
        court.enact(case).await?;
        let verdicts = requests.iter().map(|(what, target, fields)| {
            let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
            let request =
                format!("{target} HTTP/1.1\r\nHost: go.example\r\n{CASE}: {at}\r\n{fields}\r\n");
            let court = &court;
            async move {
                let agent = court.agent(Who::Client, &request).await.context(what.clone())?;
                let envoy = court.envoy(Who::Client, &request).await.context(what.clone())?;
                anyhow::Ok((what.as_str(), agent, envoy))
            }
        });
        let mut verdicts = stream::iter(verdicts).buffer_unordered(AT_ONCE);
        while let Some(verdict) = verdicts.next().await {
            let (what, mut agent, mut envoy) = verdict?;
            asked += 1;
            // Envoy takes out what any of its rules writes, and has the rules of all cases.
            for verdict in [&mut agent, &mut envoy] {
                let seen = SHOWN.into_iter().zip(verdict.seen.split('|'));
                let is_told =
                    |name: &str| case.tokens.iter().any(|rule| rule.to_string().contains(name));
                let seen = seen.map(|(name, value)| match name {
                    "x-sub" | "x-payload" if !is_told(name) => "",
                    _ => value,
                });
                verdict.seen = seen.collect::<Vec<_>>().join("|");
            }
            if agent != envoy {
                found.push((*name, what, agent, envoy));
            }
        }
    }
    println!("{asked} verdicts on tokens, {} of them others than Envoy's", found.len());
    let mut unknown = Vec::new();
    let mut known = BTreeSet::new();
    for (name, what, agent, envoy) in found {
        let list = match (agent.status, envoy.status) {
            (401, _) => STRICTER,
            (200, 200) if agent.seen.len() < envoy.seen.len() => SEEN_LESS,
            _ => &[],
        };
        match list.contains(&what) {
            true => drop(known.insert(what)),
            false => unknown.push(format!("{name}: {what}\n  {agent:?}\n  {envoy:?}")),
        }
    }
    unknown.sort();
    ensure!(unknown.is_empty(), "not listed:\n{}", unknown.join("\n"));
    for listed in STRICTER.iter().chain(SEEN_LESS) {
        ensure!(known.contains(listed), "{listed} is no difference any more");
    }
    Ok(())
}
