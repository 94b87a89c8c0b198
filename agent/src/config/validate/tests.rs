//! What is found in one file, and where.

use std::path::Path;

use super::*;

fn report(text: &str, strict: bool) -> Report {
    let file = File { path: Path::new("mesh.yaml").into(), text: text.to_owned() };
    judge(&[file], &MeshSettings::default(), strict, Vec::new())
}

/// What is found, one a line.
fn findings(text: &str) -> Vec<String> {
    report(text, false).findings.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn says(text: &str, expected: &[&str]) {
    let found = findings(text);
    let same = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| found.contains(expected));
    assert!(same, "{text}\n{found:#?}\nis not\n{expected:#?}");
}

/// A Deployment `order` of namespace `shop` with a Service in front of it, and what comes `behind`.
fn order(behind: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: order, namespace: shop}}
spec:
  template:
    metadata: {{labels: {{app: order}}}}
    spec: {{serviceAccountName: order, containers: [{{name: a, ports: [{{containerPort: 8080}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: order, namespace: shop}}
spec: {{clusterIP: None, selector: {{app: order}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
{behind}"
    )
}

/// An AuthorizationPolicy of namespace `shop` with `spec`, in line 18.
fn policy(spec: &str) -> String {
    order(&format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: order, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: order}}}}, {spec}}}
"
    ))
}

fn rule(rule: &str) -> String {
    policy(&format!("rules: [{rule}]"))
}

#[test]
fn what_is_meant_and_can_be_obeyed_is_not_spoken_of() {
    for text in [
        rule("{from: [{source: {principals: [cluster.local/ns/shop/sa/order]}}]}"),
        rule("{from: [{source: {principals: ['*/sa/any', '*'], namespaces: ['*-team']}}]}"),
        rule("{from: [{source: {principals: [other.example/ns/shop/sa/any]}}]}"),
        rule("{from: [{source: {serviceAccounts: [order, elsewhere/any]}}]}"),
        rule(
            "{to: [{operation: {methods: [GET], paths: [/a, '/a/*', '*.js', '/{*}/a/{**}', '*']}}]}",
        ),
        rule("{to: [{operation: {ports: ['8080'], hosts: [order, shop.example.com, '*.shop']}}]}"),
        rule("{when: [{key: destination.port, values: ['8080']}]}"),
        policy("rules: [{}]"),
        policy("action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]"),
    ] {
        says(&text, &[]);
    }
}

#[test]
fn values_that_match_nobody_are_shown_with_what_was_meant() {
    for (text, what, hint) in [
        (
            "{from: [{source: {principals: [shop/order]}}]}",
            "no principal",
            "`cluster.local/ns/shop/sa/order`",
        ),
        ("{from: [{source: {notPrincipals: [order]}}]}", "no principal", "<trust domain>/ns/"),
        (
            "{when: [{key: source.principal, values: [cluster.local/ns/shop/sa/oder]}]}",
            "oder",
            "`order`",
        ),
        ("{from: [{source: {principals: [cluster.local/ns/shpo/sa/order]}}]}", "`shpo`", "`shop`"),
        ("{from: [{source: {serviceAccounts: [ordre]}}]}", "account ordre", "`order`"),
        ("{from: [{source: {namespaces: [shop/order]}}]}", "no namespace", "`serviceAccounts`"),
        ("{from: [{source: {notNamespaces: [shopp]}}]}", "`shopp`", "`shop`"),
        ("{to: [{operation: {methods: ['GET, POST']}}]}", "no method", "one method for each"),
        ("{to: [{operation: {notPaths: ['/a?b=c']}}]}", "behind a `?`", "`/a`"),
        ("{to: [{operation: {paths: ['/a/*/b']}}]}", "star", "`{*}`"),
        ("{to: [{operation: {paths: ['https://order/a']}}]}", "a URL", "`hosts`"),
        ("{to: [{operation: {hosts: ['order/a']}}]}", "no host", "`paths`"),
        ("{to: [{operation: {hosts: ['ordr']}}]}", "no Service", "`order`"),
        ("{to: [{operation: {ports: ['80']}}]}", "port of Service shop/order", "`8080`"),
        ("{when: [{key: destination.port, values: ['9090']}]}", "nobody listens", "they have 8080"),
    ] {
        let found = findings(&rule(text));
        let [found] = found.as_slice() else { panic!("{text}: {found:#?}") };
        assert!(found.starts_with("mesh.yaml:17:") && found.contains(": warning: "), "{found}");
        let (before, behind) = found.split_once("(hint: ").unwrap_or_else(|| panic!("{found}"));
        assert!(before.contains(what) && behind.contains(hint), "{found}");
    }
}

