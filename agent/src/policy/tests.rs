//! Each field of a rule, and how rules and policies come together.

use std::{net::IpAddr, sync::Arc};

use http::request::Parts;

use super::{
    Account, Action, Asks, Authorization, Claims, Connection, Lists, PathPattern, Pattern, Policy,
    Reason, Request, Rule, Spec, Template, Test, TokenPrincipal, Verdict,
};
use crate::mesh::Principal;

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

/// Whoever asks; plaintext without a principal.
struct Client {
    principal: Option<Principal>,
    source: IpAddr,
}

fn client(principal: &str) -> Client {
    Client { principal: principal.parse().ok(), source: "10.1.2.3".parse().unwrap() }
}

fn frontend() -> Client {
    client(FRONTEND)
}

impl Client {
    fn connection(&self) -> Connection<'_> {
        Connection {
            principal: self.principal.as_ref(),
            source: self.source,
            destination: "10.0.0.9:8080".parse().unwrap(),
        }
    }
}

fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn get(target: &str) -> Parts {
    request("GET", target, &[])
}

fn patterns(values: &[&str]) -> Vec<Pattern> {
    values.iter().map(|value| Pattern::of(value)).collect()
}

fn lists(values: &[&str], not_values: &[&str]) -> Lists<Pattern> {
    Lists { values: patterns(values), not_values: patterns(not_values) }
}

fn paths(values: &[&str], not_values: &[&str]) -> Test {
    let path = |value: &&str| match Template::is_one(value) {
        true => PathPattern::Template(Template::parse(value).unwrap()),
        false => PathPattern::Text(Pattern::of(value)),
    };
    let list = |values: &[&str]| values.iter().map(path).collect();
    Test::Path(Lists { values: list(values), not_values: list(not_values) })
}

fn blocks(values: &[&str], not_values: &[&str]) -> Lists<ipnet::IpNet> {
    let list = |values: &[&str]| values.iter().map(|value| value.parse().unwrap()).collect();
    Lists { values: list(values), not_values: list(not_values) }
}

fn when(tests: Vec<Test>) -> Rule {
    Rule { when: tests, ..Rule::default() }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy::new(name, Spec { action, rules, ..Spec::default() })
}

fn all(policies: Vec<Policy>) -> Authorization {
    Authorization::new(policies.into_iter().map(Arc::new).collect())
}

/// Whether a rule that keeps out what `test` is true of keeps the request out.
fn denied_by(test: Test, client: &Client, head: &Parts) -> bool {
    let authorization = all(vec![policy("shop/deny", Action::Deny, vec![when(vec![test])])]);
    let request = Request::new(head).unwrap();
    let decision = authorization.decide(&client.connection(), &Asks::Request(&request));
    decision.verdict == Verdict::Deny
}

/// Whether one that lets in what `test` is true of lets it in.
fn allowed_by(test: Test, client: &Client, head: &Parts) -> bool {
    let authorization = all(vec![policy("shop/allow", Action::Allow, vec![when(vec![test])])]);
    let request = Request::new(head).unwrap();
    let decision = authorization.decide(&client.connection(), &Asks::Request(&request));
    decision.verdict == Verdict::Allow
}

/// Of a test that nobody can be in doubt about.
fn holds(test: Test, client: &Client, head: &Parts) -> bool {
    let denied = denied_by(test.clone(), client, head);
    assert_eq!(allowed_by(test.clone(), client, head), denied, "{test:?}");
    denied
}

fn said(authorization: &Authorization, client: &Client, head: &Parts) -> String {
    let request = Request::new(head).unwrap();
    authorization.decide(&client.connection(), &Asks::Request(&request)).to_string()
}

fn opaque(authorization: &Authorization, client: &Client) -> Verdict {
    authorization.decide::<Parts>(&client.connection(), &Asks::Opaque).verdict
}

fn unknown(authorization: &Authorization, client: &Client) -> Verdict {
    authorization.decide::<Parts>(&client.connection(), &Asks::Connection).verdict
}

