//! Rules by what they ask for, so that few of many are looked at.

use std::{collections::HashMap, sync::Arc};

use super::{
    check::About,
    pattern::Pattern,
    request::{Connection, Leaning, hosts, server},
    spec::{PathPattern, Policy, Rule, Test},
};
use crate::http::AnyRequest;

/// The rules of several policies.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<Place>,
    indices: [Index; Key::ALL.len()],
    /// Those that are in no index.
    rest: Vec<u32>,
}

/// One rule of one policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// As [`Rules::first`] is given them.
    pub(super) policy: u32,
    pub(super) rule: u32,
}

/// What rules can be found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Principal,
    Account,
    Namespace,
    Path,
    Host,
}

/// Rules by a text that has to be, or to begin, what is asked.
#[derive(Debug, Default)]
struct Index {
    exact: HashMap<Box<[u8]>, Vec<u32>>,
    prefixes: HashMap<Box<[u8]>, Vec<u32>>,
    /// Those of the prefixes.
    lengths: Vec<usize>,
}

/// A text, and whether it is only how one begins.
type Text = (Box<[u8]>, bool);

impl Rules {
    /// Of `policies` by their places among all.
    pub(super) fn new<'a>(policies: impl Iterator<Item = (u32, &'a Arc<Policy>)>) -> Self {
        let mut rules = Vec::new();
        let mut texts: Vec<[Option<Vec<Text>>; Key::ALL.len()]> = Vec::new();
        for (policy, named) in policies {
            for (rule, spec) in (0..).zip(&named.spec().rules) {
                rules.push(Place { policy, rule });
                texts.push(Key::ALL.map(|key| key.texts(spec)));
            }
        }
        // A text that many rules have in common tells them apart badly.
        let mut common: [HashMap<&Text, usize>; Key::ALL.len()] = Default::default();
        for of_rule in &texts {
            for (common, texts) in common.iter_mut().zip(of_rule) {
                for text in texts.iter().flatten() {
                    *common.entry(text).or_default() += 1;
                }
            }
        }
        let mut indices: [Index; Key::ALL.len()] = Default::default();
        let mut rest = Vec::new();
        for (at, of_rule) in (0..).zip(&texts) {
            let crowd = |key: usize| {
                let texts = of_rule[key].as_ref()?;
                texts.iter().map(|text| common[key][text]).max()
            };
            let best = (0..Key::ALL.len()).filter_map(|key| Some((crowd(key)?, key))).min();
            match best {
                Some((_, key)) => {
                    of_rule[key].iter().flatten().for_each(|text| indices[key].add(text, at));
                }
                None => rest.push(at),
            }
        }
        for index in &mut indices {
            index.lengths = index.prefixes.keys().map(|prefix| prefix.len()).collect();
            index.lengths.sort_unstable();
            index.lengths.dedup();
        }
        Self { rules, indices, rest }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The first rule that matches, in the order of policies and of the rules in each.
    pub(super) fn first<H: AnyRequest>(
        &self,
        policies: &[Arc<Policy>],
        connection: &Connection<'_>,
        about: &About<'_, H>,
        leaning: Leaning,
    ) -> Option<Place> {
        let mut first: Option<u32> = None;
        let mut look = |rules: &[u32]| {
            for at in rules {
                if first.is_some_and(|first| first <= *at) {
                    return;
                }
                let Place { policy, rule } = self.rules[*at as usize];
                let checks = &policies[policy as usize].checks[rule as usize];
                if checks.hold(connection, about, leaning) {
                    first = Some(*at);
                    return;
                }
            }
        };
        look(&self.rest);
        if let Some(principal) = connection.principal {
            self.of(Key::Principal).find(principal.without_scheme().as_bytes(), &mut look);
            self.of(Key::Account).find(principal.account().as_bytes(), &mut look);
            self.of(Key::Namespace).find(principal.namespace().as_bytes(), &mut look);
        }
        match about {
            About::Request(request) => {
                let paths = self.of(Key::Path);
                paths.find(&request.paths.base, &mut look);
                for other in request.paths.strict.iter().chain(&request.paths.bare) {
                    paths.find(other, &mut look);
                }
                let by_host = self.of(Key::Host);
                if !by_host.is_empty() {
                    for host in hosts(request.head) {
                        by_host.find(&host, &mut look);
                        by_host.find(server(&host), &mut look);
                    }
                }
            }
            About::Nothing { .. } => {
                for key in [Key::Path, Key::Host] {
                    self.of(key).all(&mut look);
                }
            }
        }
        first.map(|at| self.rules[at as usize])
    }

    fn of(&self, key: Key) -> &Index {
        &self.indices[key as usize]
    }
}

impl Index {
    fn add(&mut self, (text, begins): &Text, rule: u32) {
        let texts = if *begins { &mut self.prefixes } else { &mut self.exact };
        let rules = texts.entry(text.clone()).or_default();
        if rules.last() != Some(&rule) {
            rules.push(rule);
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }

    /// Those that may match by `text`.
    fn find(&self, text: &[u8], mut look: impl FnMut(&[u32])) {
        if !self.exact.is_empty()
            && let Some(rules) = self.exact.get(text)
        {
            look(rules);
        }
        for length in &self.lengths {
            let Some(beginning) = text.get(..*length) else { return };
            if let Some(rules) = self.prefixes.get(beginning) {
                look(rules);
            }
        }
    }

    fn all(&self, mut look: impl FnMut(&[u32])) {
        self.exact.values().chain(self.prefixes.values()).for_each(|rules| look(rules));
    }
}

impl Key {
    const ALL: [Self; 5] =
        [Self::Principal, Self::Account, Self::Namespace, Self::Path, Self::Host];

    /// The texts of which a request has to have one for `rule` to match it; `None` where there are none
    /// such.
    fn texts(self, rule: &Rule) -> Option<Vec<Text>> {
        let in_all = |tests: &Vec<Test>| tests.iter().find_map(|test| self.texts_of(test));
        let in_any = |clauses: &Vec<Vec<Test>>| {
            let texts: Option<Vec<_>> = clauses.iter().map(in_all).collect();
            texts.map(|texts| texts.concat()).filter(|texts| !texts.is_empty())
        };
        in_all(&rule.when).or_else(|| in_any(&rule.from)).or_else(|| in_any(&rule.to))
    }

    fn texts_of(self, test: &Test) -> Option<Vec<Text>> {
        let texts: Option<Vec<Text>> = match (self, test) {
            (Self::Principal, Test::Principal(lists))
            | (Self::Namespace, Test::Namespace(lists))
            | (Self::Host, Test::Host(lists)) => lists.values.iter().map(text_of).collect(),
            (Self::Account, Test::ServiceAccount(lists)) => {
                let named = lists.values.iter().map(|account| {
                    (format!("{}/sa/{}", account.namespace, account.name).into_bytes(), false)
                });
                Some(named.map(|(text, begins)| (text.into(), begins)).collect())
            }
            (Self::Path, Test::Path(lists)) => {
                let text = |path: &PathPattern| match path {
                    PathPattern::Text(pattern) => text_of(pattern),
                    PathPattern::Template(_) => None,
                };
                lists.values.iter().map(text).collect()
            }
            _ => None,
        };
        texts.filter(|texts| !texts.is_empty())
    }
}

fn text_of(pattern: &Pattern) -> Option<Text> {
    match pattern {
        Pattern::Exact(text) => Some((text.as_bytes().into(), false)),
        Pattern::Prefix(text) => Some((text.as_bytes().into(), true)),
        Pattern::Suffix(_) | Pattern::Present | Pattern::Glob(_) => None,
    }
}
