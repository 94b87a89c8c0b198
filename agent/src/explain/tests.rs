//! What is answered about a mesh of files.

use std::fs;

use super::*;
use crate::config::{MeshSettings, offline::Offline};

/// A frontend and a server `app` of one namespace in the mesh, with a Service of three ports, and whoever is
/// outside.
const MESH: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: old}}
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: app}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 81, targetPort: 8081}
  - {name: any, port: 82, targetPort: 8082}
---
{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: shop}, spec: {clusterIP: None, selector: {a: b}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: app-1, namespace: shop, labels: {app: app}}, spec: {nodeName: node-a, serviceAccountName: app}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: app-2, namespace: shop, labels: {app: app}}, spec: {nodeName: node-b, serviceAccountName: app}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: frontend, namespace: shop}, spec: {nodeName: node-c, serviceAccountName: frontend}, status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: legacy, namespace: old}, spec: {nodeName: node-c}, status: {podIP: 10.0.0.4}}
";

fn policy(kind: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: it, namespace: shop}}, \
         spec: {spec}}}\n"
    )
}

fn authorization(spec: &str) -> String {
    policy("AuthorizationPolicy", spec)
}

fn asked(more: &str, question: &Question) -> Result<Explanation, Unclear> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, format!("{MESH}{more}")).unwrap();
    let offline = Offline::read(&[path], MeshSettings::default()).unwrap();
    let view = View {
        snapshot: &offline.snapshot(""),
        of_node: &|node| Some(offline.snapshot(node)),
        notes: offline.notes(),
    };
    explain(&view, question)
}

fn question(source: &str, destination: &str, ask: Option<&str>) -> Question {
    let ask = ask.map(|line| {
        let (method, path) = line.split_once(' ').unwrap();
        Ask { method: Some(method.into()), path: Some(path.into()), ..Ask::default() }
    });
    Question { source: source.into(), destination: destination.into(), ask }
}

fn answer(more: &str, source: &str, destination: &str, ask: Option<&str>) -> Explanation {
    asked(more, &question(source, destination, ask)).unwrap()
}

/// The one judgement of an answer.
fn judgement(more: &str, source: &str, destination: &str, ask: Option<&str>) -> Judgement {
    let mut answer = answer(more, source, destination, ask);
    assert_eq!(answer.judgements.len(), 1, "{answer}");
    answer.judgements.remove(0)
}

#[test]
fn a_request_is_followed_to_all_pods_of_a_service_on_whichever_nodes() {
    let policy = authorization(
        "{selector: {matchLabels: {app: app}}, rules: [{from: [{source: {serviceAccounts: [frontend]}}], \
         to: [{operation: {paths: [/api/*]}}]}]}",
    );
    let passes = judgement(&policy, "shop/frontend", "app.shop:80", Some("GET /api/./a"));
    assert_eq!(passes.endpoints, ["shop/app-1 10.0.0.1:8080", "shop/app-2 10.0.0.2:8080"]);
    assert_eq!(passes.outcome, Outcome::Allowed);
    assert_eq!((passes.policy.as_deref(), passes.rule), (Some("shop/it"), Some(0)));
    assert_eq!(passes.path.as_deref(), Some("/api/a"));
    assert!(
        passes.way.starts_with(
            "mutual TLS: the server proves to be spiffe://cluster.local/ns/shop/sa/app"
        )
    );
    let refused = judgement(&policy, "shop/frontend", "app.shop:http", Some("GET /admin"));
    assert_eq!(refused.outcome, Outcome::Refused);
    assert!(refused.client_sees.as_ref().unwrap().starts_with("403"), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("to[0].operation.paths wants /api/*; it is /admin"), "{said}");
    let other = judgement(&policy, "sa:shop/other", "10.96.0.1:80", Some("GET /api/a"));
    assert!(other.to_string().contains("wants shop/frontend; it is shop/other"), "{other}");
}

