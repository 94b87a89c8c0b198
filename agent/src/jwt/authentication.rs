//! All RequestAuthentications of one workload, and what they make of a request.

mod unverified;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, LazyLock},
};

use http::HeaderName;
use serde_json::{Map, Value};

use super::{
    Fault, KeySet, RemoteSource, RequestAuthentication, Rule,
    locations::{Found, Place},
    outputs,
    spec::{Keys, Provider},
    token::Token,
};
use crate::{http::AnyRequest, policy::Claims};

/// Claims that are lists with spaces between, whatever rules say, as Istio has it.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// As many tokens are verified for one rule: each takes its time.
const MOST_TOKENS: usize = 16;

/// The RequestAuthentications that select a workload.
#[derive(Debug, Default)]
pub struct Authentication {
    all: Vec<Arc<RequestAuthentication>>,
    /// Their rules by issuer, as Istio has Envoy ask them.
    order: Vec<RuleOf>,
    /// The fields that rules write, which no client may.
    outputs: Vec<HeaderName>,
    /// The first that nobody can obey.
    unreadable: Option<u32>,
}

/// One rule of one RequestAuthentication.
#[derive(Clone, Copy, Debug)]
struct RuleOf {
    of: u32,
    rule: u32,
}

/// Who has the keys of issuers that are elsewhere.
pub trait RemoteKeys: Sync {
    /// Those that are known.
    fn known(&self, source: &RemoteSource) -> Option<Arc<KeySet>>;

    /// Others than `known`, where there are some or may be: they are waited for, as long as their server
    /// may take.
    fn newer(
        &self,
        source: &RemoteSource,
        known: Option<&Arc<KeySet>>,
    ) -> impl Future<Output = Option<Arc<KeySet>>> + Send;
}

