//! What is in force for pods.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Unclear, View,
    parties::{USUAL_NAMESPACE, pods, there},
};
use crate::mesh::Workload;

/// Pods with what is in force for them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// What was taken for granted.
    pub notes: Vec<String>,
    /// By namespace and name.
    pub pods: Vec<PodPolicies>,
}

/// What is in force for a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodPolicies {
    /// `namespace/name`.
    pub name: String,
    /// Its node; empty where that is not known.
    pub node: String,
    /// Who it is to its peers.
    pub principal: String,
    /// Whether that is known here.
    pub is_known: bool,
    /// Why nothing is in force, or not known here.
    pub nothing: Option<String>,
    /// The modes of mutual TLS, and who says so.
    pub mutual_tls: String,
    /// The RequestAuthentications, which are asked first.
    pub request_authentications: Vec<String>,
    /// In the order asked.
    pub policies: Vec<PolicyInForce>,
}

/// A policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyInForce {
    /// `namespace/name`.
    pub name: String,
    /// `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`.
    pub action: String,
    /// Whom it has asked, of CUSTOM.
    pub provider: Option<String>,
    /// It is only told what it would do.
    pub dry_run: bool,
    /// Why it cannot be read, so that nothing passes.
    pub unreadable: Option<String>,
    /// What its rules ask for.
    pub rules: Vec<String>,
}

/// Whose policies are meant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Meant {
    /// `namespace/pod`, or the name of what made pods; everybody's where it is `None`.
    pub pod: Option<String>,
}

/// Lists what is in force for pods, each as its own node sees it. Of all pods, those that are known here.
///
/// # Errors
/// Where there is no such pod.
pub fn list(view: &View<'_>, meant: &Meant) -> Result<Listing, Unclear> {
    let mut pods: Vec<_> = match &meant.pod {
        None => {
            let all = view.snapshot.workloads().map(|pod| in_force(view, pod));
            all.filter(|pod| pod.is_known).collect()
        }
        Some(text) => {
            let (namespace, name) = text.split_once('/').unwrap_or((USUAL_NAMESPACE, text));
            pods(view.snapshot, namespace, name).map(|pod| in_force(view, pod)).collect()
        }
    };
    if let (Some(text), true) = (&meant.pod, pods.is_empty()) {
        let namespace = text.split_once('/').map_or(USUAL_NAMESPACE, |(namespace, _)| namespace);
        let hint = there(view.snapshot, namespace);
        return Err(Unclear(format!("there is no pod {text} (hint: namespace/pod{hint})")));
    }
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Listing { notes: view.notes.to_vec(), pods })
}

fn in_force(view: &View<'_>, pod: &Workload) -> PodPolicies {
    let seen = (view.of_node)(&pod.node);
    let newest = seen.as_ref().and_then(|snapshot| snapshot.pod(&pod.uid));
    let is_known = newest.is_some();
    let pod = newest.map_or(pod, |newest| newest);
    let policies = pod.authorization.in_order().into_iter().map(|policy| {
        let spec = policy.spec();
        PolicyInForce {
            name: policy.name().to_string(),
            action: spec.action.as_str().to_owned(),
            provider: spec.provider.as_deref().map(str::to_owned),
            dry_run: spec.dry_run,
            unreadable: spec.unreadable.as_deref().map(str::to_owned),
            rules: spec.rules.iter().map(|rule| rule.in_words()).collect(),
        }
    });
    PodPolicies {
        name: format!("{}/{}", pod.namespace, pod.name),
        node: pod.node.to_string(),
        principal: pod.principal.to_string(),
        is_known,
        nothing: match (pod.meshed, is_known) {
            (false, _) => Some("it is not in the mesh".to_owned()),
            (true, false) => Some(format!("its node's agent knows: that of {}", pod.node)),
            (true, true) => None,
        },
        mutual_tls: pod.mtls.to_string(),
        request_authentications: pod.authentication.in_words(),
        policies: policies.collect(),
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { notes, pods } = self;
        notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        pods.iter().try_for_each(|pod| pod.fmt(f))
    }
}

impl fmt::Display for PodPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, node, principal, is_known: _, nothing, .. } = self;
        let Self { mutual_tls, request_authentications, policies, .. } = self;
        write!(f, "{name}, {principal}")?;
        match node.as_str() {
            "" => writeln!(f)?,
            node => writeln!(f, ", on {node}")?,
        }
        if let Some(why) = nothing {
            return writeln!(f, "  nothing: {why}");
        }
        writeln!(f, "  mutual TLS {mutual_tls}")?;
        for authentication in request_authentications {
            writeln!(f, "  RequestAuthentication {authentication}")?;
        }
        if policies.is_empty() {
            writeln!(f, "  no AuthorizationPolicy: everybody may come in")?;
        }
        for PolicyInForce { name, action, provider, dry_run, unreadable, rules } in policies {
            if let Some(why) = unreadable {
                writeln!(f, "  {name} cannot be read, so that nothing passes: {why}")?;
                continue;
            }
            write!(f, "  {action} {name}{}", if *dry_run { " (dry run)" } else { "" })?;
            match provider {
                Some(provider) => writeln!(f, ", by {provider}")?,
                None => writeln!(f)?,
            }
            if rules.is_empty() {
                writeln!(f, "    no rules, so that none matches")?;
            }
            for (at, rule) in rules.iter().enumerate() {
                writeln!(f, "    rule {at}: {rule}")?;
            }
        }
        Ok(())
    }
}
