//! The claims of the project, each examined on what was seen.

use serde_json::Value;
use sluice_tests::{Kind, Pod, Span, firewall_rules};

use crate::{
    claim::Claim,
    orders::SPANS,
    traffic::{Evidence, SECRETS},
    world::World,
};

pub(crate) fn examine(world: &World, evidence: &Evidence) -> anyhow::Result<Vec<Claim>> {
    Ok(vec![
        captured(world, evidence)?,
        encrypted(evidence),
        identified(world, evidence),
        joined(evidence),
        handed_over(world, evidence),
        transparent(world, evidence),
        opaque(world, evidence),
    ])
}

/// Captured by eBPF, and by nothing else.
fn captured(world: &World, evidence: &Evidence) -> anyhow::Result<Claim> {
    let count = |status: &Value, event: &str| {
        let series = format!("sluice_capture_events_total{{event=\"{event}\"}}");
        status["counters"][series].as_u64().unwrap_or(0)
    };
    let sum = |event| evidence.status.iter().map(|status| count(status, event)).sum::<u64>();
    let (marked, out, into) = (sum("marked"), sum("steered_out"), sum("steered_in"));
    let mut rules = Vec::new();
    for pod in world.pods() {
        rules.extend(firewall_rules(pod)?);
    }
    let uncaptured: Vec<_> = evidence
        .status
        .iter()
        .flat_map(|status| status["pods"].as_array().into_iter().flatten())
        .filter(|pod| !pod["error"].is_null())
        .map(ToString::to_string)
        .collect();
    Ok(Claim::new(
        "Captured by eBPF",
        format!(
            "connects marked {marked}, steered out of pods {out}, into pods {into}; \
             no nftables or iptables rule in any of {} pods",
            world.pods().len()
        ),
        [
            (marked > 0 && out > 0 && into > 0, format!("marked {marked}, out {out}, in {into}")),
            (rules.is_empty(), format!("firewall rules: {rules:?}")),
            (uncaptured.is_empty(), format!("not captured: {}", uncaptured.join(", "))),
        ],
    ))
}

/// Nothing readable crossed between the nodes.
fn encrypted(evidence: &Evidence) -> Claim {
    let meshed = &evidence.meshed;
    let (all, other) = (meshed.crossing.packets, meshed.other.packets);
    let leaked: Vec<_> =
        SECRETS.into_iter().filter(|secret| meshed.crossing.contains(secret)).collect();
    let blind: Vec<_> =
        SECRETS.into_iter().filter(|secret| !evidence.bare.contains(secret)).collect();
    let inside = meshed.inside.contains("/api/user");
    Claim::new(
        "Encrypted between nodes",
        format!(
            "{all} packets, all of them HBONE; none of {SECRETS:?} in them, while the same \
             search finds each without agents, and finds the first inside the user service's pod"
        ),
        [
            (leaked.is_empty(), format!("readable between the nodes: {leaked:?}")),
            (blind.is_empty(), format!("the search does not even find {blind:?} without agents")),
            (inside, "the request was not seen inside the destination's pod".to_owned()),
            (all > 0, "no packet crossed at all".to_owned()),
            (other == 0, format!("{other} of {all} packets were not HBONE")),
        ],
    )
}

/// The hops of one order: caller, called, whether both are on one node.
fn hops<'a>(world: &'a World, evidence: &Evidence) -> [(&'a Pod, &'a Pod); 3] {
    let far = |span: &Span| span.attribute("order.id").starts_with("order-far");
    let order = if evidence.spans.iter().any(far) { &world.order_far } else { &world.order_near };
    [(&world.client, &world.frontend), (&world.frontend, &world.user), (&world.frontend, order)]
}

/// The agents' spans of the hop from `caller` to `called`, client's side first.
fn pair<'a>(spans: &'a [Span], (caller, called): (&Pod, &Pod)) -> Option<(&'a Span, &'a Span)> {
    let find = |kind, service: &str, client: &Pod, server: &Pod| {
        spans.iter().find(|span| {
            span.is_agents()
                && span.kind == kind
                && span.service == service
                && span.attribute("mesh.source.principal") == client.principal()
                && span.attribute("mesh.destination.principal") == server.principal()
        })
    };
    let client = find(Kind::Client, caller.app(), caller, called)?;
    Some((client, find(Kind::Server, called.app(), caller, called)?))
}

