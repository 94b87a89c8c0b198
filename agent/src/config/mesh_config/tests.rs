use super::super::testing::load;
use crate::policy::{Provider, Speaks};

/// MeshConfig with these lines.
fn config(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  meshNetworks: 'networks: {{}}'\n  mesh: |\n{lines}"
    )
}

/// The one provider of `spec`, or what is wrong with it.
fn provider(spec: &str) -> Result<Provider, String> {
    let snapshot = load(&config(&format!("extensionProviders:\n- {{name: one, {spec}}}\n")))?;
    Ok((**snapshot.providers()["one"].as_ref().unwrap()).clone())
}

const SERVICE: &str = "service: authz.shop.svc.cluster.local, port: 9000";

#[test]
fn external_authorizers_are_read_and_whatever_else_mesh_config_has_is_not() {
    let text = "
accessLogFile: /dev/stdout
defaultConfig: {discoveryAddress: istiod.istio-system.svc:15012}
extensionProviders:
- name: otel
  opentelemetry: {service: otel.observability.svc.cluster.local, port: 4317}
- name: over-grpc
  envoyExtAuthzGrpc:
    service: istio-system/authz.shop.svc.cluster.local
    port: 9000
- name: over-http
  envoyExtAuthzHttp:
    service: authz.shop.svc.cluster.local
    port: '8000'
";
    let wrong = load(&config(text)).unwrap_err();
    assert!(wrong.contains("over-http") && wrong.contains("port: invalid type"), "{wrong}");
    let snapshot = load(&config(&text.replace("'8000'", "8000"))).unwrap();
    let providers = snapshot.providers();
    assert_eq!(
        providers.keys().map(|name| &**name).collect::<Vec<_>>(),
        ["over-grpc", "over-http"]
    );
    let grpc = providers["over-grpc"].as_ref().unwrap();
    assert_eq!(grpc.service, ("shop".into(), "authz".into()));
    assert_eq!((&*grpc.host, grpc.port), ("authz.shop.svc.cluster.local", 9000));
    assert_eq!((grpc.timeout.as_secs(), grpc.fail_open, grpc.status_on_error), (10, false, 403));
    assert_eq!(grpc.speaks, Speaks::Grpc);
    assert!(matches!(providers["over-http"].as_ref().unwrap().speaks, Speaks::Http(_)));
}

#[test]
fn a_config_map_of_another_namespace_says_nothing_and_of_another_name_is_none_of_ours() {
    let text =
        config(&format!("extensionProviders: [{{name: a, envoyExtAuthzGrpc: {{{SERVICE}}}}}]"));
    assert_eq!(load(&text).unwrap().providers().len(), 1);
    assert!(load(&text.replace("istio-system", "shop")).unwrap().providers().is_empty());
    let other = load(&text.replace("name: istio,", "name: other,")).unwrap_err();
    assert!(other.contains("ConfigMap (v1) is no kind the agent knows"), "{other}");
}

#[test]
fn every_field_of_an_authorizer_counts() {
    let spec = format!(
        "envoyExtAuthzHttp: {{{SERVICE}, timeout: 0.5s, pathPrefix: /check, failOpen: true, \
         clearRouteCache: true, statusOnError: '503', includeHeadersInCheck: [x-old], \
         includeRequestHeadersInCheck: [x-new], includeAdditionalHeadersInCheck: {{X-A: b}}, \
         headersToUpstreamOnAllow: ['x-up-*'], headersToDownstreamOnDeny: ['*-down'], \
         headersToDownstreamOnAllow: [x-both]}}"
    );
    let provider = provider(&spec).unwrap();
    assert_eq!((provider.timeout.as_millis(), provider.status_on_error), (500, 503));
    assert!(provider.fail_open);
    let Speaks::Http(over) = provider.speaks else { panic!() };
    assert_eq!(&*over.path_prefix, "/check");
    assert!(over.include.contain("x-new") && !over.include.contain("x-old"));
    assert_eq!(over.additional, [("x-a".into(), "b".into())]);
    assert!(over.to_upstream_on_allow.contain("x-up-a"));
    assert!(over.to_downstream_on_deny.contain("x-down"));
    assert!(over.to_downstream_on_allow.contain("x-both"));
}

#[test]
fn what_cannot_be_obeyed_is_refused_with_the_field() {
    let grpc = |more: &str| format!("envoyExtAuthzGrpc: {{{SERVICE}, {more}}}");
    for (spec, says) in [
        (grpc("failopen: true"), "unknown field `failopen`"),
        (grpc("includeRequestBodyInCheck: {maxRequestBytes: 1024}"), "bodies are not shown"),
        (grpc("statusOnError: '200'"), "statusOnError: `200`"),
        (grpc("timeout: 0s"), "timeout: `0s` is no time"),
        (grpc("timeout: soon"), "timeout: `soon` is no time"),
        ("envoyExtAuthzGrpc: {service: authz, port: 1}".into(), "service: `authz` is no Service"),
        ("envoyExtAuthzGrpc: {service: a.b.svc.cluster.local}".into(), "port: 0 is none"),
        (format!("envoyExtAuthzHttp: {{{SERVICE}, pathPrefix: check}}"), "pathPrefix: `check`"),
        (
            format!("envoyExtAuthzHttp: {{{SERVICE}, headersToUpstreamOnAllow: ['*']}}"),
            "headersToUpstreamOnAllow: a single star",
        ),
        (format!("{}, zipkin: {{}}", grpc("")), "is beside zipkin"),
    ] {
        let wrong = provider(&spec).unwrap_err();
        assert!(wrong.contains(says) && wrong.starts_with("mesh.yaml:"), "{says}: {wrong}");
    }
    let two = format!("{{name: one, {}}}", grpc(""));
    let wrong = load(&config(&format!("extensionProviders: [{two}, {two}]"))).unwrap_err();
    assert!(wrong.contains("there are two of that name"), "{wrong}");
    assert!(load(&config("extensionProviders: {")).unwrap_err().contains("is no MeshConfig"));
}
