//! The rules of a RequestAuthentication.

use std::time::Duration;

use http::{HeaderName, Uri};
use serde::Deserialize;

use super::RequestAuthentication;
use crate::{
    config::{
        error::{Problem, meant_or_all},
        object::Object,
        yaml::Step,
    },
    jwt::{self, ClaimHeader, HeaderLocation, KeySet, KeySource, RemoteSource},
};

/// How long a server of keys may take, where nobody says.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Istio takes no less.
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);

/// Fields by which a message is framed, routed or kept apart from others: none may come from a token.
const NOT_OURS: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename = "JWTRule", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct JwtRule {
    issuer: String,
    audiences: Vec<String>,
    jwks_uri: String,
    /// The same by another name.
    #[serde(rename = "jwks_uri")]
    jwks_uri_too: String,
    jwks: String,
    from_headers: Vec<JwtHeader>,
    from_params: Vec<String>,
    from_cookies: Vec<String>,
    output_payload_to_header: String,
    output_claim_to_headers: Vec<ClaimToHeader>,
    forward_original_token: bool,
    timeout: Option<String>,
    space_delimited_claims: Vec<String>,
    presence: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename = "JWTHeader", deny_unknown_fields)]
struct JwtHeader {
    name: String,
    prefix: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClaimToHeader {
    header: String,
    claim: String,
}

pub(super) fn read(
    object: &Object<RequestAuthentication>,
    rules: &[JwtRule],
) -> Result<Vec<jwt::Rule>, Problem> {
    let rule = |(index, rule): (usize, _)| {
        let steps = vec!["spec".into(), "jwtRules".into(), index.into()];
        Reading { object, steps }.rule(rule)
    };
    rules.iter().enumerate().map(rule).collect()
}

/// One rule, as it is read.
struct Reading<'a> {
    object: &'a Object<RequestAuthentication>,
    steps: Vec<Step<'a>>,
}

impl<'a> Reading<'a> {
    fn rule(&self, rule: &JwtRule) -> Result<jwt::Rule, Problem> {
        let header = |header: &HeaderAt<'_>| self.header(header);
        let from_headers =
            rule.from_headers.iter().enumerate().map(|(index, JwtHeader { name, prefix })| {
                let name =
                    header(&HeaderAt { list: "fromHeaders", item: Some((index, "name")), name })?;
                Ok(HeaderLocation { name, prefix: prefix.as_str().into() })
            });
        let claims = rule.output_claim_to_headers.iter().enumerate();
        let claim_headers = claims.map(|(index, ClaimToHeader { header: name, claim })| {
            let list = "outputClaimToHeaders";
            if claim.is_empty() {
                let problem =
                    self.problem(&[list.into(), index.into(), "claim".into()], "is missing");
                return Err(problem.hint("the name of a claim of the token"));
            }
            let header = header(&HeaderAt { list, item: Some((index, "header")), name })?;
            Ok(ClaimHeader { header, claim: claim.as_str().into() })
        });
        let payload = Some(&rule.output_payload_to_header).filter(|name| !name.is_empty());
        let payload = payload
            .map(|name| header(&HeaderAt { list: "outputPayloadToHeader", item: None, name }));
        Ok(jwt::Rule {
            issuer: rule.issuer.as_str().into(),
            audiences: self.texts("audiences", &rule.audiences)?,
            keys: self.keys(rule)?,
            from_headers: from_headers.collect::<Result<_, _>>()?,
            from_params: self.texts("fromParams", &rule.from_params)?,
            from_cookies: self.texts("fromCookies", &rule.from_cookies)?,
            forward: rule.forward_original_token,
            payload_header: payload.transpose()?,
            claim_headers: claim_headers.collect::<Result<_, _>>()?,
            space_delimited: self.texts("spaceDelimitedClaims", &rule.space_delimited_claims)?,
            required: self.presence(rule.presence.as_deref())?,
        })
    }