/// Both ends of every call are authenticated.
fn identified(world: &World, evidence: &Evidence) -> Claim {
    let hops = hops(world, evidence);
    let conditions = hops.map(|hop| {
        let (caller, called) = hop;
        let name = format!("{} → {}", caller.name(), called.name());
        match pair(&evidence.spans, hop) {
            None => (false, format!("{name}: no spans with both principals")),
            Some((_, server)) => {
                let policy = server.attribute("mesh.connection.security_policy");
                (policy == "mutual_tls", format!("{name}: security policy `{policy}`"))
            }
        }
    });
    let principals = hops.map(|(caller, called)| {
        format!("{} → {}", caller.service_account(), called.service_account())
    });
    Claim::new(
        "Authenticated both ways",
        format!("mutual_tls as spiffe://cluster.local/ns/default/sa/…: {}", principals.join(", ")),
        conditions,
    )
}

/// The application's spans and the agents' are one tree.
fn joined(evidence: &Evidence) -> Claim {
    let spans = &evidence.spans;
    let agents = spans.iter().filter(|span| span.is_agents()).count();
    let is_root = |span: &&Span| {
        let known = |id: &String| spans.iter().any(|other| other.span_id == *id);
        !span.parent_id.as_ref().is_some_and(known)
    };
    let roots: Vec<_> = spans.iter().filter(is_root).map(|span| &span.name).collect();
    // On the way of a call the recorder changes at every step: app, agent, agent, app.
    let broken: Vec<_> = spans
        .iter()
        .filter(|span| span.kind == Kind::Server && !span.is_agents())
        .filter(|span| {
            let parent = |of: &Span| {
                let id = of.parent_id.clone()?;
                spans.iter().find(|other| other.span_id == id)
            };
            let way = parent(span).and_then(|server| Some((server, parent(server)?)));
            !way.is_some_and(|(server, client)| server.is_agents() && client.is_agents())
        })
        .map(|span| format!("{} of {}", span.name, span.service))
        .collect();
    Claim::new(
        "Spans joined",
        format!(
            "{} spans of one order in one tree: {} of the application, {agents} of the agents",
            spans.len(),
            spans.len() - agents
        ),
        [
            (spans.len() == SPANS, format!("{} spans instead of {SPANS}", spans.len())),
            (roots.len() == 1, format!("roots: {roots:?}")),
            (broken.is_empty(), format!("without both agents' spans above: {broken:?}")),
        ],
    )
}

/// Between pods of one node nothing is encrypted for nobody.
fn handed_over(world: &World, evidence: &Evidence) -> Claim {
    let expected = hops(world, evidence).map(|hop| {
        let (caller, called) = hop;
        let near = caller.node() == called.node();
        let seen = pair(&evidence.spans, hop).map(|(client, server)| {
            [client, server].map(|span| span.attribute("mesh.same_node") == "true")
        });
        let name = format!("{} → {}", caller.name(), called.name());
        (seen == Some([near; 2]), format!("{name}: same node is {near}, spans say {seen:?}"))
    });
    Claim::new(
        "Handed over within a node",
        "client → frontend stays in one agent, frontend → user-service crosses, and the spans \
         say so"
            .to_owned(),
        expected,
    )
}

/// The application sees who really called.
fn transparent(world: &World, evidence: &Evidence) -> Claim {
    let conditions = hops(world, evidence).map(|(caller, called)| {
        let span = evidence.spans.iter().find(|span| {
            !span.is_agents() && span.kind == Kind::Server && span.service == called.app()
        });
        let seen = span.map_or("", |span| span.attribute("client.address"));
        let is_caller = seen
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| caller.ips().contains(&ip.to_canonical()));
        (is_caller, format!("{} saw `{seen}` instead of {}", called.name(), caller.name()))
    });
    Claim::new(
        "Transparent",
        format!("each service saw its caller's own address, {} for one", world.frontend.ip()),
        conditions,
    )
}

/// Traffic that is no HTTP is carried and recorded too.
fn opaque(world: &World, evidence: &Evidence) -> Claim {
    let to_echo: Vec<_> = evidence.all_spans.iter().filter(|span| span.is_agents()).collect();
    let of = |kind| {
        to_echo.iter().find(|span| {
            span.kind == kind
                && span.attribute("mesh.destination.principal") == world.echo.principal()
        })
    };
    let joined = of(Kind::Client)
        .zip(of(Kind::Server))
        .is_some_and(|(client, server)| server.parent_id.as_ref() == Some(&client.span_id));
    let name = of(Kind::Client).map_or("", |span| span.name.as_str());
    let sent = of(Kind::Client).map_or("", |span| span.attribute("mesh.connection.sent_bytes"));
    Claim::new(
        "Any TCP",
        format!("bytes through the echo service came back; span pair `{name}`, {sent} bytes sent"),
        [(joined, "no joined pair of spans for the connection to the echo service".to_owned())],
    )
}
