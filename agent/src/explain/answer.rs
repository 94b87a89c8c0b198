//! What is answered, and how it reads.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::{self, TracedPolicy, TracedRule};

/// What becomes of what a client sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// What was taken for granted.
    pub notes: Vec<String>,
    /// Who asks.
    pub source: String,
    /// What is dialled.
    pub destination: String,
    /// The Service behind that, as `namespace/name`.
    pub service: Option<String>,
    /// Why nobody takes it.
    pub nowhere: Option<String>,
    /// By where it may get to.
    pub judgements: Vec<Judgement>,
}

/// What becomes of it at one endpoint, or at several that are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Pods and addresses.
    pub endpoints: Vec<String>,
    /// Who the server is to its peers.
    pub server: Option<String>,
    /// How it gets there, and who proves to be whom.
    pub way: String,
    /// The mode of mutual TLS, and who says so.
    pub mutual_tls: Option<String>,
    /// What policies are asked about; `None` where none are.
    pub asked: Option<String>,
    /// The path that is judged and sent on, where that is not the one that came.
    pub path: Option<String>,
    /// What its JWT is taken for, where there is one or where somebody looks for one.
    pub token: Option<String>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Why.
    pub why: String,
    /// What the client sees where it is refused.
    pub client_sees: Option<String>,
    /// The policy that decides, as `namespace/name`.
    pub policy: Option<String>,
    /// Which of its rules, from 0.
    pub rule: Option<u32>,
    /// The rule of an AUDIT policy that matches.
    pub audit: Option<String>,
    /// What policies on trial would do.
    pub dry_run: Option<String>,
    /// Every policy of the server, in the order asked, with what came of its rules.
    pub policies: Vec<TracedPolicy>,
    /// What else there is to know.
    pub warnings: Vec<String>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It passes.
    Allowed,
    /// It does not.
    Refused,
    /// It is not known here.
    #[default]
    Unknown,
}

impl Judgement {
    /// Whether it is the same at other endpoints.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        Self { endpoints: Vec::new(), ..self.clone() }
            == Self { endpoints: Vec::new(), ..other.clone() }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { notes, source, destination, service, nowhere, judgements } = self;
        for note in notes {
            writeln!(f, "note: {note}")?;
        }
        writeln!(f, "from {source}")?;
        write!(f, "to   {destination}")?;
        match service.as_ref().filter(|service| !destination.contains(service.as_str())) {
            Some(service) => writeln!(f, ", of Service {service}")?,
            None => writeln!(f)?,
        }
        if let Some(why) = nowhere {
            writeln!(f, "\nfails: {why}")?;
        }
        judgements.iter().try_for_each(|judgement| write!(f, "\n{judgement}"))
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "at {}", self.endpoints.join(", "))?;
        writeln!(f, "  way:        {}", self.way)?;
        let lines = [
            ("mutual TLS:", &self.mutual_tls),
            ("asked:", &self.asked),
            ("judged as:", &self.path),
            ("token:", &self.token),
        ];
        for (word, text) in lines {
            if let Some(text) = text {
                writeln!(f, "  {word:<11} {text}")?;
            }
        }
        for policy in &self.policies {
            write_policy(f, policy)?;
        }
        let is_judged = self.asked.is_some() && self.outcome != Outcome::Refused;
        if is_judged && self.policies.is_empty() {
            writeln!(f, "  no AuthorizationPolicy is for it")?;
        }
        for (word, text) in [("audit:", &self.audit), ("on trial:", &self.dry_run)] {
            if let Some(text) = text {
                writeln!(f, "  {word:<11} {text}")?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        // What policies say begins with it.
        let why = self.why.strip_prefix("allowed ").unwrap_or(&self.why);
        write!(f, "  {}: {why}", self.outcome)?;
        match &self.client_sees {
            Some(sees) => writeln!(f, " (the client sees {sees})"),
            None => writeln!(f),
        }
    }
}

fn write_policy(f: &mut fmt::Formatter<'_>, policy: &TracedPolicy) -> fmt::Result {
    let TracedPolicy { name, action, dry_run, unreadable, rules } = policy;
    let trial = if *dry_run { " (dry run)" } else { "" };
    if let Some(why) = unreadable {
        return writeln!(f, "  {name} cannot be read, so that nothing passes: {why}");
    }
    writeln!(f, "  {action} {name}{trial}")?;
    if rules.is_empty() {
        writeln!(f, "    has no rules, so that none matches")?;
    }
    for (at, TracedRule { asks, outcome }) in rules.iter().enumerate() {
        match outcome {
            policy::Outcome::Matches => writeln!(f, "    rule {at} matches: {asks}")?,
            policy::Outcome::PassedOver => {
                writeln!(
                    f,
                    "    rule {at} is passed over: it asks for what only HTTP has: {asks}"
                )?;
            }
            policy::Outcome::Misses(misses) => {
                writeln!(f, "    rule {at} does not match: {asks}")?;
                misses.iter().try_for_each(|miss| writeln!(f, "      {miss}"))?;
            }
        }
    }
    Ok(())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Unknown => "not known",
        })
    }
}
