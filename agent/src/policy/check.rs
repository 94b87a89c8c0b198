//! The tests of one rule, compiled.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    claims::{ClaimPath, Principals},
    path::is_verbatim,
    pattern::Patterns,
    request::{Connection, Leaning, Readings, Request, hosts, hosts_as_they_came, remote, server},
    spec::{Account, Lists, PathPattern, Rule, Test},
    template::Template,
};
use crate::{
    http::{AnyRequest, Fields},
    mesh::Principal,
};

/// The tests of a rule.
#[derive(Debug)]
pub(super) struct Checks {
    pub(super) from: Vec<Vec<Check>>,
    pub(super) to: Vec<Vec<Check>>,
    pub(super) when: Vec<Check>,
    /// One of them is about what only HTTP has.
    asks_http: bool,
}

/// What is known of the request.
pub(super) enum About<'a, H> {
    /// All of it.
    Request(&'a Request<'a, H>),
    /// Nothing: tests of what only HTTP has are taken as passed, or as not. So are those of where it came
    /// from where it `may_be_http`, which is forwarded.
    Nothing { passes: bool, may_be_http: bool },
}

/// One test, compiled.
#[derive(Debug)]
pub(super) enum Check {
    Principal(Sides<Patterns>),
    Namespace(Sides<Patterns>),
    ServiceAccount(Sides<Vec<Account>>),
    TrustDomain(Sides<Patterns>),
    SourceIp(Sides<Vec<IpNet>>),
    DestinationIp(Sides<Vec<IpNet>>),
    DestinationPort(Sides<Vec<u16>>),
    RemoteIp(Sides<Vec<IpNet>>),
    Http(HttpCheck),
}

#[derive(Debug)]
pub(super) enum HttpCheck {
    /// What no request has.
    Absent(Sides<()>),
    RequestPrincipal(Sides<Vec<Principals>>),
    Claim(ClaimPath, Sides<Patterns>),
    Host(Sides<Patterns>),
    Method(Sides<Patterns>),
    Path(Sides<Paths>),
    Header(Box<str>, Sides<Patterns>),
}

/// Either list, where there is one.
#[derive(Debug)]
pub(super) struct Sides<S> {
    values: Option<Box<S>>,
    not_values: Option<Box<S>>,
}

impl<S> Sides<S> {
    fn of<'a, T: 'a>(lists: &'a Lists<T>, make: impl Fn(&'a [T]) -> S) -> Self {
        let side = |list: &'a Vec<T>| (!list.is_empty()).then(|| Box::new(make(list)));
        Self { values: side(&lists.values), not_values: side(&lists.not_values) }
    }

    /// Whether `is_in` holds of the one list, and not of the other: with as much doubt as is left to it.
    fn hold(&self, leaning: Leaning, is_in: impl Fn(&S, Leaning) -> bool) -> bool {
        self.values.as_ref().is_none_or(|set| is_in(set, leaning))
            && self.not_values.as_ref().is_none_or(|set| !is_in(set, leaning.turned()))
    }
}

impl Checks {
    pub(super) fn new(rule: &Rule) -> Self {
        let all = |tests: &Vec<Test>| tests.iter().map(Check::new).collect();
        let any = |clauses: &Vec<Vec<Test>>| clauses.iter().map(all).collect();
        let tests = rule.from.iter().chain(&rule.to).flatten().chain(&rule.when);
        Self {
            asks_http: { tests }.any(Test::is_of_http),
            from: any(&rule.from),
            to: any(&rule.to),
            when: all(&rule.when),
        }
    }

    /// Whether the rule matches.
    pub(super) fn hold<H: AnyRequest>(
        &self,
        connection: &Connection<'_>,
        about: &About<'_, H>,
        leaning: Leaning,
    ) -> bool {
        if self.are_passed_over(about) {
            return false;
        }
        let all = |checks: &Vec<Check>| {
            checks.iter().all(|check| check.holds(connection, about, leaning))
        };
        let any = |clauses: &Vec<Vec<Check>>| clauses.is_empty() || clauses.iter().any(all);
        any(&self.from) && any(&self.to) && all(&self.when)
    }

    /// Whether the rule is passed over as a whole, however many sources and operations it has besides: it
    /// asks for what only HTTP has.
    pub(super) fn are_passed_over<H>(&self, about: &About<'_, H>) -> bool {
        self.asks_http && matches!(about, About::Nothing { passes: false, .. })
    }
}

