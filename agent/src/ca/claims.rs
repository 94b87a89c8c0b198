//! What a token says of itself, believed only where it speaks against it.

use std::time::SystemTime;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// No service-account token is longer, and no stranger's needs to reach the API server.
const LONGEST: usize = 16 << 10;

/// The claims of a Kubernetes service-account token (RFC 7519) that can rule it out.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    exp: f64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Whether it is worth the API server's time to ask about `token`. That it is genuine only the
/// API server can say; that it is none, of somebody else, for somebody else or over, anybody.
///
/// # Errors
/// In words.
pub(super) fn plausible(token: &str, audience: &str, now: SystemTime) -> Result<(), String> {
    if token.len() > LONGEST {
        return Err("it is too long for one".into());
    }
    let claims = read(token).ok_or("it is no service-account token")?;
    if !claims.sub.starts_with("system:serviceaccount:") {
        return Err("it is no service account's".into());
    }
    let named = match &claims.aud {
        Audience::One(one) => one == audience,
        Audience::Several(several) => several.iter().any(|one| one == audience),
    };
    if !named {
        return Err("it is for another audience".into());
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if claims.exp <= now {
        return Err("it has expired (hint: is the clock right?)".into());
    }
    Ok(())
}

fn read(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (Some(_head), Some(payload), Some(_signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn said(claims: &Value) -> Result<(), String> {
        let token = format!("head.{}.signature", URL_SAFE_NO_PAD.encode(claims.to_string()));
        plausible(&token, "sluice-ca", SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn a_token_that_may_be_genuine_is_worth_a_question() {
        let sub = "system:serviceaccount:shop:order";
        assert_eq!(said(&json!({"sub": sub, "aud": ["x", "sluice-ca"], "exp": NOW + 1})), Ok(()));
        assert_eq!(said(&json!({"sub": sub, "aud": "sluice-ca", "exp": NOW + 1, "x": {}})), Ok(()));
    }

    #[test]
    fn a_token_that_speaks_against_itself_is_not() {
        let sub = "system:serviceaccount:shop:order";
        for (claims, why) in [
            (json!({"sub": "admin", "aud": "sluice-ca", "exp": NOW + 1}), "no service account's"),
            (json!({"sub": sub, "aud": ["kubernetes"], "exp": NOW + 1}), "another audience"),
            (json!({"sub": sub, "aud": "sluice-ca", "exp": NOW}), "has expired"),
            (json!({"sub": sub, "aud": "sluice-ca"}), "no service-account token"),
            (json!([]), "no service-account token"),
        ] {
            let refused = said(&claims).unwrap_err();
            assert!(refused.contains(why), "{refused}, for {claims}");
        }
    }

    #[test]
    fn what_is_no_token_at_all_never_reaches_the_api_server() {
        for text in ["made-up", "a.b.c", "a.b", "..", &"x".repeat(LONGEST + 1)] {
            plausible(text, "sluice-ca", SystemTime::now()).unwrap_err();
        }
    }
}
