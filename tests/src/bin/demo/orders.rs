//! The spans of one order.

use std::time::Duration;

use anyhow::Context;
use sluice_tests::Span;

use crate::world::World;

/// How long spans may take to arrive.
const PATIENCE: Duration = Duration::from_secs(15);
/// Three calls: client → frontend → user service and order service. Each has a span of the
/// application at both ends and two of agents between them.
pub(crate) const SPANS: usize = 3 * (2 + 2);

/// Waits for everything that is shown: an order all of whose spans arrived, and both spans of
/// the connection to the echo service. Returns the order: the last one that the far replica
/// served, if there is one.
pub(crate) async fn spans_of_one_order(world: &World) -> anyhow::Result<Vec<Span>> {
    let echo = world.echo.principal();
    let complete = |spans: &[Span]| {
        let at_echo = spans
            .iter()
            .filter(|span| span.attribute("mesh.destination.principal") == echo)
            .count();
        at_echo >= 2 && !complete_orders(spans).is_empty()
    };
    let spans = world.receiver.wait_for(PATIENCE, complete).await?;
    let orders = complete_orders(&spans).into_iter();
    let order = orders.max_by_key(|order| {
        let by_far = order.iter().any(|s| s.attribute("order.id").starts_with("order-far"));
        (by_far, order.iter().map(|span| span.start).min())
    });
    order.context("an order was complete and is not any more")
}

fn complete_orders(spans: &[Span]) -> Vec<Vec<Span>> {
    let roots = spans.iter().filter(|span| span.name == "place-order");
    let of_order =
        |root: &Span| spans.iter().filter(|span| span.trace_id == root.trace_id).cloned().collect();
    roots.map(of_order).filter(|order: &Vec<_>| order.len() >= SPANS).collect()
}