fn texts<'a>(lists: &'a Lists<super::Pattern>) -> Sides<Patterns> {
    Sides::of(lists, |list: &'a [_]| list.iter().collect())
}

impl Check {
    fn new(test: &Test) -> Self {
        let blocks = |lists| Sides::of(lists, <[IpNet]>::to_vec);
        match test {
            Test::Principal(lists) => Self::Principal(texts(lists)),
            Test::Namespace(lists) => Self::Namespace(texts(lists)),
            Test::ServiceAccount(lists) => Self::ServiceAccount(Sides::of(lists, |list| {
                let mut accounts = list.to_vec();
                accounts.sort_unstable();
                accounts
            })),
            Test::TrustDomain(lists) => Self::TrustDomain(texts(lists)),
            Test::SourceIp(lists) => Self::SourceIp(blocks(lists)),
            Test::RemoteIp(lists) => Self::RemoteIp(blocks(lists)),
            Test::DestinationIp(lists) => Self::DestinationIp(blocks(lists)),
            Test::DestinationPort(lists) => {
                Self::DestinationPort(Sides::of(lists, <[u16]>::to_vec))
            }
            Test::RequestPrincipal(lists) => {
                Self::Http(HttpCheck::RequestPrincipal(Sides::of(lists, |list| {
                    list.iter().map(Principals::from).collect()
                })))
            }
            Test::Claim(path, lists) => Self::Http(HttpCheck::Claim(path.clone(), texts(lists))),
            Test::Sni(lists) => Self::Http(HttpCheck::Absent(Sides::of(lists, |_| ()))),
            Test::Host(lists) => Self::Http(HttpCheck::Host(texts(lists))),
            Test::Method(lists) => Self::Http(HttpCheck::Method(texts(lists))),
            Test::Path(lists) => Self::Http(HttpCheck::Path(Sides::of(lists, Paths::new))),
            Test::Header(name, lists) => Self::Http(HttpCheck::Header(name.clone(), texts(lists))),
        }
    }

    pub(super) fn holds<H: AnyRequest>(
        &self,
        connection: &Connection<'_>,
        about: &About<'_, H>,
        leaning: Leaning,
    ) -> bool {
        let client = |of: fn(&Principal) -> &str| {
            connection.principal.map_or(&b""[..], |principal| of(principal).as_bytes())
        };
        match self {
            Self::Principal(sides) => {
                let text = client(Principal::without_scheme);
                sides.hold(leaning, |patterns, _| patterns.match_text(text))
            }
            Self::Namespace(sides) => {
                let text = client(Principal::namespace);
                sides.hold(leaning, |patterns, _| patterns.match_text(text))
            }
            Self::TrustDomain(sides) => {
                let text = client(|principal| principal.trust_domain().as_str());
                sides.hold(leaning, |patterns, _| patterns.match_text(text))
            }
            Self::ServiceAccount(sides) => sides.hold(leaning, |accounts, _| {
                connection.principal.is_some_and(|principal| {
                    let who = (principal.namespace(), principal.service_account());
                    let by = |account: &Account| (&*account.namespace, &*account.name).cmp(&who);
                    accounts.binary_search_by(by).is_ok()
                })
            }),
            Self::SourceIp(sides) => {
                let source = connection.source.to_canonical();
                sides.hold(leaning, |blocks, _| contain(blocks, source))
            }
            Self::DestinationIp(sides) => {
                let destination = connection.destination.ip().to_canonical();
                sides.hold(leaning, |blocks, _| contain(blocks, destination))
            }
            Self::DestinationPort(sides) => {
                let port = connection.destination.port();
                sides.hold(leaning, |ports, _| ports.contains(&port))
            }
            Self::RemoteIp(sides) => {
                let remote = match about {
                    About::Request(request) => remote(request.head, connection.source),
                    About::Nothing { passes, may_be_http: true } => return *passes,
                    // Nobody has forwarded what is not HTTP.
                    About::Nothing { .. } => connection.source.to_canonical(),
                };
                sides.hold(leaning, |blocks, _| contain(blocks, remote))
            }
            Self::Http(check) => match about {
                About::Request(request) => check.holds(request, leaning),
                About::Nothing { passes, .. } => *passes,
            },
        }
    }
}

impl HttpCheck {
    fn holds<H: AnyRequest>(&self, request: &Request<'_, H>, leaning: Leaning) -> bool {
        match self {
            Self::Absent(sides) => sides.hold(leaning, |(), _| false),
            Self::RequestPrincipal(sides) => sides.hold(leaning, |principals, _| {
                request.claims.is_some_and(|claims| claims.match_principal(principals))
            }),
            Self::Claim(path, sides) => sides.hold(leaning, |patterns, _| {
                request.claims.is_some_and(|claims| claims.match_claim(path, patterns))
            }),
            Self::Host(sides) => sides.hold(leaning, |patterns, leaning| {
                let mut hosts = hosts(request.head);
                match leaning {
                    Leaning::NotToMatch => hosts.all(|host| patterns.match_text(&host)),
                    Leaning::ToMatch => hosts.any(|host| {
                        patterns.match_text(&host) || patterns.match_text(server(&host))
                    }),
                }
            }),
            Self::Method(sides) => {
                let methods = methods(request.head);
                sides.hold(leaning, |patterns, leaning| match leaning {
                    Leaning::NotToMatch => patterns.match_text(methods.usual),
                    Leaning::ToMatch => methods.any(|method| patterns.match_text(method)),
                })
            }
            Self::Path(sides) => {
                sides.hold(leaning, |paths, leaning| paths.match_path(&request.paths, leaning))
            }
            Self::Header(name, sides) => sides.hold(leaning, |patterns, leaning| {
                match_header(request.head, name, patterns, leaning)
            }),
        }
    }
}

/// The methods that a request may be taken to have.
struct Methods<'a> {
    /// As it came; of an extended CONNECT (RFC 8441) the one that it stands for, as in Envoy.
    usual: &'a [u8],
    came: &'a [u8],
}