#[test]
fn a_client_is_told_by_what_it_proved() {
    let is = |test| holds(test, &frontend(), &get("/"));
    let td = "cluster.local/ns/shop/sa/frontend";
    for (values, expected) in [
        (&[td][..], true),
        (&["cluster.local/ns/shop/sa/*"], true),
        (&["*/sa/frontend"], true),
        (&["*"], true),
        (&["other/ns/shop/sa/frontend"], false),
        (&["cluster.local/ns/shop/sa/front"], false),
        // Dots are dots.
        (&["clusterXlocal/ns/shop/sa/frontend"], false),
        (&["spiffe://cluster.local/ns/shop/sa/frontend"], false),
        (&["other", td], true),
    ] {
        assert_eq!(is(Test::Principal(lists(values, &[]))), expected, "{values:?}");
        assert_eq!(is(Test::Principal(lists(&[], values))), !expected, "not {values:?}");
    }
    assert!(is(Test::Namespace(lists(&["shop"], &[]))));
    assert!(is(Test::Namespace(lists(&["sh*"], &["shopping"]))));
    assert!(!is(Test::Namespace(lists(&["sho"], &[]))));
    assert!(is(Test::TrustDomain(lists(&["*.local"], &["other"]))));
    assert!(!is(Test::TrustDomain(lists(&["local"], &[]))));
    let account = |namespace: &str, name: &str| {
        let values = vec![Account { namespace: namespace.into(), name: name.into() }];
        Test::ServiceAccount(Lists { values, not_values: Vec::new() })
    };
    assert!(is(account("shop", "frontend")));
    assert!(!is(account("shop", "front")));
    assert!(!is(account("other", "frontend")));
}

#[test]
fn plaintext_has_no_identity_that_could_match() {
    let is = |test| holds(test, &client(""), &get("/"));
    for test in [Test::Principal, Test::Namespace, Test::TrustDomain] {
        assert!(!is(test(lists(&["*"], &[]))));
        assert!(is(test(lists(&[], &["*"]))));
    }
    let account = Account { namespace: "shop".into(), name: "frontend".into() };
    let accounts = |values: &[Account], not_values: &[Account]| {
        Test::ServiceAccount(Lists { values: values.into(), not_values: not_values.into() })
    };
    assert!(!is(accounts(std::slice::from_ref(&account), &[])));
    assert!(is(accounts(&[], &[account])));
}

#[test]
fn addresses_are_in_blocks_of_both_families() {
    let mut from = frontend();
    let mut is = |source: &str, test: Test| {
        from.source = source.parse().unwrap();
        holds(test, &from, &get("/"))
    };
    for (source, block, expected) in [
        ("10.1.2.3", "10.1.0.0/16", true),
        ("10.2.2.3", "10.1.0.0/16", false),
        ("::ffff:10.1.2.3", "10.1.0.0/16", true),
        ("10.1.2.3", "10.1.2.3/32", true),
        ("2001:db8::1", "2001:db8::/32", true),
        ("2001:db9::1", "2001:db8::/32", false),
        ("10.1.2.3", "::/0", false),
    ] {
        assert_eq!(is(source, Test::SourceIp(blocks(&[block], &[]))), expected, "{source} {block}");
        assert_eq!(is(source, Test::SourceIp(blocks(&[], &[block]))), !expected);
        assert_eq!(is(source, Test::RemoteIp(blocks(&[block], &[]))), expected);
    }
    assert!(is("10.1.2.3", Test::DestinationIp(blocks(&["10.0.0.9/32"], &[]))));
    assert!(!is("10.1.2.3", Test::DestinationIp(blocks(&["10.0.0.8/32"], &[]))));
    let ports = |values: &[u16], not_values: &[u16]| {
        Test::DestinationPort(Lists { values: values.into(), not_values: not_values.into() })
    };
    assert!(is("10.1.2.3", ports(&[80, 8080], &[])));
    assert!(!is("10.1.2.3", ports(&[80], &[])));
    assert!(!is("10.1.2.3", ports(&[], &[8080])));
    let forwarded = request("GET", "/", &[("x-forwarded-for", "192.0.2.7")]);
    let remote = |block| holds(Test::RemoteIp(blocks(&[block], &[])), &frontend(), &forwarded);
    assert!(remote("192.0.2.0/24"));
    assert!(!remote("10.1.0.0/16"));
}

