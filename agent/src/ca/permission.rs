//! Who may have whose certificate.

use super::{caller::Caller, name::NamespacedName, refusal::Refusal};
use crate::mesh::{Principal, TrustDomain};

/// What is left to find out before a caller gets what it asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// Nothing: the identity is the caller's own.
    Own,
    /// Whether a pod of that identity runs on this node, which is the caller's.
    IfOnNode(String),
}

/// The rules: everyone may have their own identity; the agent, and nobody else, may have those
/// of the pods of its node.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) trust_domain: TrustDomain,
    pub(super) agent: NamespacedName,
}

impl Rules {
    /// The identity that `caller` has itself.
    pub(super) fn own(&self, caller: &Caller) -> Result<Principal, Refusal> {
        let NamespacedName { namespace, name } = &caller.account;
        Principal::new(self.trust_domain.clone(), namespace, name)
            .map_err(|error| Refusal::Request(error.to_string()))
    }

    /// Whether `caller` may have a certificate of `asked`.
    pub(super) fn decide(&self, caller: &Caller, asked: &Principal) -> Result<Permission, Refusal> {
        if *asked.trust_domain() != self.trust_domain {
            let (own, asked) = (self.trust_domain.clone(), asked.clone());
            return Err(Refusal::TrustDomain { own, asked });
        }
        if *asked == self.own(caller)? {
            return Ok(Permission::Own);
        }
        if caller.account != self.agent {
            return Err(Refusal::OtherIdentity { caller: caller.clone(), asked: asked.clone() });
        }
        match &caller.node {
            Some(node) => Ok(Permission::IfOnNode(node.clone())),
            None => Err(Refusal::NoNode(caller.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            trust_domain: TrustDomain::default(),
            agent: "sluice-system/sluice-agent".parse().unwrap(),
        }
    }

    fn caller(account: &str, node: Option<&str>) -> Caller {
        Caller {
            account: account.parse().unwrap(),
            pod: "pod-1".into(),
            node: node.map(str::to_owned),
        }
    }

    fn principal(text: &str) -> Principal {
        format!("spiffe://{text}").parse().unwrap()
    }

    #[test]
    fn anyone_may_have_their_own_identity() {
        let order = caller("shop/order", None);
        let own = principal("cluster.local/ns/shop/sa/order");
        assert_eq!(rules().own(&order).unwrap(), own);
        assert_eq!(rules().decide(&order, &own).unwrap(), Permission::Own);
    }

    #[test]
    fn an_ordinary_pod_may_have_no_other_identity_even_of_its_node() {
        let asked = principal("cluster.local/ns/shop/sa/user");
        for other in ["shop/order", "other/sluice-agent", "sluice-system/default"] {
            let refusal = rules().decide(&caller(other, Some("node-a")), &asked).unwrap_err();
            assert!(matches!(refusal, Refusal::OtherIdentity { .. }), "{refusal}");
        }
    }

    #[test]
    fn the_agent_may_have_identities_of_the_node_its_token_names() {
        let asked = principal("cluster.local/ns/shop/sa/user");
        let agent = caller("sluice-system/sluice-agent", Some("node-a"));
        let permission = rules().decide(&agent, &asked).unwrap();
        assert_eq!(permission, Permission::IfOnNode("node-a".into()));
        let nowhere = caller("sluice-system/sluice-agent", None);
        let refusal = rules().decide(&nowhere, &asked).unwrap_err();
        assert!(matches!(refusal, Refusal::NoNode(_)), "{refusal}");
    }

    #[test]
    fn nobody_gets_an_identity_of_another_trust_domain() {
        let agent = caller("sluice-system/sluice-agent", Some("node-a"));
        for asked in ["elsewhere/ns/shop/sa/user", "elsewhere/ns/sluice-system/sa/sluice-agent"] {
            let refusal = rules().decide(&agent, &principal(asked)).unwrap_err();
            assert!(matches!(refusal, Refusal::TrustDomain { .. }), "{refusal}");
        }
    }
}
