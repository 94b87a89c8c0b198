//! MeshConfig, in Istio's ConfigMap of the root namespace: the external authorizers among its
//! `extensionProviders`, which CUSTOM policies name. Nothing else of it is looked at.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Deserialize;
use serde_json::Value;

use super::{error::Problem, facts::MeshConfigFacts, object::Object};
use crate::{
    mesh::RootNamespace,
    policy::{Names, OverHttp, Provider, Providers, Speaks},
};

/// The ConfigMap.
pub(super) const NAME: &str = "istio";
/// What of it is MeshConfig.
const KEY: &str = "mesh";
/// How long an authorizer may take, where nothing is said. Istio's 600 s would have requests, and the
/// places that they take, wait for whoever hangs.
const TIMEOUT: Duration = Duration::from_secs(10);
const STATUS_ON_ERROR: u16 = 403;

/// The part of MeshConfig that is read, whatever else there is.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MeshConfig {
    extension_providers: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Grpc {
    service: String,
    port: u32,
    timeout: Option<String>,
    fail_open: bool,
    /// There are no routes that could be chosen anew.
    #[serde(rename = "clearRouteCache")]
    _clear_route_cache: bool,
    status_on_error: String,
    include_request_body_in_check: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Http {
    service: String,
    port: u32,
    timeout: Option<String>,
    path_prefix: String,
    fail_open: bool,
    #[serde(rename = "clearRouteCache")]
    _clear_route_cache: bool,
    status_on_error: String,
    include_headers_in_check: Vec<String>,
    include_request_headers_in_check: Vec<String>,
    include_additional_headers_in_check: BTreeMap<String, String>,
    include_request_body_in_check: Option<Value>,
    headers_to_upstream_on_allow: Vec<String>,
    headers_to_downstream_on_deny: Vec<String>,
    headers_to_downstream_on_allow: Vec<String>,
}

/// Whether it is the one that is read.
pub(super) fn is_it(map: &Object<ConfigMap>, root: &RootNamespace) -> bool {
    map.namespace() == root.as_str() && map.name() == NAME
}

/// Reads MeshConfig. What is wrong with a single provider is kept in its place: nobody is let in by it.
pub(super) fn read(map: &Object<ConfigMap>) -> Result<MeshConfigFacts, Problem> {
    let text = map.body.data.as_ref().and_then(|data| data.get(KEY));
    let text = text.map(String::as_str).unwrap_or_default();
    let config = serde_saphyr::from_str::<Option<MeshConfig>>(text).map_err(|error| {
        let what = format!("is no MeshConfig: {error}");
        map.problem(&["data".into(), KEY.into()], what).hint("Istio's MeshConfig, in YAML")
    })?;
    let mut providers = Providers::new();
    for provider in config.unwrap_or_default().extension_providers.into_iter().flatten() {
        let Some((name, provider)) = one(&provider) else { continue };
        let provider = provider.map(Arc::new).map_err(Arc::from);
        if providers.insert(name.clone(), provider).is_some() {
            // Whichever is meant: the other one may be stricter.
            providers.insert(name, Err("there are two of that name".into()));
        }
    }
    Ok(MeshConfigFacts { providers })
}

/// The same of a file: one that is wrong is a problem.
pub(super) fn read_strictly(map: &Object<ConfigMap>) -> Result<MeshConfigFacts, Problem> {
    let facts = read(map)?;
    let mut wrong =
        facts.providers.iter().filter_map(|(name, read)| Some((name, read.as_ref().err()?)));
    match wrong.next() {
        None => Ok(facts),
        Some((name, why)) => {
            let what = format!("has the extension provider `{}`: {why}", name.escape_debug());
            Err(map.problem(&["data".into(), KEY.into()], what))
        }
    }
}

/// A provider by its name; `None` where it is for something else, such as tracing.
fn one(provider: &Value) -> Option<(Arc<str>, Result<Provider, String>)> {
    let name = provider["name"].as_str().unwrap_or_default();
    let fields = provider.as_object()?;
    let (field, spec) = ["envoyExtAuthzGrpc", "envoyExtAuthzHttp"]
        .into_iter()
        .find_map(|field| Some((field, fields.get(field)?)))?;
    let more = fields.keys().find(|key| *key != "name" && *key != field);
    let read = match (more, field) {
        (Some(more), _) => Err(format!("{field} is beside {more} (hint: one of the two)")),
        (None, "envoyExtAuthzGrpc") => from(spec).and_then(grpc),
        (None, _) => from(spec).and_then(http),
    };
    Some((name.into(), read.map_err(|why| format!("{field}: {why}"))))
}

fn from<T: for<'a> Deserialize<'a>>(spec: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(spec).map_err(|error| error.to_string())
}

fn grpc(spec: Grpc) -> Result<Provider, String> {
    no_body(spec.include_request_body_in_check.as_ref())?;
    Ok(Provider {
        service: service(&spec.service)?,
        host: host(&spec.service).into(),
        port: port(spec.port)?,
        timeout: timeout(spec.timeout.as_deref())?,
        fail_open: spec.fail_open,
        status_on_error: status(&spec.status_on_error)?,
        speaks: Speaks::Grpc,
    })
}

fn http(spec: Http) -> Result<Provider, String> {
    no_body(spec.include_request_body_in_check.as_ref())?;
    let prefix = &spec.path_prefix;
    let is_path = |byte: u8| byte.is_ascii_graphic() && !b"?#\\\"<>".contains(&byte);
    if !(prefix.is_empty() || prefix.starts_with('/') && prefix.bytes().all(is_path)) {
        return Err(format!("pathPrefix: `{}` is no path (hint: /check)", prefix.escape_debug()));
    }
    let names =
        |field: &str, names: &[String]| Names::new(names).map_err(|why| format!("{field}: {why}"));
    // The former name of the field counts where the present one is not used, as in Istio.
    let include = match spec.include_request_headers_in_check.is_empty() {
        true => ("includeHeadersInCheck", &spec.include_headers_in_check),
        false => ("includeRequestHeadersInCheck", &spec.include_request_headers_in_check),
    };
    let additional = spec.include_additional_headers_in_check.into_iter();
    let additional = additional.map(|(name, value)| {
        let is_field = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && http::HeaderValue::from_str(&value).is_ok();
        let wrong = || format!("includeAdditionalHeadersInCheck: `{}`", name.escape_debug());
        is_field
            .then_some((name.to_ascii_lowercase().into(), value.as_str().into()))
            .ok_or_else(wrong)
    });
    let over = OverHttp {
        path_prefix: spec.path_prefix.as_str().into(),
        include: names(include.0, include.1)?,
        additional: additional.collect::<Result<_, _>>()?,
        to_upstream_on_allow: names(
            "headersToUpstreamOnAllow",
            &spec.headers_to_upstream_on_allow,
        )?,
        to_downstream_on_deny: names(
            "headersToDownstreamOnDeny",
            &spec.headers_to_downstream_on_deny,
        )?,
        to_downstream_on_allow: names(
            "headersToDownstreamOnAllow",
            &spec.headers_to_downstream_on_allow,
        )?,
    };
    Ok(Provider {
        service: service(&spec.service)?,
        host: host(&spec.service).into(),
        port: port(spec.port)?,
        timeout: timeout(spec.timeout.as_deref())?,
        fail_open: spec.fail_open,
        status_on_error: status(&spec.status_on_error)?,
        speaks: Speaks::Http(Box::new(over)),
    })
}

fn no_body(body: Option<&Value>) -> Result<(), String> {
    match body {
        None | Some(Value::Null) => Ok(()),
        Some(_) => {
            Err("includeRequestBodyInCheck: bodies are not shown to authorizers (hint: one \
                        that judges by the head of requests)"
                .into())
        }
    }
}

/// The host of `[namespace/]host`.
fn host(service: &str) -> &str {
    service.split_once('/').map_or(service, |(_, host)| host)
}

/// The namespace and name of the Service that a host names.
fn service(text: &str) -> Result<(Box<str>, Box<str>), String> {
    let mut parts = host(text).trim_end_matches('.').splitn(4, '.');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc"), Some("cluster.local"))
            if !name.is_empty() && !namespace.is_empty() =>
        {
            Ok((namespace.into(), name.into()))
        }
        _ => Err(format!(
            "service: `{}` is no Service's name (hint: NAME.NAMESPACE.svc.cluster.local)",
            text.escape_debug()
        )),
    }
}

fn port(number: u32) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("port: {number} is none (hint: 1 to 65535)"))
}

/// As protobuf writes a duration in JSON, or Go in YAML.
fn timeout(text: Option<&str>) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(TIMEOUT) };
    let seconds = text.strip_suffix('s').and_then(|seconds| seconds.parse::<f64>().ok());
    let read = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => humantime::parse_duration(text).ok(),
    };
    read.filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| format!("timeout: `{}` is no time (hint: 2s)", text.escape_debug()))
}

fn status(text: &str) -> Result<u16, String> {
    if text.is_empty() {
        return Ok(STATUS_ON_ERROR);
    }
    let status = text.parse().ok().filter(|status| (400..600).contains(status));
    status.ok_or_else(|| {
        format!("statusOnError: `{}` is no error's (hint: \"503\")", text.escape_debug())
    })
}

#[cfg(test)]
mod tests;
