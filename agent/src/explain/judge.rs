//! What becomes of it at one endpoint.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::request::Parts;

use super::{
    Ask, Judgement, Outcome, Unclear, View,
    parties::{Dialled, Source},
};
use crate::{
    http::AnyRequest,
    jwt::Refused,
    mesh::{AppProtocol, Endpoint, MutualTlsMode, Principal, Snapshot, Workload},
    policy::{Asks, Authorization, Claims, Connection, Reason, Verdict},
};

/// What is judged.
pub(super) struct Judge<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) source: &'a Source,
    pub(super) dialled: &'a Dialled,
    pub(super) ask: Option<&'a Ask>,
}

/// How a client gets to a server.
struct Way {
    words: String,
    /// Whom the server takes the client for.
    client: Option<Principal>,
}

impl Judge<'_> {
    pub(super) fn judge(&self, endpoint: &Endpoint) -> Result<Judgement, Unclear> {
        let Endpoint { address, workload } = endpoint;
        let Some(pod) = workload else {
            return Ok(Judgement {
                endpoints: vec![address.to_string()],
                way: "plaintext: the mesh knows nobody there".to_owned(),
                outcome: Outcome::Allowed,
                why: "nobody judges what is sent there".to_owned(),
                ..Judgement::default()
            });
        };
        let seen = (self.view.of_node)(&pod.node);
        let newest = seen.as_ref().and_then(|snapshot| snapshot.pod(&pod.uid));
        let pod = newest.unwrap_or(pod);
        let way = self.way(pod, address.port());
        let judgement = Judgement {
            endpoints: vec![format!("{}/{} {address}", pod.namespace, pod.name)],
            server: pod.meshed.then(|| pod.principal.to_string()),
            way: way.words.clone(),
            mutual_tls: pod.meshed.then(|| pod.mtls.on(address.port()).to_string()),
            warnings: pod.cut_by_policy().into_iter().collect(),
            ..Judgement::default()
        };
        if !pod.meshed {
            let why = "it is not in the mesh: nobody judges what is sent to it".to_owned();
            return Ok(Judgement { outcome: Outcome::Allowed, why, ..judgement });
        }
        let rule = pod.mtls.on(address.port());
        if way.client.is_none() && rule.mode.refuses_plaintext() {
            return Ok(Judgement {
                outcome: Outcome::Refused,
                why: format!("plaintext is refused: mutual TLS is {rule}"),
                client_sees: Some(RESET.to_owned()),
                ..judgement
            });
        }
        if !pod.captured {
            let why = "it is not captured yet: nobody judges what is sent to it".to_owned();
            return Ok(Judgement { outcome: Outcome::Allowed, why, ..judgement });
        }
        let Some(snapshot) = &seen else {
            return Ok(Judgement {
                outcome: Outcome::Unknown,
                why: format!(
                    "policies are known to the agent of its node alone (hint: ask that of node {})",
                    pod.node
                ),
                ..judgement
            });
        };
        let connection = Connection {
            principal: way.client.as_ref(),
            source: self.source.ip,
            destination: *address,
        };
        self.authorize(judgement, snapshot, pod, &connection)
    }

    /// How the mesh gets there, as `proxy` chooses it.
    fn way(&self, pod: &Workload, port: u16) -> Way {
        let plaintext = |why: &str| Way { words: format!("plaintext: {why}"), client: None };
        let Some(client) = &self.source.principal else {
            return plaintext("the client is not in the mesh");
        };
        let proven = |how: &str| Way {
            words: format!("{how}: the server proves to be {}, the client {client}", pod.principal),
            client: Some(client.clone()),
        };
        if !pod.meshed {
            return plaintext("the server is not in the mesh");
        }
        if let Some(own) = &self.source.pod
            && self.is_handed_over(own, pod)
        {
            return Way {
                words: format!("handed over within node {}, as {client}", pod.node),
                client: Some(client.clone()),
            };
        }
        let mode = pod.mtls.on(port).mode;
        match mode.is_dialled_in_plaintext(pod.captured) {
            true if mode == MutualTlsMode::Disable => plaintext("mutual TLS is disabled there"),
            true => plaintext("the server is not captured yet"),
            false => proven("mutual TLS"),
        }
    }

    /// Whether two pods of one node are without a tunnel between them, where `--same-node` is not said.
    fn is_handed_over(&self, client: &Workload, server: &Workload) -> bool {
        let same = !client.node.is_empty() && client.node == server.node && server.captured;
        let policed = client.policed.is_some() || server.policed.is_some();
        same && !policed && !self.view.snapshot.cni_policies
    }

    fn authorize(
        &self,
        judgement: Judgement,
        snapshot: &Snapshot,
        pod: &Arc<Workload>,
        connection: &Connection<'_>,
    ) -> Result<Judgement, Unclear> {
        let authorization = &*pod.authorization;
        let spoken = snapshot.spoken_at(connection.destination);
        let usual = Ask::default();
        let ask = match (spoken, self.ask) {
            (AppProtocol::Opaque, _) => None,
            (AppProtocol::Http | AppProtocol::Http2, ask) => Some(ask.unwrap_or(&usual)),
            (AppProtocol::Unknown, ask) => ask,
        };
        let mut judgement = judgement;
        if spoken == AppProtocol::Opaque && self.ask.is_some() {
            let warning = "the port is declared as something else than HTTP: nobody looks for a request \
                           in it";
            judgement.warnings.push(warning.to_owned());
        }
        let (asked, asks) = match (spoken, ask) {
            (AppProtocol::Opaque, _) => {
                ("a connection of something else than HTTP", Asks::<Parts>::Opaque)
            }
            _ => ("a connection, before it is known what it speaks", Asks::Connection),
        };
        // What is declared as HTTP is asked about request by request.
        let asks_connection = !matches!(spoken, AppProtocol::Http | AppProtocol::Http2);
        if asks_connection {
            judgement.asked = Some(asked.to_owned());
            note(&mut judgement, authorization, connection, &asks);
            if judgement.outcome == Outcome::Refused || ask.is_none() {
                judgement.client_sees = refused(&judgement, RESET);
                return Ok(judgement);
            }
        }
        let Some(ask) = ask else { return Ok(judgement) };
        let host = ask.host.as_deref().unwrap_or(&self.dialled.host);
        judgement.asked = Some(format!("{} {}, host {host}", ask.method(), ask.path()));
        let head = ask.head(&self.dialled.host)?;
        match authenticate(&mut judgement, pod, ask) {
            Some(claims) => {
                self.request(&mut judgement, authorization, connection, &head, claims.as_ref());
            }
            None => judgement.outcome = Outcome::Refused,
        }
        Ok(judgement)
    }

    fn request(
        &self,
        judgement: &mut Judgement,
        authorization: &Authorization,
        connection: &Connection<'_>,
        head: &impl AnyRequest,
        claims: Option<&Claims>,
    ) {
        // What comes behind it is not looked into.
        if authorization.asks_requests()
            && head.method() == b"CONNECT"
            && head.target().path.is_empty()
        {
            note(judgement, authorization, connection, &Asks::<Parts>::Opaque);
            if judgement.outcome == Outcome::Refused {
                judgement.client_sees = Some(FORBIDDEN.to_owned());
                return;
            }
        }
        match authorization.reading(head) {
            Ok(request) => {
                let request = request.with_claims(claims);
                if let Some(path) = request.rewritten() {
                    let path = String::from_utf8_lossy(path);
                    judgement.path = Some(path.into_owned());
                }
                let reason = note(judgement, authorization, connection, &Asks::Request(&request));
                if reason == Reason::Custom {
                    let asks = judgement.why.clone();
                    note(judgement, authorization, connection, &Asks::Permitted(&request));
                    // Nobody is asked for the sake of an explanation.
                    if judgement.outcome == Outcome::Allowed {
                        judgement.outcome = Outcome::Unknown;
                    }
                    judgement.why = format!("{asks}; where that permits it: {}", judgement.why);
                }
                judgement.client_sees = refused(judgement, FORBIDDEN);
            }
            Err(why) => {
                judgement.outcome = Outcome::Refused;
                judgement.why = format!("{why}, so that no rule could judge it");
                judgement.client_sees = Some("400".to_owned());
            }
        }
    }
}

