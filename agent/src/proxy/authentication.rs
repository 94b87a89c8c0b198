//! Whom a request's token says it is from, asked before policies are.

use std::{
    pin::Pin,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue, header};

use super::{Proxy, refusal::Refusal};
use crate::{
    http::{Answer, AnyRequest},
    jwt::{Authentication, Fault, Refused},
    mesh::Workload,
    policy::Claims,
    telemetry::{Failure, Judgement, Ruling},
};

/// As much of a path is said back to whoever asked for it, as Envoy does.
const MOST_OF_PATH: usize = 256;

/// What becomes of a request: what its token claims, where it has one.
type Asking<'a> = Pin<Box<dyn Future<Output = Result<Option<Claims>, Refusal>> + Send + 'a>>;

/// Asks about the token of a request; `None` where nothing of `workload` speaks of tokens. The request is then
/// as the application is to see it.
pub(super) fn asked<'a>(
    proxy: &'a Proxy,
    workload: &Workload,
    request: &'a mut (impl AnyRequest + Send),
) -> Option<Asking<'a>> {
    if workload.authentication.is_empty() {
        return None;
    }
    let authentication = workload.authentication.clone();
    // Boxed, as what few pods come to: others would carry its size along.
    Some(Box::pin(async move { ask(proxy, &authentication, request).await }))
}

async fn ask(
    proxy: &Proxy,
    authentication: &Authentication,
    request: &mut (impl AnyRequest + Send),
) -> Result<Option<Claims>, Refusal> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let refused = match authentication.authenticate(request, &*proxy.issuers, now).await {
        Ok(claims) => return Ok(claims),
        Err(refused) => refused,
    };
    let message = refused.to_string();
    Err(match refused {
        Refused::Fault(fault, by, rule) => {
            let ruling = Ruling { policy: by.name().clone(), rule: Some(rule) };
            let status = fault.status();
            let fields = Some(challenge(&*request, fault).into());
            let answer = Answer { status: status.as_u16(), text: fault.to_string(), fields };
            let refusal = Refusal::new(status, Failure::JwtDenied, message);
            Refusal { judgement: judgement(ruling), answer: Some(answer.into()), ..refusal }
        }
        Refused::Unreadable(by) => {
            let ruling = Ruling { policy: by.name().clone(), rule: None };
            let judgement = judgement(ruling);
            Refusal { judgement, ..Refusal::denied(message) }
        }
    })
}

fn judgement(denied: Ruling) -> Option<Box<Judgement>> {
    Some(Box::new(Judgement { denied: Some(denied), ..Judgement::default() }))
}

/// What a client has to bring (RFC 6750 §3). Its query is not said back: there may be a token in it.
fn challenge(request: &impl AnyRequest, fault: Fault) -> HeaderMap {
    let target = request.target();
    let host = target.authority.or_else(|| request.value_of("host")).unwrap_or_default();
    let path = &target.path[..target.path.len().min(MOST_OF_PATH)];
    let mut value = b"Bearer realm=\"".to_vec();
    value.extend_from_slice(target.scheme.unwrap_or(b"http"));
    value.extend_from_slice(b"://");
    let is_plain = |byte: &&u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    value.extend(host.iter().chain(path).filter(is_plain));
    value.push(b'"');
    if fault != Fault::Missing {
        value.extend_from_slice(b", error=\"invalid_token\"");
    }
    let value = HeaderValue::from_bytes(&value);
    value.map(|value| (header::WWW_AUTHENTICATE, value)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_what_to_bring_and_never_its_token() {
        let told = |target: &str, fault| {
            let request = http::Request::get(target).header("host", "shop").body(()).unwrap();
            let fields = challenge(&request.into_parts().0, fault);
            fields[header::WWW_AUTHENTICATE].to_str().unwrap().to_owned()
        };
        let invalid = ", error=\"invalid_token\"";
        assert_eq!(
            told("/a/b?access_token=x", Fault::Expired),
            format!("Bearer realm=\"http://shop/a/b\"{invalid}")
        );
        assert_eq!(
            told("https://shop:8443/", Fault::Missing),
            "Bearer realm=\"https://shop:8443/\""
        );
        let long = format!("/{}", "a".repeat(1000));
        let cut = format!("/{}", "a".repeat(255));
        assert_eq!(told(&long, Fault::Missing), format!("Bearer realm=\"http://shop{cut}\""));
    }
}
