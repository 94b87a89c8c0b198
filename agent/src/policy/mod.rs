//! Who may ask what of a workload, by Istio's AuthorizationPolicy.
//!
//! Enters: what policies say ([`Spec`]), and what is known of a connection and of a request on it, by
//! a token too, which [`crate::jwt`] has verified.
//! Leaves: a [`Decision`], of one function, [`Authorization::decide`]. It knows no sockets, no eBPF and
//! no YAML. What policies say is compiled when they are read, and nothing is allocated to decide.
//!
//! Rules that let somebody in are taken at their word, rules that keep somebody out at their meaning:
//! where a request can be read in several ways, those match by any of them.

mod authorization;
mod check;
mod claims;
mod index;
mod path;
mod pattern;
mod provider;
mod request;
mod spec;
mod target;
mod template;
#[cfg(test)]
mod tests;
mod trace;
mod words;

pub use authorization::{Asks, Authorization, By, Decision, Reason, Verdict};
pub use claims::{ClaimPath, Claims, TokenPrincipal};
pub use path::{NoPath, base as normal_path};
pub use pattern::Pattern;
pub use provider::{Names, OverHttp, Provider, Providers, Speaks};
pub use request::{Connection, Request};
pub use spec::{Account, Action, Lists, PathPattern, Policy, Rule, Spec, Test};
pub use template::Template;
pub use trace::{Miss, Outcome, TracedPolicy, TracedRule};
