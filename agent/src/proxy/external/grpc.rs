//! Asking over gRPC.

use std::{collections::HashMap, net::SocketAddr, time::SystemTime};

use ::http::{HeaderMap, Uri, uri::PathAndQuery};
use tonic::{
    client::Grpc,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
};
use tonic_prost::ProstCodec;

use super::{
    Unasked,
    answer::{self, Change, Changes, Permit, Said},
    channel::{Client, MOST_BYTES},
    check::Check,
    messages::{
        ADD_IF_ABSENT, Address, AttributeContext, CHECK, CheckRequest, CheckResponse,
        DeniedHttpResponse, HeaderValueOption, HttpRequest, OVERWRITE_IF_EXISTS,
        OVERWRITE_IF_EXISTS_OR_ADD, OkHttpResponse, Peer, Request, SocketAddress,
    },
};
use crate::{mesh::Principal, policy::Provider};

pub(super) async fn ask(
    client: Client,
    provider: &Provider,
    check: Check,
) -> Result<Said, Unasked> {
    let origin = Uri::builder().scheme("http").authority(&*provider.host).path_and_query("/");
    let mut grpc = Grpc::with_origin(client, origin.build()?).max_decoding_message_size(MOST_BYTES);
    grpc.ready().await?;
    let mut request = tonic::Request::new(());
    for (name, value) in check.trace() {
        let name = name.parse::<AsciiMetadataKey>();
        if let (Ok(name), Ok(value)) = (name, AsciiMetadataValue::try_from(&**value)) {
            request.metadata_mut().insert(name, value);
        }
    }
    let request = request.map(|()| CheckRequest { attributes: Some(attributes(check)) });
    let codec = ProstCodec::<CheckRequest, CheckResponse>::default();
    let answer = grpc.unary(request, PathAndQuery::from_static(CHECK), codec).await;
    let answer = answer.map_err(|status| {
        Unasked(format!("it answered {:?}: {}", status.code(), status.message().escape_debug()))
    })?;
    said(answer.into_inner())
}

/// As Envoy fills them in.
fn attributes(check: Check) -> AttributeContext {
    let size = check.size().unwrap_or(-1);
    let Check {
        source,
        source_principal,
        destination,
        destination_principal,
        method,
        scheme,
        host,
        path,
        protocol,
        fields,
    } = check;
    let pseudo =
        [(":method", &method), (":scheme", &scheme), (":authority", &host), (":path", &path)];
    let mut headers: HashMap<_, _> =
        pseudo.map(|(name, value)| (name.to_owned(), value.clone())).into();
    for (name, value) in fields {
        // It is `:authority` by now.
        if name == "host" {
            continue;
        }
        let value = String::from_utf8_lossy(&value);
        let all: &mut String = headers.entry(name).or_default();
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(&value);
    }
    let http = HttpRequest {
        id: rand::random::<u64>().to_string(),
        method,
        headers,
        path,
        host,
        scheme,
        size,
        protocol: protocol.into(),
    };
    AttributeContext {
        source: Some(peer(source, source_principal.as_ref())),
        destination: Some(peer(destination, Some(&destination_principal))),
        request: Some(Request { time: Some(SystemTime::now().into()), http: Some(http) }),
    }
}

fn peer(address: SocketAddr, principal: Option<&Principal>) -> Peer {
    let (ip, port) = (address.ip().to_canonical(), address.port());
    let socket = SocketAddress { address: ip.to_string(), port_value: port.into() };
    Peer {
        address: Some(Address { socket_address: Some(socket) }),
        principal: principal.map(ToString::to_string).unwrap_or_default(),
    }
}

fn said(response: CheckResponse) -> Result<Said, Unasked> {
    let CheckResponse { status, denied_response, ok_response, error_response } = response;
    if error_response.is_some() {
        return Err(Unasked("it could not tell, and said so".into()));
    }
    // Without a status it is the default one, OK, as for Envoy.
    if status.unwrap_or_default().code != 0 {
        return denied(denied_response.unwrap_or_default());
    }
    if denied_response.is_some() {
        return Err(Unasked("it said that the request may pass, and how it is denied".into()));
    }
    permitted(ok_response.unwrap_or_default())
}

fn denied(response: DeniedHttpResponse) -> Result<Said, Unasked> {
    let mut fields = Changes::default();
    for option in response.headers {
        fields.push(changed(option)?.0);
    }
    let mut all = HeaderMap::new();
    fields.apply(&mut all);
    let status = response.status.map_or(403, |status| status.code);
    Ok(answer::denied(u16::try_from(status).unwrap_or_default(), response.body.as_bytes(), all))
}