#[test]
fn what_a_request_says_besides_counts_too() {
    let policy = authorization(
        "{selector: {matchLabels: {app: app}}, rules: [{when: [{key: 'request.headers[x-team]', values: \
         [shop]}], to: [{operation: {hosts: [app.example]}}]}]}",
    );
    let ask = |headers: &[(&str, &str)]| Ask {
        host: Some("app.example".into()),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        ..Ask::default()
    };
    let outcome = |ask: Ask| {
        let question =
            Question { ask: Some(ask), ..question("shop/frontend", "app.shop:80", None) };
        asked(&policy, &question).map(|answer| answer.judgements[0].outcome)
    };
    assert_eq!(outcome(ask(&[("X-Team", "shop")])).unwrap(), Outcome::Allowed);
    assert_eq!(outcome(ask(&[("x-team", "other")])).unwrap(), Outcome::Refused);
    assert_eq!(
        outcome(Ask { host: None, ..ask(&[("x-team", "shop")]) }).unwrap(),
        Outcome::Refused
    );
    assert!(outcome(ask(&[("x team", "shop")])).unwrap_err().to_string().contains("no request"));
    assert!(
        outcome(ask(&[("a", "b\r\nx-team: shop")]))
            .unwrap_err()
            .to_string()
            .contains("end of a line")
    );
}

#[test]
fn a_target_that_no_rule_can_judge_is_answered_as_the_agent_does() {
    let policy = authorization("{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}");
    let refused = judgement(&policy, "shop/frontend", "app.shop:80", Some("GET /a#b"));
    assert_eq!((refused.outcome, refused.client_sees.as_deref()), (Outcome::Refused, Some("400")));
}

#[test]
fn who_is_in_plaintext_is_nobody_and_strict_keeps_them_out() {
    let strict = policy("PeerAuthentication", "{mtls: {mode: STRICT}}");
    for source in ["outside", "203.0.113.1", "old/legacy", "10.0.0.4"] {
        let refused = judgement(&strict, source, "app.shop:81", None);
        assert_eq!(refused.outcome, Outcome::Refused, "{refused}");
        assert_eq!(
            refused.why,
            "plaintext is refused: mutual TLS is STRICT by PeerAuthentication shop/it"
        );
        let denied = authorization("{rules: [{from: [{source: {principals: ['*']}}]}]}");
        let denied = judgement(&denied, source, "app.shop:81", None);
        assert!(
            denied.to_string().contains("wants *; it is none, for it is plaintext"),
            "{denied}"
        );
    }
    let disabled = policy("PeerAuthentication", "{mtls: {mode: DISABLE}}")
        + &authorization("{rules: [{from: [{source: {principals: ['*']}}]}]}");
    let refused = judgement(&disabled, "shop/frontend", "app.shop:81", None);
    assert!(refused.way.contains("mutual TLS is disabled there"), "{refused}");
    assert_eq!(refused.outcome, Outcome::Refused);
}

#[test]
fn what_is_not_http_is_judged_by_what_else_rules_ask_for() {
    let deny = authorization(
        "{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}], from: [{source: {namespaces: \
         [shop]}}]}]}",
    );
    let refused = judgement(&deny, "shop/frontend", "app.shop:81", Some("GET /"));
    assert_eq!(
        (refused.outcome, refused.client_sees.as_deref()),
        (Outcome::Refused, Some("a reset"))
    );
    assert!(
        refused.to_string().contains("warning: the port is declared as something else"),
        "{refused}"
    );
    // As long as nobody knows what it is, it may be something else than what is denied.
    let unknown = judgement(&deny, "shop/frontend", "app.shop:82", None);
    assert_eq!(unknown.outcome, Outcome::Allowed, "{unknown}");
    let allow = authorization("{rules: [{to: [{operation: {methods: [GET]}}]}]}");
    let refused = judgement(&allow, "shop/frontend", "app.shop:81", None);
    assert!(
        refused.to_string().contains("rule 0 is passed over: it asks for what only HTTP has"),
        "{refused}"
    );
    let unknown = judgement(&allow, "shop/frontend", "app.shop:82", Some("POST /"));
    assert_eq!(unknown.asked.as_deref(), Some("POST /, host app.shop.svc.cluster.local:82"));
    assert!(unknown.client_sees.as_ref().unwrap().starts_with("403"), "{unknown}");
}