#[test]
fn a_policy_for_nobody_is_told_with_whom_it_could_be_for() {
    let policy = |namespace: &str, spec: &str| {
        order(&format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, \
             metadata: {{name: a, namespace: {namespace}}}, spec: {{mtls: {{mode: STRICT}}, {spec}}}}}\n---\n\
             {{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, \
             metadata: {{name: a, namespace: {namespace}}}, spec: {{rules: [{{}}], {spec}}}}}\n"
        ))
    };
    for (namespace, spec, hint) in [
        ("shop", "selector: {matchLabels: {app: ordre}}", "did you mean `app: order`?"),
        ("shop", "selector: {matchLabels: {App: web}}", "did you mean `app`?"),
        ("shop", "selector: {matchLabels: {tier: web}}", "Deployment shop/order has app=order"),
        (
            "default",
            "selector: {matchLabels: {app: order}}",
            "in namespace shop; a policy speaks for its own",
        ),
        ("default", "", "Deployment shop/order is in namespace shop"),
    ] {
        says(&policy(namespace, spec), &[hint, hint]);
    }
    for (namespace, spec) in [
        ("shop", "selector: {matchLabels: {app: order}}"),
        ("shop", ""),
        ("istio-system", "selector: {matchLabels: {app: order}}"),
        ("istio-system", ""),
    ] {
        says(&policy(namespace, spec), &[]);
    }
}

#[test]
fn without_any_pod_nobody_is_missed_and_that_is_said() {
    let text = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a}, \
                spec: {selector: {matchLabels: {app: a}}, rules: [{from: [{source: {principals: \
                [cluster.local/ns/default/sa/a]}}], to: [{operation: {ports: ['80']}}]}]}}";
    let report = report(text, false);
    assert_eq!(report.findings, []);
    assert!(report.to_string().starts_with("note: no pods were read"), "{report}");
}

#[test]
fn a_policy_that_is_for_everybody_or_nobody_is_told() {
    says(&policy("action: ALLOW"), &["mesh.yaml:17:7: warning: spec lets nobody in"]);
    says(
        &policy("action: DENY, rules: [{}]"),
        &["spec.rules[0] is about everything: the policy, DENY"],
    );
    says(&policy("action: DENY"), &["spec does nothing: it has no rules"]);
    says(&policy("action: AUDIT"), &["spec does nothing: it has no rules"]);
}

#[test]
fn rules_about_http_where_a_port_is_declared_as_something_else_are_told() {
    let opaque = |spec: &str| policy(spec).replace("name: http", "name: tcp");
    let on_tcp =
        "asks for what only HTTP has, but Service shop/order says of its port 80, the pods' 8080";
    let methods = "rules: [{to: [{operation: {methods: [GET]}}]}]";
    says(&opaque(methods), &[on_tcp]);
    says(&opaque(methods), &["the rule lets nobody in there"]);
    says(&opaque(&format!("action: DENY, {methods}")), &["denies all connections there"]);
    says(&opaque("rules: [{when: [{key: 'request.headers[a]', values: [b]}]}]"), &[on_tcp]);
    says(
        &opaque("action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['9090']}}]}]"),
        &["nobody listens"],
    );
    says(&opaque("rules: [{from: [{source: {namespaces: [shop]}}]}]"), &[]);
}

#[test]
fn pods_that_are_not_of_the_mesh_are_told_where_that_is_known() {
    let named = |label: &str| {
        policy("rules: [{}]")
            + &format!(
                "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{label}}}}}}}\n"
            )
    };
    says(&named("a: b"), &["spec is not enforced: Deployment shop/order is not in the mesh"]);
    says(&named("istio.io/dataplane-mode: ambient"), &[]);
}

#[test]
fn policies_that_are_in_each_others_way_or_say_nothing_are_told() {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, \
             metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}}}\n"
        )
    };
    let both = policy("a", "mtls: {mode: STRICT}") + &policy("b", "mtls: {mode: PERMISSIVE}");
    says(&order(&both), &["b speaks for the same as shop/a"]);
    says(&order(&policy("a", "mtls: {mode: UNSET}")), &["spec.mtls says nothing: no mode is set"]);
    let port = "selector: {matchLabels: {app: order}}, portLevelMtls: {80: {mode: DISABLE}}";
    says(&order(&policy("a", port)), &["spec.portLevelMtls `80` is a port of Service shop/order"]);
}

