//! What a token would be taken for, were its signature good: for whoever only asks.

use super::{Authentication, Fault, Map, Refused, RuleOf, SPACE_DELIMITED, Value, outputs};
use crate::policy::Claims;

impl Authentication {
    /// What `token` claims at `now`, by the rule about its issuer, wherever in a request it is and whoever
    /// has signed it; `None` without one.
    ///
    /// # Errors
    /// Where a request with it is refused, whatever its signature.
    pub fn unverified(&self, token: Option<&str>, now: u64) -> Result<Option<Claims>, Refused<'_>> {
        if let Some(of) = self.unreadable {
            return Err(Refused::Unreadable(&self.all[of as usize]));
        }
        let refused = |fault, RuleOf { of, rule }: RuleOf| {
            Refused::Fault(fault, &self.all[of as usize], rule)
        };
        let mut accepted: Option<Map<String, Value>> = None;
        let mut first = None;
        for place in self.order.iter().copied() {
            let fault = match token.map(|text| self.fits(place, text, now)) {
                Some(Ok(token)) => {
                    let names = self.rule(place).space_delimited.iter().map(|name| &**name);
                    let mut claims = token.claims;
                    outputs::split_lists(&mut claims, SPACE_DELIMITED.into_iter().chain(names));
                    accepted.get_or_insert(claims);
                    continue;
                }
                Some(Err(fault)) => fault,
                None if self.rule(place).required => return Err(refused(Fault::Missing, place)),
                None => continue,
            };
            match first {
                // What the rule about its issuer says is more to the point.
                Some((known, _)) if Fault::is_of_another(known) && !fault.is_of_another() => {
                    first = Some((fault, place));
                }
                None => first = Some((fault, place)),
                Some(_) => {}
            }
            if self.rule(place).required {
                return Err(refused(fault, place));
            }
        }
        match (accepted, first) {
            (None, Some((fault, place))) => Err(refused(fault, place)),
            (accepted, _) => Ok(accepted.map(Claims::new)),
        }
    }
}
