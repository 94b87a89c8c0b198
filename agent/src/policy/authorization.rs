//! All policies of one workload, and the one function that decides.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use super::{
    check::About,
    index::{Place, Rules},
    path::NoPath,
    provider::Providers,
    request::{Connection, Leaning, Request},
    spec::{Action, Policy, Spec, Test},
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
    /// Whether some rule is about paths: what is sent on has to be what was judged.
    asks_path: bool,
}

/// Rules by what becomes of what they match.
#[derive(Debug, Default)]
struct Actions {
    /// By the name of who is to be asked.
    custom: Vec<(Arc<str>, Rules)>,
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
    /// A request that everybody has permitted whom CUSTOM policies want asked about it.
    Permitted(&'a Request<'a, H>),
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
    /// A rule has somebody else asked, who was not, or cannot be.
    Custom,
    /// A policy cannot be read.
    Unreadable,
}

impl Authorization {
    /// Of no policy: one for all workloads, which most of a large mesh have.
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<Authorization>> = LazyLock::new(Arc::default);
        NONE.clone()
    }

    /// Of the policies that select a workload, in the order in which they are asked.
    pub fn new(policies: Vec<Arc<Policy>>) -> Self {
        let numbered = || (0..).zip(&policies).map(|(at, policy)| (at, policy, policy.spec()));
        let rules = |action: Action, dry_run: bool| {
            let asked = numbered()
                .filter(move |(.., spec)| spec.action == action && spec.dry_run == dry_run)
                .filter(|(.., spec)| spec.unreadable.is_none());
            Rules::new(asked.map(|(at, policy, _)| (at, policy)))
        };
        // One on trial has nobody asked, and nobody knows what they would say.
        let custom = |dry_run: bool| {
            let all = || {
                let of_action = numbered().filter(|(.., spec)| spec.action == Action::Custom);
                of_action.filter(|(.., spec)| !spec.dry_run && spec.unreadable.is_none())
            };
            let mut custom: Vec<(Arc<str>, Rules)> = Vec::new();
            for (.., spec) in all().filter(|_| !dry_run) {
                // Without a name it is nobody's, and nobody permits what it matches.
                let provider = spec.provider.clone().unwrap_or_default();
                if custom.iter().all(|(known, _)| *known != provider) {
                    let is_same =
                        |other: &Spec| other.provider.as_deref().unwrap_or_default() == &*provider;
                    let same = all().filter(|(.., spec)| is_same(spec));
                    let rules = Rules::new(same.map(|(at, policy, _)| (at, policy)));
                    custom.push((provider, rules));
                }
            }
            custom
        };
        let actions = |dry_run: bool| Actions {
            custom: custom(dry_run),
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
            // Nobody knows what an authorizer looks at.
            asks_requests: numbered().any(|(.., spec)| spec.action == Action::Custom)
                || tests().any(|test| test.is_of_http() || matches!(test, Test::RemoteIp(_))),
            asks_path: tests().any(|test| matches!(test, Test::Path(_))),
            policies,
        }
    }

    /// The policies, in the order in which they are asked.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// Each of them, in words, and whom it has asked.
    pub fn in_words(&self, providers: &Providers) -> Vec<String> {
        let words = |policy: &Arc<Policy>| {
            let spec = policy.spec();
            let asks = spec.provider.as_deref().filter(|_| spec.unreadable.is_none());
            let Some(name) = asks else { return policy.to_string() };
            match providers.get(name) {
                Some(Ok(it)) => format!("{policy} (asks {name}, {}:{})", it.host, it.port),
                Some(Err(why)) => {
                    format!("{policy} (nothing passes: {name} cannot be obeyed: {why})")
                }
                None => {
                    format!(
                        "{policy} (nothing passes: MeshConfig has no extension provider {name})"
                    )
                }
            }
        };
        self.policies.iter().map(words).collect()
    }

    /// Whether there is none, so that nobody has to ask.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether two requests on one connection may be answered differently.
    pub fn asks_requests(&self) -> bool {
        self.asks_requests
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

    /// How many there are who may have to be asked about a request.
    pub fn authorizers(&self) -> usize {
        self.enforced.custom.len()
    }

    /// Whether the one of that number has to be asked about it: its name, and the rule that says so.
    pub fn asks<H: AnyRequest>(
        &self,
        authorizer: usize,
        connection: &Connection<'_>,
        request: &Request<'_, H>,
    ) -> Option<(&Arc<str>, By<'_>)> {
        let (name, rules) = self.enforced.custom.get(authorizer)?;
        let asks = Asks::Request(request);
        Some((name, self.first(rules, Leaning::ToMatch, connection, &asks)?))
    }

    /// What becomes of it: CUSTOM, then DENY, then ALLOW. What CUSTOM matches is denied unless somebody was
    /// asked before; whether a connection that may yet be HTTP passes is asked with its requests.
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
        if matches!(asks, Asks::Request(_) | Asks::Opaque) {
            let mut custom = actions.custom.iter();
            if let Some(by) = custom.find_map(|(_, rules)| first(rules, Leaning::ToMatch)) {
                return (Verdict::Deny, Some(by), Reason::Custom);
            }
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
            Asks::Request(request) | Asks::Permitted(request) => About::Request(request),
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
                    Reason::Custom => {
                        let name = by.policy.spec().provider.as_deref().unwrap_or_default();
                        write!(
                            f,
                            "{by} has `{name}` asked, an external authorizer, about HTTP alone"
                        )
                    }
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