#[test]
fn policies_that_only_tell_are_told() {
    let audit = authorization("{action: AUDIT, rules: [{}]}");
    let trial = "---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: trial, \
                 namespace: shop, annotations: {istio.io/dry-run: 'true'}}, spec: {action: DENY, rules: [{}]}}\n";
    let passes = judgement(&(audit + trial), "shop/frontend", "app.shop:80", None);
    assert_eq!(passes.outcome, Outcome::Allowed);
    let said = passes.to_string();
    assert!(said.contains("audit:      rule 0 of AUDIT AuthorizationPolicy shop/it"), "{said}");
    assert!(
        said.contains("on trial:   denied by rule 0 of DENY AuthorizationPolicy shop/trial"),
        "{said}"
    );
}

#[test]
fn where_the_mesh_ends_is_said() {
    let nobody = |destination: &str| judgement("", "shop/frontend", destination, None);
    assert!(nobody("old/legacy:80").why.contains("not in the mesh"));
    assert!(nobody("203.0.113.9:443").why.contains("nobody judges"));
    let nowhere = answer("", "shop/frontend", "empty", None);
    assert!(nowhere.to_string().contains("fails: no pod is behind shop/empty"), "{nowhere}");
}

#[test]
fn a_question_that_is_not_clear_says_what_is_missing() {
    for (source, destination, why) in [
        ("frontend", "app.shop:80", "no pod default/frontend"),
        ("shop/fronted", "app.shop:80", "pods of namespace shop are app-1, app-2, frontend"),
        ("spiffe://a/b", "app.shop:80", "is not a workload identity"),
        ("shop/frontend", "app.shop", "it has 80, 81, 82"),
        ("shop/frontend", "app.shop:8080", "has no port 8080 (it has 80, 81, 82)"),
        ("shop/frontend", "web.shop:80", "no Service and no pod web.shop"),
        ("shop/frontend", "shop/app-1", "which port of 10.0.0.1?"),
        ("shop/frontend", "10.0.0.1:http", "`http` is not the port of a pod"),
    ] {
        let unclear = asked("", &question(source, destination, None)).unwrap_err().to_string();
        assert!(unclear.contains(why), "{source} {destination}: {unclear}");
    }
}

#[test]
fn only_the_agent_of_a_servers_node_knows_its_policies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, MESH).unwrap();
    let offline = Offline::read(&[path], MeshSettings::default()).unwrap();
    let snapshot = offline.snapshot("node-a");
    let of_node = |node: &str| (node == "node-a").then(|| snapshot.clone());
    let view = View { snapshot: &snapshot, of_node: &of_node, notes: &[] };
    let answer = explain(&view, &question("shop/frontend", "app.shop:80", None)).unwrap();
    let outcomes: Vec<_> = answer.judgements.iter().map(|judgement| judgement.outcome).collect();
    assert_eq!(outcomes, [Outcome::Allowed, Outcome::Unknown]);
    assert!(answer.to_string().contains("hint: ask that of node node-b"), "{answer}");
    let listing = list(&view, &Meant::default()).unwrap();
    let names: Vec<_> = listing.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["shop/app-1"]);
}

