//! All policies of one workload, and the one function that decides.

use std::{fmt, sync::Arc};

use super::{
    check::About,
    index::{Place, Rules},
    path::NoPath,
    request::{Connection, Leaning, Request},
    spec::{Action, Policy, Test},
};
use crate::http::AnyRequest;

/// The policies that select a workload, as they are asked.
#[derive(Debug, Default)]
pub struct Authorization {
    policies: Vec<Arc<Policy>>,
    enforced: Actions,
    /// Those of `istio.io/dry-run`.
    dry_run: Actions,
    audit: Rules,
    /// The first that nobody can obey.
    unreadable: Option<u32>,
    asks_requests: bool,
    asks_path: bool,
}

/// Rules by what becomes of what they match.
#[derive(Debug, Default)]
struct Actions {
    custom: Rules,
    deny: Rules,
    allow: Rules,
    /// The first policy that allows something, or nothing: where there is one, what no such rule
    /// matches is denied.
    allowing: Option<u32>,
}

/// What is asked of a workload.
#[derive(Debug)]
pub enum Asks<'a, H> {
    /// A request.
    Request(&'a Request<'a, H>),
    /// A connection of something else than HTTP. Rules that let in what HTTP asks for do not match it;
    /// those that keep that out match by what else they ask for, as Istio has it.
    Opaque,
    /// A connection of which nothing is known yet. It is denied where all that it may be would be.
    Connection,
}

/// What policies say, and which of them.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Who decided; `None` where nobody has anything against it.
    pub by: Option<By<'a>>,
    /// Why.
    pub reason: Reason,
    /// Which rule of an AUDIT policy matches.
    pub audit: Option<By<'a>>,
    /// What the policies of `istio.io/dry-run` would deny, and which.
    pub dry_run: Option<(By<'a>, Reason)>,
}

/// A policy, and a rule of it.
#[derive(Clone, Copy, Debug)]
pub struct By<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Which of its rules, from 0; `None` where none matches.
    pub rule: Option<u32>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}

/// Why it may pass, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No policy says that it may not.
    Unopposed,
    /// A rule lets it in.
    Allowed,
    /// There are rules that let something in, and none matches.
    NothingAllows,
    /// A rule keeps it out.
    Denied,
    /// A rule has somebody else asked, whom nobody can ask yet.
    Custom,
    /// A policy cannot be read.
    Unreadable,
}

impl Authorization {
    /// Of the policies that select a workload, in the order in which they are asked.
    pub fn new(policies: Vec<Arc<Policy>>) -> Self {
        let numbered = || (0..).zip(&policies).map(|(at, policy)| (at, policy, policy.spec()));
        let rules = |action: Action, dry_run: bool| {
            let asked = numbered()
                .filter(move |(.., spec)| spec.action == action && spec.dry_run == dry_run)
                .filter(|(.., spec)| spec.unreadable.is_none());
            Rules::new(asked.map(|(at, policy, _)| (at, policy)))
        };
        let actions = |dry_run: bool| Actions {
            custom: rules(Action::Custom, dry_run),
            deny: rules(Action::Deny, dry_run),
            allow: rules(Action::Allow, dry_run),
            allowing: numbered()
                .find(|(.., spec)| spec.action == Action::Allow && spec.dry_run == dry_run)
                .map(|(at, ..)| at),
        };
        let tests = || {
            let rules = policies.iter().flat_map(|policy| &policy.spec().rules);
            rules.flat_map(|rule| rule.from.iter().chain(&rule.to).flatten().chain(&rule.when))
        };
        Self {
            enforced: actions(false),
            dry_run: actions(true),
            audit: rules(Action::Audit, false),
            unreadable: numbered().find(|(.., spec)| spec.unreadable.is_some()).map(|(at, ..)| at),
            asks_requests: tests()
                .any(|test| test.is_of_http() || matches!(test, Test::RemoteIp(_))),
            asks_path: tests().any(|test| matches!(test, Test::Path(_))),
            policies,
        }
    }

    /// The policies, in the order in which they are asked.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// Each of them, in words.
    pub fn in_words(&self) -> Vec<String> {
        self.policies.iter().map(ToString::to_string).collect()
    }

    /// Whether there is none, so that nobody has to ask.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether two requests on one connection may be answered differently.
    pub fn asks_requests(&self) -> bool {
        self.asks_requests
    }

    /// Whether some rule is about paths: what is sent on has to be what was judged.
    pub fn asks_path(&self) -> bool {
        self.asks_path
    }