#[test]
fn requests_are_told_by_method_host_and_headers() {
    let of = |test, method: &str, fields: &[(&str, &str)]| {
        holds(test, &frontend(), &request(method, "/", fields))
    };
    assert!(of(Test::Method(lists(&["GET", "HEAD"], &[])), "GET", &[]));
    assert!(of(Test::Method(lists(&["*"], &["P*"])), "GET", &[]));
    let (method, small) = (Test::Method(lists(&["GET"], &[])), request("get", "/", &[]));
    assert!(!allowed_by(method.clone(), &frontend(), &small));
    assert!(denied_by(method, &frontend(), &small), "some applications make it GET");
    let host = |pattern: &str, host: &str| {
        of(Test::Host(lists(&[pattern], &[])), "GET", &[("host", host)])
    };
    assert!(host("a.example", "A.Example"));
    assert!(host("*.example", "a.example"));
    assert!(host("a.example:*", "a.example:80"));
    assert!(!host("a.example", "b.a.example"));
    let header = |values: &[&str], not_values: &[&str], fields: &[(&str, &str)]| {
        of(Test::Header("x-team".into(), lists(values, not_values)), "GET", fields)
    };
    assert!(header(&["a"], &[], &[("X-Team", "a")]));
    assert!(!header(&["a"], &[], &[("X-Team", "A")]));
    assert!(header(&["a*", "b"], &[], &[("x-team", "ab")]));
    assert!(header(&["*"], &[], &[("x-team", "")]));
    assert!(!header(&["*"], &[], &[("x-teams", "a")]));
    assert!(header(&[], &["*"], &[]));
    assert!(!header(&[], &["a"], &[("x-team", "a")]));
    assert!(header(&["a,b"], &[], &[("x-team", "a"), ("x-team", "b")]));
    let host = Test::Header("host".into(), lists(&["a.example"], &[]));
    assert!(holds(host, &frontend(), &get("http://a.example/")));
}

#[test]
fn paths_are_matched_in_their_one_form_and_without_the_query() {
    let is = |pattern: &str, target: &str| holds(paths(&[pattern], &[]), &frontend(), &get(target));
    assert!(is("/api/*", "/api/v1?x=/admin"));
    assert!(!is("/api/*", "/api"));
    assert!(!is("/api", "/API"));
    assert!(is("*.txt", "/a/b.txt?x"));
    assert!(is("*", "/"));
    assert!(is("/admin", "/public/../%61dmin"));
    assert!(is("/a/{*}/c", "/a/b/c"));
    assert!(!is("/a/{*}/c", "/a/b/d/c"));
    assert!(is("/a/{**}", "/a/b/d"));
    assert!(is("/", "http://a.example"));
}

#[test]
fn who_is_let_in_is_so_by_every_reading_of_a_path_and_kept_out_by_any() {
    let denied = |target: &str| denied_by(paths(&["/admin*"], &[]), &frontend(), &get(target));
    let allowed = |target: &str| allowed_by(paths(&["/public/*"], &[]), &frontend(), &get(target));
    for target in ["/admin", "//admin", "/%2Fadmin", "/public/..%2Fadmin", "/public/..%5cadmin/x"] {
        assert!(denied(target), "{target}");
        assert!(!allowed(target), "{target}");
    }
    assert!(allowed("/public//a"));
    assert!(allowed("/public/a%2Fb"));
    assert!(!denied("/public//admin"));
    for target in ["/admin;x=1", "/admin;/a", "/public/..;x/admin", "//admin;"] {
        assert!(denied(target), "{target}");
    }
    assert!(allowed("/public/a;b"));
    // The same of what is left out of a rule.
    let but = |target: &str| allowed_by(paths(&[], &["/admin*"]), &frontend(), &get(target));
    assert!(but("/public"));
    assert!(!but("//admin"));
    let all_but = |target: &str| denied_by(paths(&[], &["/public/*"]), &frontend(), &get(target));
    assert!(!all_but("/public/a"));
    assert!(all_but("/public/..%2Fadmin"));
    // Who writes a policy about how a path is written means that.
    assert!(allowed_by(paths(&["/a%2Fb"], &[]), &frontend(), &get("/a%2Fb")));
    assert!(allowed_by(paths(&["//a"], &[]), &frontend(), &get("//a")));
}