const RESET: &str = "a reset";
const FORBIDDEN: &str = "403 `RBAC: access denied`; of gRPC, PERMISSION_DENIED";

fn refused(judgement: &Judgement, sees: &str) -> Option<String> {
    (judgement.outcome == Outcome::Refused).then(|| sees.to_owned())
}

/// What the token of a request is taken for, had its issuer signed it; `None` where the request is refused
/// for it.
fn authenticate(judgement: &mut Judgement, pod: &Workload, ask: &Ask) -> Option<Option<Claims>> {
    let token = ask.jwt.as_deref();
    let authentication = &pod.authentication;
    if authentication.is_empty() {
        judgement.token = token.map(|_| {
            "not looked at: no RequestAuthentication selects the pod, so that the request has none"
                .to_owned()
        });
        return Some(None);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match authentication.unverified(token, now) {
        Ok(claims) => {
            let who = claims.as_ref().map(|claims| {
                let text = |name| claims.text(name).unwrap_or("none");
                format!("issuer {}, subject {}", text("iss"), text("sub"))
            });
            let by = authentication.in_words().join(", ");
            judgement.token = Some(match who {
                Some(who) => {
                    format!("taken as signed, which was not verified here: {who}, by {by}")
                }
                None => format!("none, which {by} lets pass"),
            });
            Some(claims)
        }
        Err(refused) => {
            judgement.why = refused.to_string();
            judgement.client_sees = Some(match refused {
                Refused::Fault(fault, ..) => format!("{} `{fault}`", fault.status().as_u16()),
                Refused::Unreadable(_) => "a refusal".to_owned(),
            });
            None
        }
    }
}

/// Puts down what policies say.
fn note<H: AnyRequest>(
    judgement: &mut Judgement,
    authorization: &Authorization,
    connection: &Connection<'_>,
    asks: &Asks<'_, H>,
) -> Reason {
    let decision = authorization.decide(connection, asks);
    judgement.outcome = match decision.verdict {
        Verdict::Allow => Outcome::Allowed,
        Verdict::Deny => Outcome::Refused,
    };
    judgement.why = decision.to_string();
    judgement.policy = decision.by.map(|by| by.name().to_string());
    judgement.rule = decision.by.and_then(|by| by.rule);
    judgement.audit = decision.audit.map(|by| by.to_string());
    judgement.dry_run = decision.dry_run.map(|(by, reason)| reason.of(&by).to_string());
    judgement.policies = authorization.trace(connection, asks);
    decision.reason
}