    fn keys(&self, rule: &JwtRule) -> Result<KeySource, Problem> {
        let (uri, field) = match (rule.jwks_uri.as_str(), rule.jwks_uri_too.as_str()) {
            (uri, "") => (uri, "jwksUri"),
            ("", uri) => (uri, "jwks_uri"),
            _ => {
                let problem = self.problem(&["jwks_uri".into()], "is there beside jwksUri");
                return Err(problem.hint("jwksUri alone"));
            }
        };
        if rule.issuer.is_empty() && uri.is_empty() {
            let problem = self.problem(&["issuer".into()], "is missing");
            return Err(problem.hint("what the claim `iss` of the tokens has"));
        }
        if !uri.is_empty() && !rule.jwks.is_empty() {
            let problem = self.problem(&["jwks".into()], format_args!("is there beside {field}"));
            return Err(problem.hint("one of the two"));
        }
        if !rule.jwks.is_empty() {
            return match KeySet::parse(rule.jwks.as_bytes()) {
                Ok(_) => Ok(KeySource::Inline(rule.jwks.as_str().into())),
                Err(why) => Err(self
                    .problem(&["jwks".into()], format_args!("is no JSON Web Key Set: {why}"))
                    .hint("{\"keys\": […]}, with public keys of kty RSA, EC or OKP")),
            };
        }
        let timeout = self.timeout(rule.timeout.as_deref())?;
        if uri.is_empty() {
            let uri = rule.issuer.as_str().into();
            return Ok(KeySource::Remote(RemoteSource { uri, discovers: true, timeout }));
        }
        let parsed = uri.parse::<Uri>().ok();
        let scheme = parsed.as_ref().and_then(Uri::scheme_str);
        if !matches!(scheme, Some("http" | "https")) {
            let what = format_args!("`{}` is no URL of HTTP", uri.escape_debug());
            return Err(self
                .problem(&[Step::Field(field)], what)
                .hint("https://…, or http://… within the mesh"));
        }
        Ok(KeySource::Remote(RemoteSource { uri: uri.into(), discovers: false, timeout }))
    }

    fn timeout(&self, text: Option<&str>) -> Result<Duration, Problem> {
        let Some(text) = text else { return Ok(TIMEOUT) };
        let seconds = text.strip_suffix('s').and_then(|number| number.parse().ok());
        let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let duration = seconds.or_else(|| humantime::parse_duration(text).ok());
        duration.filter(|duration| *duration >= LEAST_TIMEOUT).ok_or_else(|| {
            let what = format_args!("`{}` is no duration", text.escape_debug());
            self.problem(&["timeout".into()], what).hint("such as 5s, and at least 1ms")
        })
    }

    fn presence(&self, text: Option<&str>) -> Result<bool, Problem> {
        match text {
            None | Some("OPTIONAL") => Ok(false),
            Some("REQUIRED") => Ok(true),
            Some(other) => {
                let hint = meant_or_all(other, "values", &["OPTIONAL", "REQUIRED"]);
                let what = format_args!("`{}` is no presence", other.escape_debug());
                Err(self.problem(&["presence".into()], what).hint(hint))
            }
        }
    }

    fn texts(&self, field: &'static str, list: &[String]) -> Result<Vec<Box<str>>, Problem> {
        let text = |(index, text): (usize, &String)| match text.as_str() {
            "" => Err(self.problem(&[field.into(), index.into()], "is empty").hint("leave it out")),
            text => Ok(text.into()),
        };
        list.iter().enumerate().map(text).collect()
    }

    /// A header's name in small letters.
    fn header(&self, at: &HeaderAt<'_>) -> Result<Box<str>, Problem> {
        let HeaderAt { list, item, name } = *at;
        let mut steps = vec![Step::Field(list)];
        if let Some((index, field)) = item {
            steps.extend([index.into(), Step::Field(field)]);
        }
        if name.is_empty() {
            return Err(self.problem(&steps, "is missing").hint("the name of a header"));
        }
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            let what = format_args!("`{}` is not the name of a header", name.escape_debug());
            return Err(self.problem(&steps, what).hint("such as x-jwt-payload"));
        };
        if NOT_OURS.contains(&header.as_str()) {
            let what = format_args!("`{header}` says how a message is carried");
            return Err(self.problem(&steps, what).hint("a header of the application's own"));
        }
        Ok(header.as_str().into())
    }

    fn problem(&self, below: &[Step<'a>], what: impl std::fmt::Display) -> Problem {
        self.object.problem(&[&self.steps, below].concat(), what)
    }
}

/// The name of a header, and where it is written.
struct HeaderAt<'a> {
    list: &'static str,
    item: Option<(usize, &'static str)>,
    name: &'a str,
}
