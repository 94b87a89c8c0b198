//! What policy said about a connection or a request, beyond letting it pass.

use std::sync::Arc;

use super::{semconv as key, wire::Attributes};

/// What policies said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Who keeps it out.
    pub denied: Option<Ruling>,
    /// Who would, were it in force.
    pub dry_run: Option<Ruling>,
    /// Who wants it noted.
    pub audit: Option<Ruling>,
}

/// A policy, and a rule of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// `namespace/name`.
    pub policy: Arc<str>,
    /// Which of its rules, from 0; `None` where none matches.
    pub rule: Option<u32>,
}

impl Judgement {
    pub(super) fn describe(&self, attributes: &mut Attributes<'_>) {
        for (ruling, name, rule) in [
            (&self.denied, key::MESH_POLICY_NAME, key::MESH_POLICY_RULE),
            (&self.dry_run, key::MESH_POLICY_DRY_RUN_NAME, key::MESH_POLICY_DRY_RUN_RULE),
            (&self.audit, key::MESH_POLICY_AUDIT_NAME, key::MESH_POLICY_AUDIT_RULE),
        ] {
            let Some(ruling) = ruling else { continue };
            attributes.text(name, &ruling.policy);
            if let Some(number) = ruling.rule {
                attributes.int(rule, number.into());
            }
        }
    }
}