#[test]
fn who_is_kept_out_is_so_by_any_name_of_the_server_and_any_field_of_a_name() {
    for host in ["admin.example", "admin.example:8080", "ADMIN.example.", "admin.example.:80"] {
        let head = request("GET", "/", &[("host", host)]);
        assert!(
            denied_by(Test::Host(lists(&["admin.example"], &[])), &frontend(), &head),
            "{host}"
        );
        let allowed = allowed_by(Test::Host(lists(&["admin.example"], &[])), &frontend(), &head);
        assert_eq!(allowed, host == "admin.example", "{host}");
        let but = Test::Host(lists(&[], &["admin.example"]));
        assert!(!allowed_by(but, &frontend(), &head), "{host}");
    }
    let two = request("GET", "http://a.example/", &[("host", "admin.example")]);
    assert!(denied_by(Test::Host(lists(&["admin.example"], &[])), &frontend(), &two));
    for one in ["admin.example", "a.example"] {
        assert!(!allowed_by(Test::Host(lists(&[one], &[])), &frontend(), &two));
    }
    assert!(allowed_by(Test::Host(lists(&["*.example"], &[])), &frontend(), &two));
    let twice = request("GET", "/", &[("x-role", "guest"), ("x-role", "admin")]);
    let admin = |values: &[&str], not_values: &[&str]| {
        Test::Header("x-role".into(), lists(values, not_values))
    };
    assert!(denied_by(admin(&["admin"], &[]), &frontend(), &twice));
    assert!(!allowed_by(admin(&["admin"], &[]), &frontend(), &twice));
    assert!(!allowed_by(admin(&[], &["admin"]), &frontend(), &twice));
    assert!(denied_by(admin(&[], &["guest"]), &frontend(), &twice));
}

#[test]
fn a_field_host_names_every_server_and_crumbs_of_a_cookie_are_one() {
    let head = request("GET", "http://a.example/", &[("host", "admin.example")]);
    for one in ["a.example", "admin.example"] {
        let host = || Test::Header("host".into(), lists(&[one], &[]));
        assert!(denied_by(host(), &frontend(), &head));
        assert!(!allowed_by(host(), &frontend(), &head));
    }
    let crumbs = request("GET", "/", &[("cookie", "a=1"), ("cookie", "b=2")]);
    let cookie = || Test::Header("cookie".into(), lists(&["a=1; b=2"], &[]));
    assert!(
        allowed_by(cookie(), &frontend(), &crumbs) && denied_by(cookie(), &frontend(), &crumbs)
    );
}

#[test]
fn no_connection_has_a_name_of_tls() {
    assert!(!holds(Test::Sni(lists(&["*"], &[])), &frontend(), &get("/")));
    assert!(holds(Test::Sni(lists(&[], &["*"])), &frontend(), &get("/")));
}

