//! Istio's kinds at the API server: what it refuses, and whose they are.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sluice_kube::{Mesh, RELEASE, SYSTEM, Tenant};

const POLICIES: &str = "authorizationpolicies.security.istio.io";
const KINDS: [&str; 3] =
    [POLICIES, "peerauthentications.security.istio.io", "requestauthentications.security.istio.io"];

fn policy(name: &str, spec: &Value) -> Value {
    let metadata = json!({"name": name});
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": metadata,
        "spec": spec,
    })
}

#[test]
fn a_policy_that_istio_would_refuse_is_refused_when_it_is_applied() -> anyhow::Result<()> {
    let tenant = Tenant::new("kinds")?;
    let selector = json!({"matchLabels": {"app": "order"}});
    let rules = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    tenant.apply(&policy("sound", &json!({"selector": selector, "rules": rules})))?;
    for (name, spec, says) in [
        (
            "two-targets",
            json!({"selector": selector, "targetRefs": [{"kind": "Service", "name": "order"}]}),
            "only one of targetRefs or selector can be set",
        ),
        (
            "star",
            json!({"selector": {"matchLabels": {"app": "*"}}}),
            "wildcard not allowed in label value match",
        ),
        (
            "two-identities",
            json!({"rules": [{"from": [{"source": {
                "serviceAccounts": ["shop/order"], "namespaces": ["shop"],
            }}]}]}),
            "Cannot set serviceAccounts with namespaces or principals",
        ),
        ("no-action", json!({"action": "REFUSE"}), "supported values: \"ALLOW\", \"DENY\""),
        // kubectl has the server be strict about fields.
        ("no-field", json!({"rule": []}), "unknown field \"spec.rule\""),
    ] {
        let refused = tenant.apply(&policy(name, &spec));
        let said = format!("{:#}", refused.err().with_context(|| format!("{name} is applied"))?);
        println!("{name}: {said}");
        ensure!(said.contains(says), "{name}: {said}");
    }
    let names = tenant.kubectl(["get", "authorizationpolicies", "--output=name"])?;
    ensure!(names.trim() == "authorizationpolicy.security.istio.io/sound", "{names}");
    Ok(())
}

/// The definition of a kind, as the API server has it.
fn definition(mesh: &Mesh, name: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&mesh.kubectl(["get", "crd", name, "--output=json"])?)?)
}

/// Those that are the release's.
fn ours(mesh: &Mesh) -> anyhow::Result<Vec<&'static str>> {
    let mut ours = Vec::new();
    for name in KINDS {
        let annotations = &definition(mesh, name)?["metadata"]["annotations"];
        if annotations["meta.helm.sh/release-name"] == RELEASE {
            ours.push(name);
        }
    }
    Ok(ours)
}

/// Takes a kind away from the release, as if somebody else had installed it.
fn give_away(mesh: &Mesh, name: &str) -> anyhow::Result<()> {
    mesh.kubectl([
        "annotate",
        "crd",
        name,
        "meta.helm.sh/release-name-",
        "meta.helm.sh/release-namespace-",
    ])?;
    mesh.kubectl(["label", "crd", name, "app.kubernetes.io/managed-by-", "owner=others"]).map(drop)
}

/// Gives it back.
fn take_back(mesh: &Mesh, name: &str) -> anyhow::Result<()> {
    let namespace = format!("meta.helm.sh/release-namespace={SYSTEM}");
    let release = format!("meta.helm.sh/release-name={RELEASE}");
    mesh.kubectl(["annotate", "crd", name, &release, &namespace])?;
    mesh.kubectl(["label", "crd", name, "app.kubernetes.io/managed-by=Helm"]).map(drop)
}

#[test]
fn kinds_that_others_installed_are_left_alone_and_none_goes_with_the_chart() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    ensure!(ours(&mesh)? == KINDS, "{:?}", ours(&mesh)?);
    let objects = json!({"rules": [{}]});
    let tenant = Tenant::new("owners")?;
    tenant.apply(&policy("kept", &objects))?;

    // Without them in the chart, what there is stays, with its objects.
    let without = mesh.change(&["crds.install=never"])?;
    ensure!(ours(&mesh)? == KINDS, "{:?}", ours(&mesh)?);
    tenant.kubectl(["get", "authorizationpolicy", "kept"])?;
    without.undo()?;

    give_away(&mesh, POLICIES)?;
    let given = definition(&mesh, POLICIES)?["metadata"]["generation"].clone();
    let upgraded = mesh.change(&["crds.install=auto"])?;
    let (theirs, left) = (definition(&mesh, POLICIES)?, ours(&mesh)?);
    // Whatever has come of it: the release is to have it again.
    take_back(&mesh, POLICIES)?;
    upgraded.undo()?;
    ensure!(theirs["metadata"]["generation"] == given, "{theirs}");
    let labels = &theirs["metadata"]["labels"];
    ensure!(labels["owner"] == "others", "{theirs}");
    ensure!(labels["app.kubernetes.io/managed-by"].is_null(), "{theirs}");
    ensure!(left == KINDS[1..], "{left:?}");
    tenant.kubectl(["get", "authorizationpolicy", "kept"])?;
    ensure!(ours(&mesh)? == KINDS, "{:?}", ours(&mesh)?);
    Ok(())
}