#[test]
fn policies_are_listed_in_the_order_in_which_they_are_asked() {
    let named = |name: &str, action: &str, more: &str| {
        format!(
            "---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, \
             namespace: shop{more}}}, spec: {{action: {action}, rules: [{{to: [{{operation: {{methods: [GET], \
             notPaths: [/a]}}}}]}}]}}}}\n"
        )
    };
    let all = named("a", "ALLOW", "")
        + &named("b", "DENY", ", annotations: {istio.io/dry-run: 'true'}")
        + &named("c", "AUDIT", "")
        + &named("d", "DENY", "")
        + &policy("PeerAuthentication", "{mtls: {mode: STRICT}}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, format!("{MESH}{all}")).unwrap();
    let offline = Offline::read(&[path], MeshSettings::default()).unwrap();
    let view = View {
        snapshot: &offline.snapshot(""),
        of_node: &|node| Some(offline.snapshot(node)),
        notes: offline.notes(),
    };
    let listing = list(&view, &Meant { pod: Some("shop/app-1".into()) }).unwrap().to_string();
    let expected = "\
shop/app-1, spiffe://cluster.local/ns/shop/sa/app, on node-a
  mutual TLS STRICT by PeerAuthentication shop/it
  DENY shop/d
    rule 0: to methods GET and paths not /a
  ALLOW shop/a
    rule 0: to methods GET and paths not /a
  AUDIT shop/c
    rule 0: to methods GET and paths not /a
  DENY shop/b (dry run)
    rule 0: to methods GET and paths not /a
";
    assert_eq!(listing, expected);
    let legacy = list(&view, &Meant { pod: Some("old/legacy".into()) }).unwrap().to_string();
    assert!(legacy.contains("nothing: it is not in the mesh"), "{legacy}");
    assert!(list(&view, &Meant { pod: Some("old/gone".into()) }).is_err());
}

/// A token of `payload` that nobody has signed.
fn token(payload: &str) -> String {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
    let header = BASE64.encode(r#"{"alg":"ES256"}"#);
    format!("{header}.{}.{}", BASE64.encode(payload), BASE64.encode("nobody"))
}

#[test]
fn a_token_is_taken_for_what_it_claims_by_the_rule_about_its_issuer() {
    let request = policy(
        "RequestAuthentication",
        "{selector: {matchLabels: {app: app}}, jwtRules: [{issuer: a.example, audiences: [shop], \
         jwksUri: 'https://a.example/keys'}]}",
    );
    let rules = authorization("{rules: [{from: [{source: {requestPrincipals: [a.example/me]}}]}]}");
    let judged = |policies: &str, payload: Option<&str>| {
        let mut question = question("shop/frontend", "app.shop:80", None);
        question.ask = Some(Ask { jwt: payload.map(token), ..Ask::default() });
        asked(policies, &question).unwrap().judgements.remove(0)
    };
    let both = request.clone() + &rules;
    let good = judged(&both, Some(r#"{"iss": "a.example", "sub": "me", "aud": "shop"}"#));
    assert_eq!(good.outcome, Outcome::Allowed, "{good}");
    assert!(
        good.token.as_ref().unwrap().contains("was not verified here: issuer a.example"),
        "{good}"
    );
    let other = judged(&both, Some(r#"{"iss": "a.example", "sub": "you", "aud": "shop"}"#));
    assert!(other.to_string().contains("wants a.example/me; it is a.example/you"), "{other}");
    assert!(judged(&both, None).to_string().contains("wants a.example/me; it is none"));
    for (payload, sees) in [
        (r#"{"iss": "a.example", "aud": "other"}"#, "403 `Audiences in Jwt are not allowed`"),
        (r#"{"iss": "b.example", "aud": "shop"}"#, "401 `Jwt issuer is not configured`"),
        (r#"{"iss": "a.example", "aud": "shop", "exp": 1}"#, "401 `Jwt is expired`"),
    ] {
        let refused = judged(&both, Some(payload));
        assert_eq!(refused.outcome, Outcome::Refused, "{refused}");
        assert_eq!(refused.client_sees.as_deref(), Some(sees));
    }
    let unread = judged(&rules, Some(r#"{"iss": "a.example", "sub": "me"}"#));
    assert_eq!(unread.outcome, Outcome::Refused);
    assert!(unread.token.as_ref().unwrap().starts_with("not looked at"), "{unread}");
}
