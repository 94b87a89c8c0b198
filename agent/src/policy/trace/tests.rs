//! What is told of rules is what decides.

use std::sync::Arc;

use http::request::Parts;
use proptest::{prelude::*, sample::select};

use super::*;
use crate::{
    mesh::Principal,
    policy::{
        Account, Decision, Lists, PathPattern, Pattern, Reason, Request, Spec, Template,
        TokenPrincipal, Verdict,
    },
};

fn lists<T: Clone + std::fmt::Debug + 'static>(
    values: &'static [&'static str],
    read: fn(&str) -> T,
) -> impl Strategy<Value = Lists<T>> {
    let some = || prop::collection::vec(select(values).prop_map(read), 0..3);
    (some(), some())
        .prop_map(|(values, not_values)| Lists { values, not_values })
        .prop_filter("a test has a value", |lists| {
            !lists.values.is_empty() || !lists.not_values.is_empty()
        })
}

fn path(text: &str) -> PathPattern {
    match Template::is_one(text) {
        true => PathPattern::Template(Template::parse(text).unwrap()),
        false => PathPattern::Text(Pattern::of(text)),
    }
}

fn account(text: &str) -> Account {
    let (namespace, name) = text.split_once('/').unwrap();
    Account { namespace: namespace.into(), name: name.into() }
}

fn test() -> impl Strategy<Value = Test> {
    const PRINCIPALS: &[&str] = &["td/ns/shop/sa/a", "td/ns/shop/*", "*/sa/b", "*"];
    const PATHS: &[&str] = &["/a", "/a/*", "*/b", "*", "/{*}/b", "/a//b", "/{**}"];
    prop_oneof![
        lists(PRINCIPALS, Pattern::of).prop_map(Test::Principal),
        lists(&["shop", "s*", "other"], Pattern::glob).prop_map(Test::Namespace),
        lists(&["shop/a", "other/b"], account).prop_map(Test::ServiceAccount),
        lists(&["td", "*d"], Pattern::of).prop_map(Test::TrustDomain),
        lists(&["10.0.0.1/32", "10.0.0.0/8", "::/0"], |text| text.parse().unwrap())
            .prop_map(Test::SourceIp),
        lists(&["192.0.2.1/32", "10.0.0.0/8"], |text| text.parse().unwrap())
            .prop_map(Test::RemoteIp),
        lists(&["80", "81"], |text| text.parse().unwrap()).prop_map(Test::DestinationPort),
        lists(&["GET", "P*"], Pattern::of).prop_map(Test::Method),
        lists(PATHS, path).prop_map(Test::Path),
        lists(&["a.example", "*.example", "a.example:80"], Pattern::of).prop_map(Test::Host),
        lists(&["x", "*", "y*"], Pattern::of).prop_map(|lists| Test::Header("x-a".into(), lists)),
        lists(&["a/b", "a/*", "*"], TokenPrincipal::of).prop_map(Test::RequestPrincipal),
        lists(&["x", "*"], Pattern::of).prop_map(|lists| Test::Claim(["a".into()].into(), lists)),
        lists(&["*"], Pattern::of).prop_map(Test::Sni),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let clauses = || prop::collection::vec(prop::collection::vec(test(), 1..3), 0..3);
    let when = prop::collection::vec(test(), 0..2);
    (clauses(), clauses(), when).prop_map(|(from, to, when)| Rule { from, to, when })
}

fn spec() -> impl Strategy<Value = Spec> {
    let action = select(&[Action::Allow, Action::Deny, Action::Audit, Action::Custom][..]);
    let rules = prop::collection::vec(rule(), 0..3);
    let unreadable = prop::bool::weighted(0.02);
    (action, prop::bool::weighted(0.2), rules, unreadable).prop_map(
        |(action, dry_run, rules, unreadable)| Spec {
            action,
            dry_run,
            rules,
            unreadable: unreadable.then(|| "why".into()),
            ..Spec::default()
        },
    )
}

fn head() -> impl Strategy<Value = Parts> {
    let fields = prop::collection::vec(select(&["x", "y1", ""][..]), 0..3);
    let method = select(&["GET", "POST", "get"][..]);
    let target = select(&["/a", "/a/b", "/a//b", "/a%2Fb", "/b;a", "/", "/a/x/b"][..]);
    let host = select(&["a.example", "A.example:80", "b.example."][..]);
    let forwarded = select(&["192.0.2.1", "10.9.9.9", "no address"][..]);
    (method, target, host, forwarded, fields).prop_map(
        |(method, target, host, forwarded, fields)| {
            let mut request = http::Request::builder().method(method).uri(target);
            request = request.header("host", host).header("x-forwarded-for", forwarded);
            for field in fields {
                request = request.header("x-a", field);
            }
            request.body(()).unwrap().into_parts().0
        },
    )
}

/// Who decides, as it follows from what came of each rule.
fn decided(traced: &[TracedPolicy], may_be_http: bool) -> (Verdict, Option<(&str, Option<usize>)>) {
    let of = |action: &'static str| {
        traced.iter().filter(move |policy| policy.action == action && !policy.dry_run)
    };
    if let Some(policy) = traced.iter().find(|policy| policy.unreadable.is_some()) {
        return (Verdict::Deny, Some((&policy.name, None)));
    }
    // What may be HTTP is asked about with its requests.
    let keeping_out = if may_be_http { &["DENY"][..] } else { &["CUSTOM", "DENY"] };
    for action in keeping_out {
        if let Some(by) = of(action).find_map(matching) {
            return (Verdict::Deny, Some(by));
        }
    }
    match (of("ALLOW").find_map(matching), of("ALLOW").next()) {
        (Some(by), _) => (Verdict::Allow, Some(by)),
        (None, Some(first)) => (Verdict::Deny, Some((&first.name, None))),
        (None, None) => (Verdict::Allow, None),
    }
}

