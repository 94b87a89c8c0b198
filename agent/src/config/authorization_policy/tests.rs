use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use http::request::Parts;

use super::super::{MeshSettings, selection, testing::Loader};
use crate::{
    mesh::{Snapshot, Workload},
    policy::{Asks, Authorization, Connection, Request},
};

const ORDER: &str = "10.0.0.1";

/// `order` and `cart` of namespace `shop`, and a Service for each, under the policies of `text`; or the
/// problems, one a line.
fn shop(text: &str, loader: &mut Loader) -> Result<Snapshot, String> {
    let pod = |name: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: \
             {name}, labels: {{app: {name}, istio.io/dataplane-mode: ambient}}}}\nspec: {{}}\n\
             status: {{podIP: {ip}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: \
             {name}, namespace: shop}}\nspec: {{clusterIP: None, selector: {{app: {name}}}, ports: \
             [{{port: 80}}]}}\n"
        )
    };
    let pods = pod("order", ORDER) + &pod("cart", "10.0.0.2");
    loader.load(&format!("{text}{pods}")).map(|(snapshot, _)| snapshot)
}

/// Nothing was loaded yet.
fn loader(trust_domain: &str) -> Loader {
    let (trust_domain, root_namespace) = (trust_domain.parse().unwrap(), "root".parse().unwrap());
    Loader::new(MeshSettings { trust_domain, root_namespace, node: "".into() })
}

fn pod(snapshot: &Snapshot, ip: &str) -> Arc<Workload> {
    snapshot.workload(ip.parse().unwrap()).unwrap().clone()
}

/// What is in force for `order`.
fn order(text: &str) -> Result<Arc<Authorization>, String> {
    let snapshot = shop(text, &mut loader("cluster.local"))?;
    Ok(pod(&snapshot, ORDER).authorization.clone())
}

/// The policies in force for it, by name.
fn names(text: &str) -> Vec<String> {
    let authorization = order(text).unwrap();
    authorization.policies().iter().map(|policy| policy.name().to_string()).collect()
}

/// A policy in YAML.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{namespace: {namespace}, name: {name}}}\n{spec}\n"
    )
}

/// The problem of one with these rules.
fn problem(rules: &str) -> String {
    order(&policy("shop", "a", &format!("spec:\n  rules:\n  {rules}"))).unwrap_err()
}

/// What it says of a request to `order`.
fn asked(authorization: &Authorization, principal: &str, head: &Parts) -> String {
    let principal = principal.parse().ok();
    let source: IpAddr = "10.0.0.7".parse().unwrap();
    let destination = "10.0.0.1:8080".parse().unwrap();
    let connection = Connection { principal: principal.as_ref(), source, destination };
    let request = Request::new(head).unwrap();
    authorization.decide(&connection, &Asks::Request(&request)).to_string()
}

fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

const FRONTEND: &str = "spiffe://cluster.local/ns/default/sa/frontend";
const ALLOW_NOTHING: &str = "spec: {}";

#[test]
fn a_policy_speaks_for_its_namespace_for_what_it_selects_or_for_the_mesh() {
    assert_eq!(names(&policy("other", "a", ALLOW_NOTHING)), Vec::<String>::new());
    assert_eq!(names(&policy("shop", "a", ALLOW_NOTHING)), ["shop/a"]);
    let all = policy("shop", "b", "spec: {selector: {matchLabels: {app: order}}}")
        + &policy("shop", "c", "spec: {selector: {matchLabels: {app: cart}}}")
        + &policy("root", "z", ALLOW_NOTHING)
        + &policy("root", "w", "spec: {selector: {matchLabels: {app: order}}}")
        + &policy("root", "x", "spec: {selector: {matchLabels: {app: cart}}}")
        + &policy("shop", "a", "spec: {selector: {}}");
    assert_eq!(names(&all), ["root/w", "root/z", "shop/a", "shop/b"]);
}