fn methods<H: AnyRequest>(head: &H) -> Methods<'_> {
    let came = head.method();
    let is_extended = came == b"CONNECT" && !head.target().path.is_empty();
    Methods { usual: if is_extended { b"GET" } else { came }, came }
}

impl Methods<'_> {
    /// Whether one is `wanted`, also in capitals, which some applications make of it.
    fn any(&self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        let in_capitals = || {
            let has_small = self.came.iter().any(u8::is_ascii_lowercase);
            has_small && wanted(&self.came.to_ascii_uppercase())
        };
        wanted(self.usual) || wanted(self.came) || in_capitals()
    }
}

fn contain(blocks: &[IpNet], ip: IpAddr) -> bool {
    blocks.iter().any(|block| block.contains(&ip))
}

/// Several fields of a name are one, in Envoy and here (RFC 9110 §5.3): their values with commas between.
/// Applications may look at one of them alone.
fn match_header<H: AnyRequest>(
    head: &H,
    name: &str,
    patterns: &Patterns,
    leaning: Leaning,
) -> bool {
    // Envoy has one place for both.
    if name == "host" {
        let mut hosts = hosts_as_they_came(head);
        return match leaning {
            Leaning::NotToMatch => hosts.all(|host| patterns.match_text(host)),
            Leaning::ToMatch => hosts.any(|host| patterns.match_text(host)),
        };
    }
    let mut values = head.values_of(name);
    let Some(first) = values.next() else { return false };
    if patterns.match_presence() {
        return true;
    }
    let Some(second) = values.next() else { return patterns.match_text(first) };
    // HTTP/2 has cookies in fields of their own (RFC 9113 §8.2.3).
    let between: &[u8] = if name == "cookie" { b"; " } else { b"," };
    let mut joined = [first, between, second].concat();
    for value in values {
        joined.extend_from_slice(between);
        joined.extend_from_slice(value);
    }
    patterns.match_text(&joined)
        || (leaning == Leaning::ToMatch
            && Fields::values_of(head, name).any(|value| patterns.match_text(value)))
}

/// Paths of which one is enough.
#[derive(Debug, Default)]
pub(super) struct Paths {
    plain: Patterns,
    /// Those that speak of how a path is written, which only the form that is sent on tells.
    verbatim: Patterns,
    templates: Vec<Template>,
}

impl Paths {
    fn new(list: &[PathPattern]) -> Self {
        let texts = |is: bool| {
            list.iter().filter_map(move |path| match path {
                PathPattern::Text(pattern) if pattern.text().is_some_and(is_verbatim) == is => {
                    Some(pattern)
                }
                _ => None,
            })
        };
        let templates = list.iter().filter_map(|path| match path {
            PathPattern::Template(template) => Some(template.clone()),
            PathPattern::Text(_) => None,
        });
        Self {
            plain: texts(false).collect(),
            verbatim: texts(true).collect(),
            templates: templates.collect(),
        }
    }

    fn match_path(&self, paths: &Readings<'_>, leaning: Leaning) -> bool {
        let one = |path: &[u8]| {
            self.plain.match_text(path)
                || self.templates.iter().any(|template| template.match_path(path, leaning))
        };
        let base = &*paths.base;
        let keeps_out = leaning == Leaning::ToMatch;
        self.verbatim.match_text(base)
            || (keeps_out && paths.bare.as_deref().is_some_and(one))
            || match (&paths.strict, leaning) {
                (None, _) => one(base),
                (Some(strict), Leaning::ToMatch) => one(base) || one(strict),
                (Some(strict), Leaning::NotToMatch) => one(base) && one(strict),
            }
    }
}