fn permitted(response: OkHttpResponse) -> Result<Said, Unasked> {
    if !response.query_parameters_to_set.is_empty()
        || !response.query_parameters_to_remove.is_empty()
    {
        return Err(Unasked("it wants another query, which is not supported".into()));
    }
    let mut permit = Permit::default();
    for option in response.headers {
        permit.request.push(match changed(option)? {
            // Where nothing is said of others of the name, it takes their place: Envoys differ over that, and
            // a client may have sent one to be taken for the authorizer's.
            (Change::Add(name, value), false) => Change::Set(name, value),
            (change, _) => change,
        });
    }
    for name in response.headers_to_remove {
        permit.request.push(Change::Remove(answer::name(&name)?));
    }
    for option in response.response_headers_to_add {
        permit.response.push(changed(option)?.0);
    }
    Ok(Said::Permitted(Box::new(permit)))
}

fn field(option: &HeaderValueOption) -> Result<(::http::HeaderName, ::http::HeaderValue), Unasked> {
    let header = option.header.clone().unwrap_or_default();
    let value =
        if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    answer::field(&header.key, value)
}

/// What becomes of a field, which says by itself what becomes of others of its name; and whether it does
/// say so.
fn changed(option: HeaderValueOption) -> Result<(Change, bool), Unasked> {
    let (name, value) = field(&option)?;
    let change = match (option.append, option.append_action) {
        (Some(true), _) => Change::Add(name, value),
        (Some(false), _) => Change::Set(name, value),
        (None, ADD_IF_ABSENT) => Change::Ensure(name, value),
        (None, OVERWRITE_IF_EXISTS_OR_ADD) => Change::Set(name, value),
        (None, OVERWRITE_IF_EXISTS) => Change::Replace(name, value),
        (None, _) => Change::Add(name, value),
    };
    Ok((change, option.append.is_some()))
}

#[cfg(test)]
mod tests {
    use super::{super::messages::*, *};

    fn option(append: Option<bool>, append_action: i32) -> HeaderValueOption {
        let header = HeaderValue { key: "X-A".into(), value: "new".into(), raw_value: vec![] };
        HeaderValueOption { header: Some(header), append, append_action }
    }

    /// What becomes of a request that has the field twice, where this is said of it.
    fn request(option: HeaderValueOption) -> usize {
        let response = OkHttpResponse { headers: vec![option], ..OkHttpResponse::default() };
        let Ok(Said::Permitted(permit)) = permitted(response) else {
            panic!("it is not permitted")
        };
        let mut head = HeaderMap::new();
        head.append("x-a", ::http::HeaderValue::from_static("1"));
        head.append("x-a", ::http::HeaderValue::from_static("2"));
        permit.request.apply(&mut head);
        head.get_all("x-a").iter().count()
    }

    #[test]
    fn a_field_takes_the_place_of_the_client_s_unless_it_says_otherwise() {
        assert_eq!(request(option(None, 0)), 1);
        assert_eq!(request(option(Some(false), 0)), 1);
        assert_eq!(request(option(Some(true), 0)), 3);
        assert_eq!(request(option(None, ADD_IF_ABSENT)), 2);
        assert_eq!(request(option(None, OVERWRITE_IF_EXISTS)), 1);
    }

    #[test]
    fn whatever_is_not_a_plain_yes_lets_nobody_in() {
        let status = |code| Some(Status { code });
        assert!(matches!(said(CheckResponse::default()), Ok(Said::Permitted(_))));
        let denied = CheckResponse { status: status(7), ..CheckResponse::default() };
        let Ok(Said::Denied(answer)) = said(denied) else { panic!("it is permitted") };
        assert_eq!((answer.status, &*answer.text), (403, ""));
        let both = Some(DeniedHttpResponse::default());
        assert!(
            said(CheckResponse { denied_response: both.clone(), ..CheckResponse::default() })
                .is_err()
        );
        let error =
            CheckResponse { status: status(7), error_response: both, ..CheckResponse::default() };
        assert!(said(error).is_err());
        let query = OkHttpResponse {
            query_parameters_to_remove: vec!["a".into()],
            ..OkHttpResponse::default()
        };
        assert!(permitted(query).is_err());
        let mut path = option(None, 0);
        path.header.as_mut().unwrap().key = ":path".into();
        let path = OkHttpResponse { headers: vec![path], ..OkHttpResponse::default() };
        assert!(permitted(path).is_err());
    }
}