#[test]
fn a_request_is_told_by_what_its_token_claims_and_without_one_by_nothing() {
    let claims = serde_json::json!({"iss": "a.example", "sub": "order", "groups": ["admin"]});
    let claims = Claims::new(claims.as_object().unwrap().clone());
    let (head, client) = (get("/"), frontend());
    let holds = |claims: Option<&Claims>, test: Test| {
        let policies = all(vec![policy("shop/a", Action::Allow, vec![when(vec![test])])]);
        let request = Request::new(&head).unwrap().with_claims(claims);
        let decision = policies.decide(&client.connection(), &Asks::Request(&request));
        decision.verdict == Verdict::Allow
    };
    let principal = |values: &[&str], not_values: &[&str]| {
        let of = |texts: &[&str]| texts.iter().map(|text| TokenPrincipal::of(text)).collect();
        Test::RequestPrincipal(Lists { values: of(values), not_values: of(not_values) })
    };
    let groups =
        |values, not_values| Test::Claim(["groups".into()].into(), lists(values, not_values));
    for (values, not_values, with, without) in [
        (&["a.example/order"][..], &[][..], true, false),
        (&["a.example/cart", "*"], &[], true, false),
        (&["*"], &["a.example/*"], false, false),
        (&[], &["a.example/order"], false, true),
        (&[], &["a.example/cart"], true, true),
    ] {
        let test = || principal(values, not_values);
        assert_eq!(holds(Some(&claims), test()), with, "{values:?} {not_values:?}");
        assert_eq!(holds(None, test()), without, "{values:?} {not_values:?}");
    }
    for (values, not_values, with, without) in [
        (&["admin"][..], &[][..], true, false),
        (&["guest"], &[], false, false),
        (&[], &["admin"], false, true),
        (&["*"], &["guest"], true, false),
    ] {
        let test = || groups(values, not_values);
        assert_eq!(holds(Some(&claims), test()), with, "{values:?} {not_values:?}");
        assert_eq!(holds(None, test()), without, "{values:?} {not_values:?}");
    }
}

#[test]
fn a_rule_wants_a_source_an_operation_and_all_conditions() {
    let rule = Rule {
        from: vec![
            vec![Test::Namespace(lists(&["shop"], &[])), Test::TrustDomain(lists(&["x"], &[]))],
            vec![Test::Namespace(lists(&["shop"], &["other"]))],
        ],
        to: vec![
            vec![Test::Method(lists(&["GET"], &[])), paths(&["/a"], &[])],
            vec![paths(&["/b"], &[])],
        ],
        when: vec![Test::Header("x".into(), lists(&["1"], &[]))],
    };
    let policies = all(vec![policy("shop/a", Action::Allow, vec![rule])]);
    let asked = |method: &str, path: &str, fields: &[(&str, &str)]| {
        let head = request(method, path, fields);
        let request = Request::new(&head).unwrap();
        policies.decide(&frontend().connection(), &Asks::Request(&request)).reason
    };
    assert_eq!(asked("GET", "/a", &[("x", "1")]), Reason::Allowed);
    assert_eq!(asked("POST", "/b", &[("x", "1")]), Reason::Allowed);
    assert_eq!(asked("POST", "/a", &[("x", "1")]), Reason::NothingAllows);
    assert_eq!(asked("GET", "/a", &[]), Reason::NothingAllows);
}

#[test]
fn custom_goes_before_deny_and_deny_before_allow() {
    let get_rule = || when(vec![Test::Method(lists(&["GET"], &[]))]);
    let allow = || policy("shop/allow", Action::Allow, vec![Rule::default()]);
    let deny =
        || policy("shop/deny", Action::Deny, vec![when(vec![paths(&["/x"], &[])]), get_rule()]);
    let custom = || policy("shop/custom", Action::Custom, vec![get_rule()]);
    let said = |policies| said(&all(policies), &frontend(), &get("/"));
    assert_eq!(said(vec![]), "no policy is against it");
    assert_eq!(said(vec![allow()]), "allowed by rule 0 of ALLOW AuthorizationPolicy shop/allow");
    assert_eq!(
        said(vec![allow(), deny()]),
        "denied by rule 1 of DENY AuthorizationPolicy shop/deny"
    );
    assert!(
        said(vec![allow(), deny(), custom()]).starts_with(
            "rule 0 of CUSTOM AuthorizationPolicy shop/custom has `` asked, an external"
        )
    );
    let never = policy("shop/never", Action::Custom, vec![when(vec![paths(&["/y"], &[])])]);
    assert!(said(vec![never]).starts_with("no policy"));
}

