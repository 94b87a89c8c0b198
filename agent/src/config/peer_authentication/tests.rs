use super::super::{MeshSettings, testing::Loader};

/// `order` of namespace `shop` under the policies of `text`, or the problems, one a line.
fn order(text: &str) -> Result<String, String> {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: order, namespace: shop, labels: \
               {app: order, istio.io/dataplane-mode: ambient}}\nspec: {}\nstatus: {podIP: 10.0.0.1}\n";
    let root_namespace = "root".parse().unwrap();
    let settings = MeshSettings { root_namespace, ..MeshSettings::default() };
    let (snapshot, _) = Loader::new(settings).load(&format!("{text}\n---\n{pod}"))?;
    let mtls = snapshot.workload("10.0.0.1".parse().unwrap()).unwrap().mtls.clone();
    let named = mtls.ports.iter().map(|(port, rule)| format!("; {port}: {rule}"));
    Ok(format!("{}{}", mtls.usual, named.collect::<String>()))
}

/// A policy in YAML.
fn policy(namespace: &str, name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{namespace: {namespace}, name: {name}}}\n{more}\n"
    )
}

const STRICT: &str = "spec: {mtls: {mode: STRICT}}";
const PERMISSIVE: &str = "spec: {mtls: {mode: PERMISSIVE}}";
const OF_ORDER: &str = "selector: {matchLabels: {app: order}}";

#[test]
fn without_a_policy_both_are_accepted() {
    assert_eq!(order("").unwrap(), "PERMISSIVE");
    assert_eq!(order(&policy("other", "default", STRICT)).unwrap(), "PERMISSIVE");
}

#[test]
fn the_narrower_scope_wins_and_names_itself() {
    let mesh = policy("root", "mesh", STRICT);
    assert_eq!(order(&mesh).unwrap(), "STRICT by PeerAuthentication root/mesh");
    let namespace = mesh + &policy("shop", "all", "spec: {mtls: {mode: DISABLE}}");
    assert_eq!(order(&namespace).unwrap(), "DISABLE by PeerAuthentication shop/all");
    let workload = policy("shop", "one", &format!("spec: {{{OF_ORDER}, mtls: {{mode: STRICT}}}}"));
    let all = namespace + &workload;
    assert_eq!(order(&all).unwrap(), "STRICT by PeerAuthentication shop/one");
    let other =
        policy("shop", "x", "spec: {selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}");
    assert_eq!(order(&other).unwrap(), "PERMISSIVE");
}

#[test]
fn what_is_unset_is_inherited_on_every_level() {
    let mesh = policy("root", "mesh", STRICT);
    for unset in ["", "spec: {}", "spec: {mtls: {}}", "spec: {mtls: {mode: UNSET}}", "spec: null"] {
        let text = mesh.clone() + &policy("shop", "all", unset);
        assert_eq!(order(&text).unwrap(), "STRICT by PeerAuthentication root/mesh", "{unset}");
    }
    let ports =
        format!("spec: {{{OF_ORDER}, portLevelMtls: {{8080: {{mode: PERMISSIVE}}, 9: {{}}}}}}");
    assert_eq!(
        order(&(mesh + &policy("shop", "ports", &ports))).unwrap(),
        "STRICT by PeerAuthentication root/mesh; 8080: PERMISSIVE by PeerAuthentication shop/ports"
    );
}

#[test]
fn of_one_scope_the_oldest_holds_and_then_the_first_name() {
    let text = policy("shop", "b", STRICT) + &policy("shop", "a", PERMISSIVE);
    assert_eq!(order(&text).unwrap(), "PERMISSIVE by PeerAuthentication shop/a");
    let dated = |name: &str, year: u32, mode: &str| {
        policy("shop", name, mode).replace(
            &format!("name: {name}}}"),
            &format!("name: {name}, creationTimestamp: \"{year}-01-02T03:04:05Z\"}}"),
        )
    };
    let text = dated("a", 2026, PERMISSIVE) + &dated("b", 2025, STRICT);
    assert_eq!(order(&text).unwrap(), "STRICT by PeerAuthentication shop/b");
}

#[test]
fn a_selector_of_the_root_namespace_selects_everywhere_after_the_workloads_own() {
    let selecting = |mode: &str| format!("spec: {{{OF_ORDER}, mtls: {{mode: {mode}}}}}");
    let root = policy("root", "r", &selecting("STRICT")) + &policy("shop", "all", PERMISSIVE);
    assert_eq!(order(&root).unwrap(), "STRICT by PeerAuthentication root/r");
    let own = root + &policy("shop", "s", &selecting("DISABLE"));
    assert_eq!(order(&own).unwrap(), "DISABLE by PeerAuthentication shop/s");
}

#[test]
fn both_versions_are_the_same_kind_and_no_other_is() {
    let version = |version: &str| {
        policy("shop", "a", STRICT).replace("istio.io/v1\n", &format!("istio.io/{version}\n"))
    };
    assert_eq!(order(&version("v1beta1")).unwrap(), "STRICT by PeerAuthentication shop/a");
    let error = order(&version("v1alpha1")).unwrap_err();
    let hint = "is no version of PeerAuthentication (hint: write apiVersion: security.istio.io/v1)";
    assert!(error.ends_with(hint), "{error}");
}

#[test]
fn what_cannot_be_obeyed_is_named_with_its_place_and_a_hint() {
    for (more, problem) in [
        (
            "spec: {mtls: {mode: STRIKT}}",
            "mesh.yaml:5:21: spec.mtls.mode `STRIKT` is no mode (hint: did you mean `STRICT`?)",
        ),
        (
            "spec: {mtls: {mode: ISTIO_MUTUAL}}",
            "mesh.yaml:5:21: spec.mtls.mode `ISTIO_MUTUAL` is no mode (hint: the modes are STRICT, \
             PERMISSIVE, DISABLE, UNSET)",
        ),
        (
            "spec: {mtls: {mod: STRICT}}",
            "mesh.yaml:5:15: spec.mtls.mod is not a field of MutualTLS (hint: did you mean `mode`?)",
        ),
        (
            "spec: {portLevelMtls: {80: {mode: STRICT}}}",
            "mesh.yaml:5:23: spec.portLevelMtls needs a selector: ports are a workload's (hint: \
             spec.selector.matchLabels with the labels of the workload)",
        ),
        (
            "spec:\n  selector: {matchLabels: {app: order}}\n  portLevelMtls: {http: {mode: STRICT}}",
            "mesh.yaml:7:25: spec.portLevelMtls.http is not a port (hint: 1 to 65535, a port of the \
             workload itself)",
        ),
        (
            "spec: {selector: {app: order}}",
            "mesh.yaml:5:19: spec.selector.app is not a field of WorkloadSelector (hint: the \
             fields are matchLabels)",
        ),
        (
            "spec: {mtls: STRICT}",
            "mesh.yaml:5:14: spec.mtls: string \"STRICT\", expected MutualTLS",
        ),
    ] {
        let error = order(&policy("shop", "a", more)).unwrap_err();
        assert_eq!(error, problem, "{more}");
    }
}
