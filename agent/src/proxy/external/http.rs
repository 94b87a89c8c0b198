//! Asking over HTTP, by a request like the one that is asked about, without its body.

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header, request::Builder};
use http_body_util::{BodyExt, Limited};
use tonic::body::Body;

use super::{
    Unasked,
    answer::{self, Change, Permit, Said, is_framing},
    channel::{Client, MOST_BYTES},
    check::Check,
};
use crate::policy::{Names, OverHttp, Provider};

/// By which an authorizer over HTTP has fields taken away from the request, as for Envoy.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";

pub(super) async fn ask(
    client: Client,
    provider: &Provider,
    over: &OverHttp,
    check: Check,
) -> Result<Said, Unasked> {
    let request = request(provider, over, &check)?.body(Body::empty())?;
    let response = client
        .request(request)
        .await
        .map_err(|error| Unasked(format!("no answer: {}", crate::causes::causes(&error))))?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MOST_BYTES).collect().await?.to_bytes();
    match head.status.as_u16() {
        200 => permitted(over, &head.headers),
        500.. => Err(Unasked(format!("it answered {}", head.status))),
        status => {
            let names = &over.to_downstream_on_deny;
            let fields = head.headers.iter().filter(|(name, _)| is_for_client(names, name));
            let fields = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
            Ok(answer::denied(status, &body, fields))
        }
    }
}

fn request(provider: &Provider, over: &OverHttp, check: &Check) -> Result<Builder, Unasked> {
    if check.method == "CONNECT" {
        // HTTP/1 has no path for it, so that nobody would see what is asked for.
        return Err(Unasked("nobody can be asked about a CONNECT by a request".into()));
    }
    let uri = Uri::builder()
        .scheme("http")
        .authority(&*provider.host)
        .path_and_query(format!("{}{}", over.path_prefix, check.path));
    let mut request = Request::builder().method(&*check.method).uri(uri.build()?);
    let fields = request.headers_mut().ok_or("its method is none")?;
    for (name, value) in &check.fields {
        // The latter by Envoy's own rule.
        if !over.include.contain(name) && name != header::AUTHORIZATION.as_str() {
            continue;
        }
        let name = HeaderName::from_bytes(name.as_bytes())?;
        if !is_framing(&name) {
            fields.append(name, HeaderValue::from_bytes(value)?);
        }
    }
    for (name, value) in check.trace() {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        fields.insert(name, HeaderValue::from_bytes(value)?);
    }
    for (name, value) in &over.additional {
        fields.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    fields.insert(header::HOST, HeaderValue::from_str(&check.host)?);
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    Ok(request)
}

fn permitted(over: &OverHttp, fields: &HeaderMap) -> Result<Said, Unasked> {
    let mut permit = Permit::default();
    let removed = fields.get_all(REMOVE).iter().filter_map(|value| value.to_str().ok());
    for name in removed.flat_map(|names| names.split(',')).map(str::trim) {
        if !name.is_empty() {
            permit.request.push(Change::Remove(answer::name(name)?));
        }
    }
    let take = |names: &Names, changes: &mut answer::Changes| {
        for name in fields.keys().filter(|name| names.contain(name.as_str()) && !is_framing(name)) {
            for (at, value) in fields.get_all(name).iter().enumerate() {
                let (name, value) = (name.clone(), value.clone());
                changes.push(match at {
                    0 => Change::Set(name, value),
                    _ => Change::Add(name, value),
                });
            }
        }
    };
    take(&over.to_upstream_on_allow, &mut permit.request);
    take(&over.to_downstream_on_allow, &mut permit.response);
    Ok(Said::Permitted(Box::new(permit)))
}

/// Whether a field of an answer that denies is for the client: where none is named, each is.
fn is_for_client(names: &Names, name: &HeaderName) -> bool {
    let is_one = names.is_empty()
        || names.contain(name.as_str())
        || [header::WWW_AUTHENTICATE, header::LOCATION].contains(name);
    is_one && !is_framing(name)
}