#[test]
fn each_authorizer_is_asked_about_what_its_rules_match_and_deny_and_allow_follow() {
    let custom = |name: &str, provider: &str, dry_run, tests| {
        let provider = Some(provider.into());
        let spec = Spec {
            action: Action::Custom,
            provider,
            dry_run,
            rules: vec![when(tests)],
            ..Spec::default()
        };
        Policy::new(name, spec)
    };
    let method = |method| vec![Test::Method(lists(&[method], &[]))];
    let policies = all(vec![
        custom("shop/a", "one", false, method("GET")),
        custom("shop/b", "two", false, method("POST")),
        custom("shop/c", "one", false, method("POST")),
        custom("shop/d", "three", true, method("GET")),
        policy("shop/e", Action::Deny, vec![when(vec![paths(&["/x"], &[])])]),
    ]);
    assert_eq!(policies.authorizers(), 2, "one on trial asks nobody");
    let asked = |method: &str, path: &str| -> Vec<String> {
        let head = request(method, path, &[]);
        let request = Request::new(&head).unwrap();
        let connection = frontend();
        let connection = connection.connection();
        let asks = |at| {
            let (name, by) = policies.asks(at, &connection, &request)?;
            Some(format!("{name} by {}", by.name()))
        };
        (0..policies.authorizers()).filter_map(asks).collect()
    };
    assert_eq!(asked("GET", "/"), ["one by shop/a"]);
    assert_eq!(asked("POST", "/"), ["one by shop/c", "two by shop/b"]);
    assert_eq!(asked("PUT", "/"), [""; 0]);
    let permitted = |path: &str| {
        let head = request("GET", path, &[]);
        let request = Request::new(&head).unwrap();
        policies.decide(&frontend().connection(), &Asks::Permitted(&request)).verdict
    };
    assert_eq!((permitted("/"), permitted("/x")), (Verdict::Allow, Verdict::Deny));
    // Without having been asked, nothing that it matches passes; and nobody can be about bytes.
    let head = request("GET", "/", &[]);
    let unasked = Request::new(&head).unwrap();
    let unasked = policies.decide(&frontend().connection(), &Asks::Request(&unasked));
    assert_eq!((unasked.verdict, unasked.reason), (Verdict::Deny, Reason::Custom));
    assert_eq!(
        (opaque(&policies, &frontend()), unknown(&policies, &frontend())),
        (Verdict::Deny, Verdict::Allow)
    );
}

#[test]
fn an_allow_that_selects_and_matches_nothing_denies() {
    let said =
        |rules| said(&all(vec![policy("shop/a", Action::Allow, rules)]), &frontend(), &get("/"));
    let nothing = "no rule of ALLOW policies matches, such as shop/a";
    assert_eq!(said(vec![]), nothing);
    assert_eq!(said(vec![when(vec![paths(&["/other"], &[])])]), nothing);
    assert!(said(vec![Rule::default()]).starts_with("allowed by rule 0"));
    let deny_without_rules = all(vec![policy("shop/d", Action::Deny, vec![])]);
    assert_eq!(
        super::tests::said(&deny_without_rules, &frontend(), &get("/")),
        "no policy is against it"
    );
}

#[test]
fn a_policy_that_cannot_be_read_lets_nobody_pass() {
    let unreadable = Spec { unreadable: Some("no".into()), ..Spec::default() };
    let policies = all(vec![
        policy("shop/a", Action::Allow, vec![Rule::default()]),
        Policy::new("shop/b", unreadable),
    ]);
    let why = "AuthorizationPolicy shop/b cannot be read, so that nothing passes that it may be \
               about: no";
    assert_eq!(said(&policies, &frontend(), &get("/")), why);
    assert_eq!(opaque(&policies, &frontend()), Verdict::Deny);
    assert_eq!(unknown(&policies, &frontend()), Verdict::Deny);
}