#[test]
fn services_that_lead_nowhere_are_told() {
    let to = |from: &str, to: &str| order("").replace(from, to);
    says(&to("selector: {app: order}", "selector: {app: oder}"), &["did you mean `app: order`?"]);
    says(
        &to("targetPort: 8080", "targetPort: web"),
        &["`web` is no port of Deployment shop/order"],
    );
    says(&to("targetPort: 8080", "targetPort: 8081"), &["its containers have 8080"]);
}

#[test]
fn what_tools_write_is_read() {
    let pod = "{metadata: {name: a, managedFields: [{fieldsV1: {f:metadata: {}}}], resourceVersion: '1', \
               uid: 0-1, creationTimestamp: '2026-01-02T03:04:05Z'}, spec: {}, status: {podIP: 10.0.0.1}}";
    let list = format!(
        "apiVersion: v1\nkind: PodList\nmetadata: {{resourceVersion: '2'}}\nitems:\n- {pod}\n"
    );
    let several = format!(
        "{{apiVersion: v1, kind: List, items: [{{apiVersion: v1, kind: Pod, {}]}}",
        &pod[1..]
    );
    let anchored = "apiVersion: v1
kind: Pod
metadata: {name: &n a, labels: {app: *n}}
spec: {}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: &n a, labels: &l {c: d}, annotations: {<<: *l, b: *n}}
"
    .to_owned();
    for text in
        [list.clone(), several, anchored, list.replace('\n', "\r\n"), format!("\u{feff}{list}")]
    {
        let report = report(&text, false);
        assert_eq!(report.findings, [], "{text}");
        assert_eq!(report.read.get("Pod"), Some(&1), "{text}");
    }
}

#[test]
fn a_list_of_one_kind_that_is_not_the_agents_is_counted_by_its_items() {
    let text =
        "apiVersion: v1\nkind: SecretList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]\n";
    assert_eq!(report(text, false).passed_over, [("Secret".to_owned(), 2)].into());
}

#[test]
fn kinds_of_others_are_passed_over_unless_it_is_to_be_strict() {
    let text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n---\n\
                {apiVersion: batch/v1, kind: CronJob, metadata: {name: a}}\n---\n\
                {apiVersion: example.com/v1, kind: Pods, metadata: {name: a}}\n---\n\
                {apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: a}}\n";
    let report = |strict| report(text, strict);
    let lenient = report(false);
    assert_eq!(lenient.count(Severity::Error), 0, "{lenient}");
    assert_eq!(lenient.count(Severity::Warning), 1, "{lenient}");
    let counted = "looked at for their pods: 1 CronJob\nnot obeyed: 1 Sidecar\n\
                   passed over: 1 ConfigMap, 1 Pods\n";
    assert!(lenient.to_string().contains(counted), "{lenient}");
    assert_eq!(report(true).count(Severity::Error), 4, "{}", report(true));
}

#[test]
fn a_slip_of_the_pen_is_no_kind_of_others() {
    for (kind, what) in [
        (
            "apiVersion: v1\nkind: Servce",
            "Servce (v1) is no kind the agent knows (hint: did you mean `Service`?)",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy",
            "did you mean `AuthorizationPolicy`?",
        ),
        ("apiVersion: networking.istio.io/v1\nkind: VirtualServices", "no kind the agent knows"),
        (
            "apiVersion: security.istio.io/v1alpha1\nkind: PeerAuthentication",
            "no version of PeerAuthentication",
        ),
    ] {
        let found = findings(&format!("{kind}\nmetadata: {{name: a}}\n"));
        assert!(
            found.len() == 1 && found[0].contains("error: ") && found[0].contains(what),
            "{found:?}"
        );
    }
}

#[test]
fn one_bad_object_keeps_nothing_else_from_being_judged() {
    let bad = "{apiVersion: v1, kind: Pod, metadata: {name: A}, spec: {}}\n---\n\
               {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {}, sepc: {}}\n---\n";
    let found = findings(&(bad.to_owned() + &policy("action: ALLOW")));
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[2].contains("lets nobody in"), "{found:#?}");
}

#[test]
fn subsets_that_no_pod_is_of_are_told() {
    let text = order(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order, namespace: shop}
spec:
  host: order
  subset: []
  subsets:
  - {name: a, labels: {app: order}}
  - {name: v2, labels: {version: v2}}
",
    );
    says(
        &text,
        &[
            "mesh.yaml:15:7: warning: DestinationRule shop/order is not obeyed",
            "mesh.yaml:19:3: warning: spec.subset is not a field of DestinationRule, and sets nothing \
             (hint: did you mean `subsets`?)",
            "mesh.yaml:22:24: warning: spec.subsets[1].labels `version: v2`: no pod of Service shop/order",
        ],
    );
}