#[test]
fn a_policy_for_a_service_speaks_for_its_pods_and_one_for_a_gateway_for_nobody_here() {
    let for_target =
        |target: &str| policy("shop", "a", &format!("spec: {{targetRefs: [{target}]}}"));
    assert_eq!(names(&for_target("{kind: Service, name: order}")), ["shop/a"]);
    assert_eq!(names(&for_target("{kind: Service, group: core, name: order}")), ["shop/a"]);
    assert_eq!(
        names(&for_target("{kind: Service, name: cart}, {kind: Service, name: order}")),
        ["shop/a"]
    );
    for nobody in [
        "{kind: Service, name: cart}",
        "{kind: Service, name: none}",
        "{kind: Gateway, group: gateway.networking.k8s.io, name: order}",
        "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}",
        "{kind: ServiceEntry, group: networking.istio.io, name: order}",
    ] {
        assert!(names(&for_target(nobody)).is_empty(), "{nobody}");
    }
    let one = policy("shop", "a", "spec: {targetRef: {kind: Service, name: order}}");
    assert_eq!(names(&one), ["shop/a"]);
    let elsewhere = policy("root", "a", "spec: {targetRefs: [{kind: Service, name: order}]}");
    assert!(names(&elsewhere).is_empty());
    assert_eq!(
        order(&for_target("{kind: Pod, name: order}")).unwrap_err(),
        "mesh.yaml:5:28: spec.targetRefs[0].kind `Pod` of group `` is nothing that a policy can \
         speak for (hint: kind: Service with an empty group, Gateway or GatewayClass of \
         gateway.networking.k8s.io, ServiceEntry of networking.istio.io)"
    );
    for (spec, problem) in [
        (
            "spec: {targetRef: {kind: Service, name: a}, selector: {matchLabels: {a: b}}}",
            "spec.targetRef is there beside a selector (hint: one of the two)",
        ),
        (
            "spec: {targetRef: {kind: Service, name: a}, targetRefs: []}",
            "spec.targetRef is there beside targetRefs (hint: one of the two)",
        ),
        (
            "spec: {targetRefs: [{kind: Service, name: a, namespace: b}]}",
            "spec.targetRefs[0].namespace is another namespace than the policy's (hint: a policy \
             speaks for what is in its own namespace)",
        ),
        ("spec: {targetRefs: [{kind: Service}]}", "spec.targetRefs[0].name is missing"),
        (
            "spec: {selector: {matchLabels: {app: '*'}}}",
            "spec.selector.matchLabels.app has a star, which stands for nothing here (hint: the \
             label as pods have it)",
        ),
    ] {
        let told = order(&policy("shop", "a", spec)).unwrap_err();
        assert!(told.ends_with(problem), "{told}");
    }
}

#[test]
fn pods_with_the_same_policies_have_them_in_common_and_keep_them() {
    let text = policy("shop", "a", ALLOW_NOTHING);
    let mut loader = loader("cluster.local");
    let first = shop(&text, &mut loader).unwrap();
    let (one, other) = (pod(&first, ORDER), pod(&first, "10.0.0.2"));
    assert!(Arc::ptr_eq(&one.authorization, &other.authorization));
    let again = shop(&text, &mut loader).unwrap();
    assert!(Arc::ptr_eq(&one, &pod(&again, ORDER)));
    let more = text + &policy("shop", "b", "spec: {selector: {matchLabels: {app: cart}}}");
    let more = shop(&more, &mut loader).unwrap();
    assert!(Arc::ptr_eq(&one, &pod(&more, ORDER)));
    assert_eq!(pod(&more, "10.0.0.2").authorization.policies().len(), 2);
    let none = shop("", &mut loader).unwrap();
    assert!(pod(&none, ORDER).authorization.is_empty());
}

/// Section 4.2 of the reference.
const GO_APP: &str = r#"spec:
  selector:
    matchLabels:
      app: order
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/frontend"]
    to:
    - operation:
        methods: ["GET", "POST"]
        paths: ["/api/*"]
  - from:
    - source:
        namespaces: ["istio-system"]
    to:
    - operation:
        methods: ["GET"]
        paths: ["/health", "/metrics"]"#;

