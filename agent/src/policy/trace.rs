//! Why each rule of a workload's policies matches, or does not.
//!
//! By the tests that decide, one after the other, and by nothing else: what is here calls what
//! [`Authorization::decide`] calls, and puts down what came of it.

use serde::{Deserialize, Serialize};

use super::{
    authorization::{Asks, Authorization},
    check::{About, Check, Checks},
    request::{Connection, Leaning},
    spec::{Action, Policy, Rule, Test},
    words::Wanted,
};
use crate::http::AnyRequest;

/// A policy, and what came of its rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedPolicy {
    /// `namespace/name`.
    pub name: String,
    /// `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`.
    pub action: String,
    /// It is only told what it would do.
    pub dry_run: bool,
    /// Why it cannot be read, so that nothing passes.
    pub unreadable: Option<String>,
    /// In their order.
    pub rules: Vec<TracedRule>,
}

/// A rule, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedRule {
    /// What it asks for.
    pub asks: String,
    /// What came of that.
    pub outcome: Outcome,
}

/// What came of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It matches.
    Matches,
    /// It is passed over as a whole: it asks for what only HTTP has, and would let in what is not.
    PassedOver,
    /// It does not match: of each alternative that was left, the first test that failed.
    Misses(Vec<Miss>),
}

/// A test that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// Where in the rule it is: `from[0].source.principals`.
    pub place: String,
    /// Values of which it has to be one, where there are any.
    pub wanted: Vec<String>,
    /// Values of which it may be none.
    pub not_wanted: Vec<String>,
    /// What it is.
    pub seen: String,
}

/// The order in which policies are asked; those on trial come after all others.
const ORDER: [Action; 4] = [Action::Custom, Action::Deny, Action::Allow, Action::Audit];

impl Authorization {
    /// The policies as they are asked: those that cannot be read, CUSTOM, DENY, ALLOW, AUDIT, then those on
    /// trial in the same order.
    pub fn in_order(&self) -> Vec<&Policy> {
        let mut policies: Vec<&Policy> = self.policies().iter().map(|policy| &**policy).collect();
        let place = |policy: &&Policy| {
            let spec = policy.spec();
            let at = ORDER.iter().position(|action| *action == spec.action);
            spec.unreadable.is_none().then_some((spec.dry_run, at))
        };
        // Those of one action stay in the order that they had.
        policies.sort_by_key(place);
        policies
    }

    /// What comes of every rule, in the order of [`in_order`](Self::in_order).
    pub fn trace<H: AnyRequest>(
        &self,
        connection: &Connection<'_>,
        asks: &Asks<'_, H>,
    ) -> Vec<TracedPolicy> {
        let policy = |policy: &Policy| {
            let spec = policy.spec();
            let leaning = match spec.action {
                Action::Allow => Leaning::NotToMatch,
                Action::Deny | Action::Audit | Action::Custom => Leaning::ToMatch,
            };
            let about = asks.about(leaning);
            let rules = spec.rules.iter().zip(&policy.checks);
            TracedPolicy {
                name: policy.name().to_string(),
                action: spec.action.as_str().to_owned(),
                dry_run: spec.dry_run,
                unreadable: spec.unreadable.as_deref().map(str::to_owned),
                rules: rules
                    .map(|(rule, checks)| TracedRule {
                        asks: rule.in_words(),
                        outcome: outcome(rule, checks, connection, &about, leaning),
                    })
                    .collect(),
            }
        };
        self.in_order().into_iter().map(policy).collect()
    }
}

fn outcome<H: AnyRequest>(
    rule: &Rule,
    checks: &Checks,
    connection: &Connection<'_>,
    about: &About<'_, H>,
    leaning: Leaning,
) -> Outcome {
    if checks.hold(connection, about, leaning) {
        return Outcome::Matches;
    }
    if checks.are_passed_over(about) {
        return Outcome::PassedOver;
    }
    let holds = |check: &Check| check.holds(connection, about, leaning);
    let miss = |test: &Test, place: &dyn Fn(&str) -> String| {
        let Wanted { field, values, not_values } = test.wanted(place("").starts_with("when"));
        let field = if values.is_empty() { not(&field) } else { field };
        let (wanted, not_wanted) = (values, not_values);
        Miss { place: place(&field), wanted, not_wanted, seen: test.seen(connection, about) }
    };
    let mut misses = Vec::new();
    let alternatives =
        [("from", "source", &rule.from, &checks.from), ("to", "operation", &rule.to, &checks.to)];
    for (list, name, tests, checks) in alternatives {
        if checks.iter().any(|clause| clause.iter().all(holds)) {
            continue;
        }
        for (at, (tests, checks)) in tests.iter().zip(checks).enumerate() {
            let failed = tests.iter().zip(checks).find(|(_, check)| !holds(check));
            let place = |field: &str| format!("{list}[{at}].{name}.{field}");
            misses.extend(failed.map(|(test, _)| miss(test, &place)));
        }
    }
    let when = rule.when.iter().zip(&checks.when).enumerate();
    for (at, (test, _)) in when.filter(|(_, (_, check))| !holds(check)) {
        misses.push(miss(test, &|field| format!("when[{at}] {field}")));
    }
    Outcome::Misses(misses)
}

/// The field of the values that it may not be: `notPaths`. Keys of conditions have none.
fn not(field: &str) -> String {
    let mut letters = field.chars();
    match letters.next() {
        Some(first) if !field.contains('.') => {
            format!("not{}{}", first.to_ascii_uppercase(), letters.as_str())
        }
        _ => field.to_owned(),
    }
}

impl std::fmt::Display for Miss {
    /// `to[0].operation.methods wants GET or POST, and is DELETE`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place, wanted, not_wanted, seen } = self;
        f.write_str(place)?;
        match (wanted.as_slice(), not_wanted.as_slice()) {
            (wanted, []) => write!(f, " wants {}", wanted.join(" or "))?,
            ([], not) => write!(f, " may not be {}", not.join(" or "))?,
            (wanted, not) => {
                write!(f, " wants {}, but not {}", wanted.join(" or "), not.join(" nor "))?;
            }
        }
        write!(f, "; it is {seen}")
    }
}

#[cfg(test)]
mod tests;