#[test]
fn audit_and_dry_run_decide_nothing_and_are_told() {
    let dry = |name: &str, action, rules| {
        Policy::new(name, Spec { action, dry_run: true, rules, ..Spec::default() })
    };
    let to = |path: &str| when(vec![paths(&[path], &[])]);
    let told = |policies: Vec<Policy>, path: &str| {
        let (policies, head) = (all(policies), get(path));
        let request = Request::new(&head).unwrap();
        let (client, asks) = (frontend(), Asks::Request(&request));
        let decision = policies.decide(&client.connection(), &asks);
        assert_eq!(decision.verdict, Verdict::Allow);
        (
            decision.audit.map(|by| by.to_string()),
            decision.dry_run.map(|(by, reason)| reason.of(&by).to_string()),
        )
    };
    let audit = || policy("shop/audit", Action::Audit, vec![to("/b"), to("/a")]);
    let audited = "rule 1 of AUDIT AuthorizationPolicy shop/audit";
    assert_eq!(told(vec![audit()], "/a"), (Some(audited.into()), None));
    assert_eq!(told(vec![audit()], "/c"), (None, None));
    let deny = || dry("shop/try", Action::Deny, vec![to("/a")]);
    let denied = "denied by rule 0 of DENY AuthorizationPolicy shop/try";
    assert_eq!(told(vec![deny()], "/a"), (None, Some(denied.into())));
    assert_eq!(told(vec![deny()], "/b"), (None, None));
    let allow = || dry("shop/try", Action::Allow, vec![to("/a")]);
    let nothing = "no rule of ALLOW policies matches, such as shop/try";
    assert_eq!(told(vec![allow()], "/a"), (None, None));
    assert_eq!(told(vec![allow()], "/b"), (None, Some(nothing.into())));
    let in_force = policy("shop/b", Action::Allow, vec![to("/b")]);
    assert_eq!(told(vec![allow(), in_force], "/b"), (None, None));
}

#[test]
fn what_is_not_http_is_let_in_by_no_rule_of_http_and_kept_out_by_the_rest_of_one() {
    let http = || Test::Method(lists(&["GET"], &[]));
    let here = || Test::DestinationPort(Lists { values: vec![8080], not_values: vec![] });
    let elsewhere = || Test::DestinationPort(Lists { values: vec![1], not_values: vec![] });
    let of = |action, tests| all(vec![policy("shop/a", action, vec![when(tests)])]);
    let asked = |action, tests: Vec<Test>| {
        let policies = of(action, tests);
        (opaque(&policies, &frontend()), unknown(&policies, &frontend()))
    };
    use Verdict::{Allow, Deny};
    assert_eq!(asked(Action::Allow, vec![http()]), (Deny, Allow));
    assert_eq!(asked(Action::Allow, vec![http(), elsewhere()]), (Deny, Deny));
    assert_eq!(asked(Action::Allow, vec![here()]), (Allow, Allow));
    assert_eq!(asked(Action::Deny, vec![http()]), (Deny, Allow));
    assert_eq!(asked(Action::Deny, vec![http(), here()]), (Deny, Allow));
    assert_eq!(asked(Action::Deny, vec![http(), elsewhere()]), (Allow, Allow));
    assert_eq!(asked(Action::Deny, vec![here()]), (Deny, Deny));
    assert_eq!(asked(Action::Custom, vec![http()]), (Deny, Allow));
    // Of a rule with several operations, all of it is HTTP's.
    let to = vec![vec![here()], vec![http()]];
    let several = policy("shop/a", Action::Allow, vec![Rule { to, ..Rule::default() }]);
    assert_eq!(opaque(&all(vec![several]), &frontend()), Deny);
    // Where it came from is told by a request, if it is one.
    let remote = || Test::RemoteIp(blocks(&["192.0.2.0/24"], &[]));
    assert_eq!(asked(Action::Allow, vec![remote()]), (Deny, Allow));
    assert_eq!(asked(Action::Deny, vec![remote()]), (Allow, Allow));
    assert!(of(Action::Allow, vec![remote()]).asks_requests());
    assert!(!of(Action::Allow, vec![here()]).asks_requests());
}