#[test]
fn rules_say_what_they_say() {
    let authorization = order(&policy("shop", "a", GO_APP)).unwrap();
    let asked = |principal: &str, method: &str, path: &str| {
        asked(&authorization, principal, &request(method, path, &[]))
    };
    let nothing = "no rule of ALLOW policies matches, such as shop/a";
    let prometheus = "spiffe://cluster.local/ns/istio-system/sa/prometheus";
    let by = |rule: usize| format!("allowed by rule {rule} of ALLOW AuthorizationPolicy shop/a");
    assert_eq!(asked(FRONTEND, "POST", "/api/v1"), by(0));
    assert_eq!(asked(prometheus, "GET", "/metrics"), by(1));
    assert_eq!(asked(FRONTEND, "DELETE", "/api/v1"), nothing);
    assert_eq!(asked(FRONTEND, "GET", "/metrics"), nothing);
    assert_eq!(asked(prometheus, "GET", "/api/v1"), nothing);
    assert_eq!(asked("", "GET", "/api/v1"), nothing);
}

#[test]
fn every_field_is_read_and_its_negative_too() {
    let of =
        |rules: &str| order(&policy("shop", "a", &format!("spec: {{rules: [{rules}]}}"))).unwrap();
    let head = request("GET", "/a/b", &[("host", "Order"), ("x-team", "blue")]);
    let fits = |rules: &str| asked(&of(rules), FRONTEND, &head).starts_with("allowed");
    for (place, field, value, other) in [
        ("from: [{source", "rincipals", "cluster.local/ns/default/sa/frontend", "x/ns/a/sa/b"),
        ("from: [{source", "amespaces", "def*lt", "shop"),
        ("from: [{source", "erviceAccounts", "default/frontend", "frontend"),
        ("from: [{source", "rustDomains", "cluster.*", "cluster"),
        ("from: [{source", "pBlocks", "10.0.0.0/24", "10.0.1.1"),
        ("from: [{source", "emoteIpBlocks", "10.0.0.7", "::1"),
        ("to: [{operation", "osts", "ORDER", "orders"),
        ("to: [{operation", "orts", "8080", "80"),
        ("to: [{operation", "ethods", "G*", "POST"),
        ("to: [{operation", "aths", "/a/{*}", "/{*}"),
    ] {
        let first = match field {
            "rincipals" | "orts" | "aths" => "p",
            "amespaces" => "n",
            "erviceAccounts" => "s",
            "rustDomains" => "t",
            "pBlocks" => "i",
            "emoteIpBlocks" => "r",
            "osts" => "h",
            _ => "m",
        };
        let rule = |before: &str, first: &str, values: &str| {
            format!("{{{place}: {{{before}{first}{field}: [{values}]}}}}]}}")
        };
        let quoted = |value: &str| format!("'{value}'");
        assert!(fits(&rule("", first, &quoted(value))), "{field} {value}");
        assert!(!fits(&rule("", first, &quoted(other))), "{field} {other}");
        assert!(fits(&rule("", first, &format!("'{other}', '{value}'"))), "{field}");
        let not = |value: &str| rule("not", &first.to_uppercase(), &quoted(value));
        assert!(!fits(&not(value)), "not {field} {value}");
        assert!(fits(&not(other)), "not {field} {other}");
    }
    for (key, value, other) in [
        ("request.headers[X-Team]", "bl*", "red"),
        ("source.ip", "10.0.0.7", "10.0.0.8"),
        ("remote.ip", "10.0.0.0/24", "10.0.1.0/24"),
        ("source.namespace", "default", "shop"),
        ("source.principal", "*/frontend", "*/backend"),
        ("source.serviceAccount", "default/frontend", "frontend"),
        ("source.trustDomain", "*", "x*"),
        ("destination.ip", "10.0.0.1", "10.0.0.2"),
        ("destination.port", "8080", "80"),
    ] {
        let rule =
            |list: &str, value: &str| format!("{{when: [{{key: '{key}', {list}: ['{value}']}}]}}");
        assert!(fits(&rule("values", value)), "{key} {value}");
        assert!(!fits(&rule("values", other)), "{key} {other}");
        assert!(!fits(&rule("notValues", value)), "not {key} {value}");
        assert!(fits(&rule("notValues", other)), "not {key} {other}");
    }
    // What only a JWT tells, nobody has without one, and what a TLS handshake tells nobody at all.
    for key in [
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[groups]",
        "request.auth.claims[a][b]",
        "connection.sni",
    ] {
        assert!(!fits(&format!("{{when: [{{key: '{key}', values: ['*']}}]}}")), "{key}");
        assert!(fits(&format!("{{when: [{{key: '{key}', notValues: ['*']}}]}}")), "{key}");
    }
    assert!(!fits("{from: [{source: {requestPrincipals: ['*']}}]}"));
    assert!(fits("{from: [{source: {notRequestPrincipals: ['*']}}]}"));
}