    /// A request as its rules look at it.
    ///
    /// # Errors
    /// Where it has none of the forms that they could judge.
    pub fn reading<'h, H: AnyRequest>(&self, head: &'h H) -> Result<Request<'h, H>, NoPath> {
        match (self.asks_requests, self.asks_path) {
            (false, _) => Ok(Request::unread(head)),
            (true, false) => Request::without_path(head),
            (true, true) => Request::new(head),
        }
    }

    /// What becomes of it: CUSTOM, then DENY, then ALLOW.
    pub fn decide<H: AnyRequest>(
        &self,
        connection: &Connection<'_>,
        asks: &Asks<'_, H>,
    ) -> Decision<'_> {
        let (verdict, by, reason) = match self.unreadable {
            Some(policy) => (Verdict::Deny, Some(self.by(policy, None)), Reason::Unreadable),
            None => self.judge(&self.enforced, connection, asks),
        };
        let audit = match asks {
            // Once, when it is known what it is.
            Asks::Connection => None,
            _ => self.first(&self.audit, Leaning::ToMatch, connection, asks),
        };
        let dry_run = match asks {
            Asks::Connection => None,
            _ => self.rehearse(connection, asks),
        };
        Decision { verdict, by, reason, audit, dry_run }
    }

    fn judge<H: AnyRequest>(
        &self,
        actions: &Actions,
        connection: &Connection<'_>,
        asks: &Asks<'_, H>,
    ) -> (Verdict, Option<By<'_>>, Reason) {
        let first = |rules, leaning| self.first(rules, leaning, connection, asks);
        if let Some(by) = first(&actions.custom, Leaning::ToMatch) {
            return (Verdict::Deny, Some(by), Reason::Custom);
        }
        if let Some(by) = first(&actions.deny, Leaning::ToMatch) {
            return (Verdict::Deny, Some(by), Reason::Denied);
        }
        let Some(allowing) = actions.allowing else {
            return (Verdict::Allow, None, Reason::Unopposed);
        };
        match first(&actions.allow, Leaning::NotToMatch) {
            Some(by) => (Verdict::Allow, Some(by), Reason::Allowed),
            None => (Verdict::Deny, Some(self.by(allowing, None)), Reason::NothingAllows),
        }
    }

    /// What policies on trial would deny, were they in force beside the others.
    fn rehearse<H: AnyRequest>(
        &self,
        connection: &Connection<'_>,
        asks: &Asks<'_, H>,
    ) -> Option<(By<'_>, Reason)> {
        match self.judge(&self.dry_run, connection, asks) {
            (Verdict::Deny, Some(by), Reason::NothingAllows) => {
                let allow = &self.enforced.allow;
                let allowed = self.first(allow, Leaning::NotToMatch, connection, asks);
                allowed.is_none().then_some((by, Reason::NothingAllows))
            }
            (Verdict::Deny, Some(by), reason) => Some((by, reason)),
            _ => None,
        }
    }

    fn first<H: AnyRequest>(
        &self,
        rules: &Rules,
        leaning: Leaning,
        connection: &Connection<'_>,
        asks: &Asks<'_, H>,
    ) -> Option<By<'_>> {
        if rules.is_empty() {
            return None;
        }
        let about = asks.about(leaning);
        let Place { policy, rule } = rules.first(&self.policies, connection, &about, leaning)?;
        Some(self.by(policy, Some(rule)))
    }

    fn by(&self, policy: u32, rule: Option<u32>) -> By<'_> {
        By { policy: &self.policies[policy as usize], rule }
    }
}

impl<H> Asks<'_, H> {
    /// What is known of it, to a rule of that leaning.
    pub(super) fn about(&self, leaning: Leaning) -> About<'_, H> {
        let keeps_out = leaning == Leaning::ToMatch;
        match self {
            Asks::Request(request) => About::Request(request),
            Asks::Opaque => About::Nothing { passes: keeps_out, may_be_http: false },
            // What it may ask for may be what lets it in, and not what keeps it out.
            Asks::Connection => About::Nothing { passes: !keeps_out, may_be_http: true },
        }
    }
}

impl PartialEq for Authorization {
    /// What is compiled follows from the policies.
    fn eq(&self, other: &Self) -> bool {
        self.policies == other.policies
    }
}

impl Eq for Authorization {}

impl By<'_> {
    /// `namespace/name` of the policy.
    pub fn name(&self) -> &Arc<str> {
        self.policy.name()
    }
}

impl fmt::Display for By<'_> {
    /// `rule 0 of DENY AuthorizationPolicy shop/order`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rule) = self.rule {
            write!(f, "rule {rule} of ")?;
        }
        let action = self.policy.spec().action.as_str();
        write!(f, "{action} AuthorizationPolicy {}", self.policy.name())
    }
}

impl Reason {
    /// Says of `by` what it comes to.
    pub fn of<'a>(self, by: &'a By<'a>) -> impl fmt::Display + 'a {
        struct Said<'a>(Reason, &'a By<'a>);
        impl fmt::Display for Said<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self(reason, by) = self;
                match reason {
                    Reason::Unopposed | Reason::Allowed => write!(f, "allowed by {by}"),
                    Reason::NothingAllows => {
                        write!(f, "no rule of ALLOW policies matches, such as {}", by.name())
                    }
                    Reason::Denied => write!(f, "denied by {by}"),
                    Reason::Custom => write!(
                        f,
                        "{by} has an external authorizer asked, which this version cannot do, so \
                         that nothing passes that it matches"
                    ),
                    Reason::Unreadable => {
                        let why = by.policy.spec().unreadable.as_deref().unwrap_or_default();
                        let name = by.name();
                        write!(
                            f,
                            "AuthorizationPolicy {name} cannot be read, so that nothing passes that \
                             it may be about: {why}"
                        )
                    }
                }
            }
        }
        Said(self, by)
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Some(by) => self.reason.of(by).fmt(f),
            None => f.write_str("no policy is against it"),
        }
    }
}