#[test]
fn of_many_policies_the_first_rule_that_matches_is_told() {
    let one = |at: usize| {
        let rules = (0..10).map(|rule| {
            let principal = format!("cluster.local/ns/shop/sa/{at}");
            let from = vec![vec![Test::Principal(lists(&[&principal], &[]))]];
            let path = format!("/p{rule}");
            let path: &[&str] = match rule % 3 {
                0 => &[&path],
                1 => &[&format!("{path}*")],
                _ => &[&format!("*{path}")],
            };
            Rule { from, to: vec![vec![paths(path, &[])]], when: Vec::new() }
        });
        policy(&format!("shop/{at:03}"), Action::Allow, rules.collect())
    };
    let policies = all((0..100).map(one).collect());
    for (at, rule) in [(0, 0), (7, 4), (99, 8)] {
        let who = client(&format!("spiffe://cluster.local/ns/shop/sa/{at}"));
        let expected = format!("allowed by rule {rule} of ALLOW AuthorizationPolicy shop/{at:03}");
        assert_eq!(said(&policies, &who, &get(&format!("/p{rule}"))), expected);
    }
    assert!(said(&policies, &frontend(), &get("/p0")).starts_with("no rule of ALLOW"));
}

mod index {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        "(\\*|[ab]{1,2}|[ab]\\*|\\*[ab])"
    }

    fn test() -> impl Strategy<Value = Test> {
        let list = || prop::collection::vec(text(), 0..3);
        (0..5, list(), list()).prop_map(|(kind, values, not_values)| {
            let with = |before: &str| {
                let of = |values: &Vec<String>| {
                    values.iter().map(|value| Pattern::of(&format!("{before}{value}"))).collect()
                };
                Lists { values: of(&values), not_values: of(&not_values) }
            };
            match kind {
                0 => Test::Principal(with("cluster.local/ns/shop/sa/")),
                1 => Test::Namespace(with("")),
                2 => Test::Host(with("")),
                3 => Test::Method(with("")),
                _ => {
                    let Lists { values, not_values } = with("/");
                    let paths = |list: Vec<_>| list.into_iter().map(PathPattern::Text).collect();
                    Test::Path(Lists { values: paths(values), not_values: paths(not_values) })
                }
            }
        })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let tests = || prop::collection::vec(test(), 1..3);
        let clauses = move || prop::collection::vec(tests(), 0..3);
        let when = prop::collection::vec(test(), 0..2);
        (clauses(), clauses(), when).prop_map(|(from, to, when)| Rule { from, to, when })
    }

    proptest! {
        #[test]
        fn an_index_finds_the_rule_that_looking_at_each_in_turn_finds(
            rules in prop::collection::vec(rule(), 0..12),
            who in "[ab]{1,2}", namespace in "[ab]{1,2}", host in "[ab]{1,2}",
            method in "[ab]{1,2}", path in "/{1,2}[ab]{1,2}", action in 0..2,
        ) {
            let action = if action == 0 { Action::Allow } else { Action::Deny };
            let client = client(&format!("spiffe://cluster.local/ns/{namespace}/sa/{who}"));
            let head = request(&method, &path, &[("host", &host)]);
            let request = Request::new(&head).unwrap();
            for asks in [Asks::Request(&request), Asks::Opaque, Asks::Connection] {
                let first = |rules: &[Rule]| {
                    let policies = all(vec![policy("shop/a", action, rules.to_vec())]);
                    let decision = policies.decide(&client.connection(), &asks);
                    decision.by.and_then(|by| by.rule)
                };
                let alone = rules.iter().map(|rule| first(std::slice::from_ref(rule)));
                let expected = { alone }.position(|found| found.is_some());
                prop_assert_eq!(first(&rules).map(|rule| rule as usize), expected);
            }
        }
    }
}