#[test]
fn the_default_trust_domain_in_a_policy_is_the_meshs_own() {
    let snapshot = shop(&policy("shop", "a", GO_APP), &mut loader("corp.example"));
    let authorization = &pod(&snapshot.unwrap(), ORDER).authorization;
    let head = request("GET", "/api/a", &[]);
    let ours = "spiffe://corp.example/ns/default/sa/frontend";
    assert!(asked(authorization, ours, &head).starts_with("allowed"));
    assert!(!asked(authorization, FRONTEND, &head).starts_with("allowed"));
}

#[test]
fn the_annotation_has_a_policy_tried_only() {
    let with = |value: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: \
             {{namespace: shop, name: a, annotations: {{istio.io/dry-run: '{value}'}}}}\n"
        )
    };
    let is_tried = |value: &str| order(&with(value)).unwrap().policies()[0].spec().dry_run;
    assert!(is_tried("true"));
    assert!(is_tried("1"));
    assert!(!is_tried("false"));
    assert_eq!(
        order(&with("yes")).unwrap_err(),
        "mesh.yaml:4:70: metadata.annotations.istio.io/dry-run `yes` is neither true nor false \
         (hint: \"true\" only tells what it would do)"
    );
}

#[test]
fn mistakes_are_named_with_their_places() {
    let spec = |spec: &str| order(&policy("shop", "a", spec)).unwrap_err();
    for (told, expected) in [
        (
            spec("spec: {action: ALOW}"),
            "mesh.yaml:5:16: spec.action `ALOW` is no action (hint: did you mean `ALLOW`?)",
        ),
        (
            spec("spec: {action: CUSTOM, rules: [{}]}"),
            "mesh.yaml:5:7: spec.provider names nobody (hint: CUSTOM has one of the extension \
             providers asked)",
        ),
        (
            spec("spec: {provider: {name: a}, rules: [{}]}"),
            "mesh.yaml:5:18: spec.provider has nothing to do (hint: action: CUSTOM has it asked)",
        ),
        (
            spec("spec: {rule: []}"),
            "mesh.yaml:5:8: spec.rule is not a field of AuthorizationPolicySpec (hint: did you \
             mean `rules`?)",
        ),
        (
            problem("- from: [{source: {principal: [a]}}]"),
            "mesh.yaml:7:22: spec.rules[0].from[0].source.principal is not a field of Source (hint: \
             did you mean `principals`?)",
        ),
        (
            problem("- to: [{operation: {ports: [80]}}]"),
            "mesh.yaml:7:31: spec.rules[0].to[0].operation.ports[0]: integer `80`, expected a \
             string (hint: quote the value to make it a string)",
        ),
        (
            problem("- to: [{operation: {ports: ['80', http]}}]"),
            "mesh.yaml:7:37: spec.rules[0].to[0].operation.ports[1] `http` is not a port (hint: 1 \
             to 65535, a port of the workload itself)",
        ),
        (
            problem("- to: [{operation: {}}]"),
            "mesh.yaml:7:22: spec.rules[0].to[0].operation says nothing (hint: a rule without it is \
             about all of them)",
        ),
        (
            problem("- from: []"),
            "mesh.yaml:7:11: spec.rules[0].from is an empty list (hint: leave it out to mean all of \
             them)",
        ),
        (
            problem("- from: [{source: {namespaces: ['']}}]"),
            "mesh.yaml:7:35: spec.rules[0].from[0].source.namespaces[0] is empty (hint: a star \
             stands for any value)",
        ),
        (
            problem("- from: [{source: {ipBlocks: [10.0.0.0/33]}}]"),
            "mesh.yaml:7:33: spec.rules[0].from[0].source.ipBlocks[0] `10.0.0.0/33` is no block of \
             addresses (hint: such as 203.0.113.4 or 203.0.113.0/24)",
        ),
        (
            problem("- from: [{source: {serviceAccounts: ['a/b/c']}}]"),
            "mesh.yaml:7:40: spec.rules[0].from[0].source.serviceAccounts[0] `a/b/c` is no service \
             account (hint: its name, or its namespace, a slash and its name; no star)",
        ),
        (
            problem("- from: [{source: {serviceAccounts: [a], namespaces: [b]}}]"),
            "mesh.yaml:7:39: spec.rules[0].from[0].source.serviceAccounts is there beside principals \
             or namespaces (hint: each says who it is; one of them)",
        ),
        (
            problem("- from: [{source: {trustDomains: [a/b]}}]"),
            "mesh.yaml:7:37: spec.rules[0].from[0].source.trustDomains[0] `a/b` is no trust domain \
             (hint: such as cluster.local, with one star at the beginning or at the end)",
        ),
        (
            problem("- to: [{operation: {paths: ['/a/{*}.txt']}}]"),
            "mesh.yaml:7:31: spec.rules[0].to[0].operation.paths[0] `/a/{*}.txt` has a brace that is \
             no operator of its own segment (hint: `{*}` is one segment, and `{**}`, the last \
             operator, any number of them)",
        ),
        (
            problem("- when: [{key: source.namspace, values: [a]}]"),
            "mesh.yaml:7:18: spec.rules[0].when[0].key `source.namspace` is no key (hint: did you \
             mean `source.namespace`?)",
        ),
        (
            problem("- when: [{key: 'experimental.envoy.filters.a[b]', values: [a]}]"),
            "mesh.yaml:7:18: spec.rules[0].when[0].key `experimental.envoy.filters.a[b]` is no key \
             (hint: it is about what filters of an Envoy find out, and there is none)",
        ),
        (
            problem("- when: [{key: 'request.headers[:path]', values: [a]}]"),
            "mesh.yaml:7:18: spec.rules[0].when[0].key `:path` is no header (hint: operations have \
             hosts, methods and paths)",
        ),
        (
            problem("- when: [{key: source.ip}]"),
            "mesh.yaml:7:12: spec.rules[0].when[0].values has no value (hint: values or notValues)",
        ),
    ] {
        assert_eq!(told, expected);
    }
}

#[test]
fn who_reads_one_that_it_does_not_understand_knows_whom_it_may_be_about() {
    let key = ("shop".into(), "a".into());
    let of = |selector: serde_json::Value| {
        super::unreadable(&key, selection::at_most_by(&selector), "no").selects
    };
    let labels = BTreeMap::from([("app".to_owned(), "order".to_owned())]);
    let by_labels = serde_json::json!({"matchLabels": {"app": "order"}});
    assert_eq!(of(by_labels), super::Selects::Labels(labels));
    for all in [serde_json::Value::Null, serde_json::json!({"matchLabels": 7})] {
        assert_eq!(of(all), super::Selects::Labels(BTreeMap::new()));
    }
}
