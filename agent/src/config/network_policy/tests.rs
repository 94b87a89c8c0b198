use super::super::testing;
use crate::mesh::Snapshot;

/// The snapshot of `order` in namespace `shop` beside what `text` has, or the problems.
fn load(text: &str) -> Result<Snapshot, String> {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: order, namespace: shop, labels: \
               {app: order, istio.io/dataplane-mode: ambient}}\nspec: {}\nstatus: {podIP: 10.0.0.1}\n";
    testing::load(&format!("{text}\n---\n{pod}"))
}

/// Whether a policy of `namespace` with `selector` selects `order`.
fn selects(namespace: &str, selector: &str) -> bool {
    let text = format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {namespace}, name: one}}\n\
         spec: {{podSelector: {selector}, policyTypes: [Ingress], ingress: []}}\n"
    );
    let snapshot = load(&text).unwrap();
    snapshot.workload("10.0.0.1".parse().unwrap()).unwrap().policed.is_some()
}

#[test]
fn a_policy_selects_by_labels_and_expressions_in_its_own_namespace() {
    assert!(selects("shop", "{}"));
    assert!(!selects("other", "{}"));
    assert!(selects("shop", "{matchLabels: {app: order}}"));
    assert!(!selects("shop", "{matchLabels: {app: user}}"));
    for (expression, expected) in [
        ("{key: app, operator: In, values: [user, order]}", true),
        ("{key: app, operator: In, values: [user]}", false),
        ("{key: app, operator: NotIn, values: [user]}", true),
        ("{key: app, operator: NotIn, values: [order]}", false),
        ("{key: tier, operator: NotIn, values: [order]}", true),
        ("{key: app, operator: Exists}", true),
        ("{key: tier, operator: Exists}", false),
        ("{key: tier, operator: DoesNotExist}", true),
        ("{key: app, operator: DoesNotExist}", false),
    ] {
        let selector = format!("{{matchExpressions: [{expression}]}}");
        assert_eq!(selects("shop", &selector), expected, "{expression}");
    }
    let both = "{matchLabels: {app: order}, matchExpressions: [{key: tier, operator: Exists}]}";
    assert!(!selects("shop", both));
}

#[test]
fn kinds_that_the_cni_alone_understands_are_noted_in_files_and_not_read() {
    assert!(!load("").unwrap().cni_policies);
    for (version, kind) in [
        ("crd.projectcalico.org/v1", "GlobalNetworkPolicy"),
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy"),
    ] {
        let policy = format!("apiVersion: {version}\nkind: {kind}\nspec: {{anything: [at, all]}}");
        assert!(load(&policy).unwrap().cni_policies, "{kind}");
    }
    let other = load("apiVersion: cilium.io/v2\nkind: CiliumNode").unwrap_err();
    assert!(other.contains("is no kind the agent knows"), "{other}");
}

#[test]
fn an_operator_that_is_none_is_named() {
    let said = load(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: one}\n\
         spec: {podSelector: {matchExpressions: [{key: app, operator: Is}]}}",
    )
    .unwrap_err();
    let expected = "mesh.yaml:4:62: spec.podSelector.matchExpressions[0].operator `Is` is no \
                    operator (hint: the operators are In, NotIn, Exists, DoesNotExist)";
    assert_eq!(said, expected);
}

/// The policy of those with `ingress` that keeps the mesh from `order`.
fn cut_by(specs: &[&str]) -> Option<String> {
    let policies = specs.iter().enumerate().map(|(number, spec)| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{namespace: shop, name: p{number}}}\nspec: {{podSelector: {{}}, {spec}}}\n"
        )
    });
    let snapshot = load(&policies.collect::<String>()).unwrap();
    let order = snapshot.workload("10.0.0.1".parse().unwrap()).unwrap();
    order.policed.as_ref()?.cut_by.as_ref().map(|name| name.to_string())
}

#[test]
fn whoever_allows_ports_but_not_the_meshs_is_named() {
    let cuts = Some("p0".to_owned());
    for (ingress, expected) in [
        // Nobody is to reach it, mesh or not.
        ("policyTypes: [Ingress]", None),
        ("ingress: []", None),
        ("policyTypes: [Egress], egress: [{ports: [{port: 53}]}]", None),
        ("ingress: [{}]", None),
        ("ingress: [{from: [{podSelector: {}}]}]", None),
        ("ingress: [{ports: [{port: 8080}]}]", cuts.clone()),
        ("ingress: [{ports: [{port: http, protocol: TCP}]}]", cuts.clone()),
        ("ingress: [{ports: [{port: 53, protocol: UDP}]}]", None),
        ("ingress: [{ports: [{protocol: TCP}]}]", None),
        ("ingress: [{ports: [{port: 8080}, {port: 15008}]}]", None),
        ("ingress: [{ports: [{port: 15000, endPort: 15010}]}]", None),
        ("ingress: [{ports: [{port: 15009, endPort: 15010}]}]", cuts.clone()),
        ("ingress: [{ports: [{port: 15008, protocol: UDP}, {port: 80}]}]", cuts),
    ] {
        assert_eq!(cut_by(&[ingress]), expected, "{ingress}");
    }
    let port = |port| format!("ingress: [{{ports: [{{port: {port}}}]}}]");
    assert_eq!(cut_by(&[&port(80), &port(15008)]), None);
    assert_eq!(cut_by(&["ingress: []", &port(80)]), Some("p1".to_owned()));
}

#[test]
fn a_policy_that_says_something_else_is_another_one() {
    let digest = |spec: &str| {
        let text = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{namespace: shop, name: one}}\nspec: {{podSelector: {{}}, {spec}}}\n"
        );
        let snapshot = load(&text).unwrap();
        let order = snapshot.workload("10.0.0.1".parse().unwrap()).unwrap();
        order.policed.as_ref().unwrap().digest
    };
    assert_eq!(digest("ingress: []"), digest("ingress: []"));
    assert_ne!(digest("ingress: []"), digest("ingress: [{}]"));
    assert_ne!(digest("egress: []"), digest("egress: [{to: [{podSelector: {}}]}]"));
}