fn matching(policy: &TracedPolicy) -> Option<(&str, Option<usize>)> {
    let at = policy.rules.iter().position(|rule| rule.outcome == Outcome::Matches)?;
    Some((&policy.name, Some(at)))
}

fn by(decision: &Decision<'_>) -> Option<(String, Option<usize>)> {
    decision.by.map(|by| (by.name().to_string(), by.rule.map(|rule| rule as usize)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_told_of_each_rule_comes_to_what_is_decided(
        specs in prop::collection::vec(spec(), 0..5),
        head in head(),
        who in select(&["", "spiffe://td/ns/shop/sa/a", "spiffe://td/ns/other/sa/b"][..]),
        asks in 0..3,
    ) {
        let policies = specs.into_iter().enumerate();
        let policies = policies.map(|(at, spec)| Arc::new(Policy::new(&format!("shop/p{at}"), spec)));
        let authorization = Authorization::new(policies.collect());
        let principal: Option<Principal> = who.parse().ok();
        let connection = Connection {
            principal: principal.as_ref(),
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
        };
        let request = Request::new(&head).unwrap();
        let asks = match asks {
            0 => Asks::Request(&request),
            1 => Asks::Opaque,
            _ => Asks::Connection,
        };
        let decision = authorization.decide(&connection, &asks);
        let traced = authorization.trace(&connection, &asks);
        let (verdict, who) = decided(&traced, matches!(asks, Asks::Connection));
        prop_assert_eq!(decision.verdict, verdict);
        prop_assert_eq!(by(&decision), who.map(|(name, rule)| (name.to_owned(), rule)));
        if !matches!(asks, Asks::Connection) {
            let readable = |policy: &&TracedPolicy| !policy.dry_run && policy.unreadable.is_none();
            let audits = traced.iter().filter(|policy| policy.action == "AUDIT").filter(readable);
            let audit = audits.filter_map(matching).next().map(|(name, _)| name.to_owned());
            prop_assert_eq!(decision.audit.map(|by| by.name().to_string()), audit);
        }
        for rule in traced.iter().flat_map(|policy| &policy.rules) {
            prop_assert!(!matches!(&rule.outcome, Outcome::Misses(misses) if misses.is_empty()));
        }
    }
}

#[test]
fn a_test_that_fails_is_told_with_what_it_wants_and_what_it_sees() {
    let texts = |values: &[&str]| values.iter().map(|text| Pattern::of(text)).collect::<Vec<_>>();
    let wants = |values: &[&str]| Lists { values: texts(values), not_values: Vec::new() };
    let rule = Rule {
        from: vec![vec![Test::Principal(wants(&["td/ns/shop/sa/b", "td/ns/other/*"]))]],
        to: vec![
            vec![Test::Method(wants(&["GET"])), Test::Path(lists_of_paths(&["/b"], &[]))],
            vec![Test::Path(lists_of_paths(&[], &["/a*"]))],
        ],
        when: vec![Test::Header("x-a".into(), wants(&["x"]))],
    };
    let spec = Spec { rules: vec![rule], ..Spec::default() };
    let authorization = Authorization::new(vec![Arc::new(Policy::new("shop/a", spec))]);
    let principal: Principal = "spiffe://td/ns/shop/sa/a".parse().unwrap();
    let connection = Connection {
        principal: Some(&principal),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let head = http::Request::builder().uri("/a/%2Fb").body(()).unwrap().into_parts().0;
    let request = Request::new(&head).unwrap();
    let traced = authorization.trace(&connection, &Asks::Request(&request));
    let Outcome::Misses(misses) = &traced[0].rules[0].outcome else { panic!("{traced:?}") };
    let misses: Vec<_> = misses.iter().map(ToString::to_string).collect();
    assert_eq!(
        misses,
        [
            "from[0].source.principals wants td/ns/shop/sa/b or td/ns/other/*; it is td/ns/shop/sa/a",
            "to[0].operation.paths wants /b; it is /a/%2Fb (which may be read as /a/b)",
            "to[1].operation.notPaths may not be /a*; it is /a/%2Fb (which may be read as /a/b)",
            "when[0] request.headers[x-a] wants x; it is none",
        ]
    );
    let traced = authorization.trace::<Parts>(&connection, &Asks::Opaque);
    assert_eq!(traced[0].rules[0].outcome, Outcome::PassedOver);
    let decision = authorization.decide::<Parts>(&connection, &Asks::Opaque);
    assert_eq!(decision.reason, Reason::NothingAllows);
}

fn lists_of_paths(values: &[&str], not_values: &[&str]) -> Lists<PathPattern> {
    let list = |list: &[&str]| list.iter().map(|text| path(text)).collect();
    Lists { values: list(values), not_values: list(not_values) }
}