/// Why a request may not pass.
#[derive(Debug)]
pub enum Refused<'a> {
    /// A token of it is not good, by a rule; counted from 0.
    Fault(Fault, &'a RequestAuthentication, u32),
    /// Nobody knows which tokens are good.
    Unreadable(&'a RequestAuthentication),
}

/// A token that a rule accepts.
struct Accepted {
    text: String,
    place: Place,
    payload: String,
    claims: Map<String, Value>,
}

/// What a rule makes of the tokens in its places.
enum Outcome {
    /// There is none.
    None,
    /// All are good.
    Good(Vec<Accepted>),
    /// These are not, the one that Envoy finds first before others. None is left out: what is no good here may
    /// be good for another rule, and says nothing about the others.
    Bad(Vec<(Fault, String)>),
}

impl Authentication {
    /// Of none: one for all workloads, which most of a large mesh have.
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<Authentication>> = LazyLock::new(Arc::default);
        NONE.clone()
    }

    /// Of those that select a workload.
    pub fn new(all: Vec<Arc<RequestAuthentication>>) -> Self {
        let mut order = Vec::new();
        let mut outputs = HashSet::new();
        for (of, one) in (0..).zip(&all) {
            order.extend((0..one.providers.len() as u32).map(|rule| RuleOf { of, rule }));
            outputs.extend(one.providers.iter().flat_map(Provider::outputs).cloned());
        }
        let numbered = (0..).zip(&all);
        let unreadable = numbered.filter(|(_, one)| one.spec().unreadable.is_some());
        let unreadable = { unreadable }.map(|(of, _)| of).next();
        let outputs = outputs.into_iter().collect();
        let mut authentication = Self { all, order: Vec::new(), outputs, unreadable };
        order.sort_by_key(|place| authentication.rule(*place).issuer.clone());
        authentication.order = order;
        authentication
    }

    /// Whether there is none, so that nobody has to ask.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The RequestAuthentications.
    pub fn all(&self) -> &[Arc<RequestAuthentication>] {
        &self.all
    }

    /// Each of them, in words.
    pub fn in_words(&self) -> Vec<String> {
        self.all.iter().map(ToString::to_string).collect()
    }

    /// What the token of `request` claims at `now`, in seconds of Unix time; `None` without one. The
    /// request is then as the application is to see it: its tokens are gone unless they are to be there,
    /// and fields that tell of tokens are ours.
    ///
    /// # Errors
    /// Where it has a token that is not good.
    pub async fn authenticate<H: AnyRequest + Send>(
        &self,
        request: &mut H,
        remote: &impl RemoteKeys,
        now: u64,
    ) -> Result<Option<Claims>, Refused<'_>> {
        if let Some(of) = self.unreadable {
            return Err(Refused::Unreadable(&self.all[of as usize]));
        }
        for name in &self.outputs {
            request.remove(name.as_str());
        }
        if is_preflight(request) {
            return Ok(None);
        }
        let mut outcomes = Vec::with_capacity(self.order.len());
        for place in &self.order {
            let found = self.provider(*place).locations.find(&*request);
            outcomes.push(self.outcome(*place, found, remote, now).await);
        }
        if let Some((fault, RuleOf { of, rule })) = self.fault(&outcomes) {
            return Err(Refused::Fault(fault, &self.all[of as usize], rule));
        }
        let mut claims = None;
        for (place, outcome) in self.order.iter().zip(outcomes) {
            let Outcome::Good(accepted) = outcome else { continue };
            let (rule, provider) = (self.rule(*place), self.provider(*place));
            for mut one in accepted {
                outputs::add(request, provider, &one.payload, &one.claims);
                if !rule.forward {
                    one.place.clear(request);
                }
                let names = rule.space_delimited.iter().map(|name| &**name);
                outputs::split_lists(&mut one.claims, SPACE_DELIMITED.into_iter().chain(names));
                claims.get_or_insert(one.claims);
            }
        }
        Ok(claims.map(Claims::new))
    }

    async fn outcome(
        &self,
        place: RuleOf,
        found: Vec<Found>,
        remote: &impl RemoteKeys,
        now: u64,
    ) -> Outcome {
        if found.len() > MOST_TOKENS {
            return Outcome::Bad(vec![(Fault::TooMany, String::new())]);
        }
        let (mut accepted, mut faults) = (Vec::new(), Vec::new());
        for Found { text, place: at } in found.into_iter().rev() {
            match self.verify(place, &text, remote, now).await {
                Ok((payload, claims)) => {
                    accepted.push(Accepted { text, place: at, payload, claims });
                }
                Err(fault) => faults.push((fault, text)),
            }
        }
        accepted.reverse();
        match (faults.is_empty(), accepted.is_empty()) {
            (false, _) => Outcome::Bad(faults),
            (true, false) => Outcome::Good(accepted),
            (true, true) => Outcome::None,
        }
    }

    /// In the order in which Envoy looks at it, so that it finds the same fault.
    async fn verify(
        &self,
        place: RuleOf,
        text: &str,
        remote: &impl RemoteKeys,
        now: u64,
    ) -> Result<(String, Map<String, Value>), Fault> {
        let token = self.fits(place, text, now)?;
        match &self.provider(place).keys {
            Keys::Inline(set) => set.verify(&token)?,
            Keys::None => return Err(Fault::VerificationFails),
            Keys::Remote(source) => {
                let known = remote.known(source);
                let verified = known.as_ref().map(|set| set.verify(&token));
                // The issuer may have another key by now.
                if let None | Some(Err(Fault::NoSuchKey)) = verified {
                    let newer = remote.newer(source, known.as_ref()).await;
                    let set = newer.or(known).ok_or(Fault::KeysMissing)?;
                    set.verify(&token)?;
                } else if let Some(Err(fault)) = verified {
                    return Err(fault);
                }
            }
        }
        Ok((token.payload.to_owned(), token.claims))
    }

    /// The token, where it is one that a rule is about, whoever has signed it.
    fn fits<'t>(&self, place: RuleOf, text: &'t str, now: u64) -> Result<Token<'t>, Fault> {
        let (rule, provider) = (self.rule(place), self.provider(place));
        let token = Token::parse(text)?;
        if !rule.issuer.is_empty() && *rule.issuer != *token.issuer() {
            return Err(Fault::UnknownIssuer);
        }
        token.check_time(now)?;
        if !provider.is_for(token.audiences()) {
            return Err(Fault::AudienceNotAllowed);
        }
        Ok(token)
    }

    /// What is wrong with the request as a whole, by which rule. A token has to be good for one of the
    /// rules that look where it is. Of several faults it is the one that Envoy tells.
    fn fault(&self, outcomes: &[Outcome]) -> Option<(Fault, RuleOf)> {
        let is_accepted = |text: &String| {
            outcomes.iter().any(|outcome| match outcome {
                Outcome::Good(accepted) => accepted.iter().any(|one| one.text == *text),
                Outcome::None | Outcome::Bad(..) => false,
            })
        };
        let outcomes_of = || self.order.iter().copied().zip(outcomes);
        let faults = || {
            outcomes_of().filter_map(|(place, outcome)| {
                let Outcome::Bad(faults) = outcome else { return None };
                let required = self.rule(place).required;
                let mut faults = faults.iter().filter(|(_, text)| required || !is_accepted(text));
                faults.next().map(|(fault, _)| (*fault, place))
            })
        };
        let of_token = faults().next().map(|first| match first.0.is_of_another() {
            false => first,
            true => faults().rfind(|(fault, _)| !fault.is_of_another()).unwrap_or(first),
        });
        of_token.or_else(|| {
            let mut missing = outcomes_of().filter(|(place, outcome)| {
                self.rule(*place).required && matches!(outcome, Outcome::None)
            });
            missing.next().map(|(place, _)| (Fault::Missing, place))
        })
    }

    fn rule(&self, RuleOf { of, rule }: RuleOf) -> &Rule {
        &self.all[of as usize].spec().rules[rule as usize]
    }

    fn provider(&self, RuleOf { of, rule }: RuleOf) -> &Provider {
        &self.all[of as usize].providers[rule as usize]
    }
}

/// Whether a browser asks if it may ask: that has no token, ever.
fn is_preflight<H: AnyRequest>(request: &H) -> bool {
    let has = |name| request.value_of(name).is_some_and(|value| !value.is_empty());
    request.method() == b"OPTIONS" && has("origin") && has("access-control-request-method")
}

impl PartialEq for Authentication {
    /// What is compiled follows from the rest.
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Eq for Authentication {}

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault, by, rule) => {
                write!(f, "{fault}, by rule {rule} of RequestAuthentication {}", by.name())
            }
            Self::Unreadable(by) => {
                let why = by.spec().unreadable.as_deref().unwrap_or_default();
                let name = by.name();
                write!(
                    f,
                    "RequestAuthentication {name} cannot be read, so that no request passes whose \
                     token it may be about: {why}"
                )
            }
        }
    }
}
