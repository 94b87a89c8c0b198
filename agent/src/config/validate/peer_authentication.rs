//! PeerAuthentications that say nothing to anybody.

use std::collections::HashMap;

use super::{authorization::selects_nobody, read::Read, rules::wrong_port};
use crate::config::{error::Problem, yaml::Step};

pub(super) fn check(read: &Read<'_>, warnings: &mut Vec<Problem>) {
    let mut first = HashMap::new();
    for policy in &read.manifests.peer_authentications {
        let key = (policy.namespace().into(), policy.name().into());
        let Some(facts) = read.facts.peer_authentications.get(&key) else { continue };
        let selected = read.selected(policy.namespace(), &facts.selector);
        if selected.is_empty() {
            warnings.extend(selects_nobody(read, policy, &facts.selector));
        }
        let steps = |field: &'static str| [Step::Field("spec"), Step::Field(field)];
        for port in facts.ports.keys() {
            if let Some((what, hint)) = wrong_port(read, &selected, &port.to_string()) {
                let problem = policy.problem(&steps("portLevelMtls"), what);
                warnings.push(match hint {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                });
            }
        }
        if facts.mode.is_none() && facts.ports.values().all(Option::is_none) {
            let problem = policy.problem(&steps("mtls"), "says nothing: no mode is set");
            warnings.push(problem.hint("mtls: {mode: STRICT} refuses plaintext"));
        }
        let scope = (policy.namespace(), &facts.selector);
        match first.get(&scope) {
            None => drop(first.insert(scope, policy)),
            Some(other) => {
                let steps: [Step<'_>; 2] = ["metadata".into(), "name".into()];
                let what = format!(
                    "{} speaks for the same as {}/{}: of the two the older holds, then the first by name",
                    policy.name(),
                    other.namespace(),
                    other.name()
                );
                let place = policy.place(&steps);
                warnings.push(Problem::new(place, what).hint("one of them is enough"));
            }
        }
    }
}
