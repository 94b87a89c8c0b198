//! Everything in OpenMetrics 1.0 text, piece by piece.

use std::sync::Arc;

use super::{
    labels::{Close, Ending, Outcome},
    series::{CONNECTIONS, Connections, Family, REQUESTS, Requests, Series},
    text::{Reading, Text},
};

/// How long a piece is, about. A request's series is 70 KB of text, and a node may have
/// thousands: what is written at a time is what one reader has taken.
const PIECE: usize = 64 << 10;

/// The text in pieces. Each is written when it is asked for.
pub struct Rendering {
    requests: Vec<Arc<Series<Outcome, Requests>>>,
    connections: Vec<Arc<Series<Close, Connections>>>,
    readings: Vec<Reading>,
    /// How far it is: which metric, and how many of its series are written.
    at: (usize, usize),
}

impl Rendering {
    pub(super) fn new(
        requests: Vec<Arc<Series<Outcome, Requests>>>,
        connections: Vec<Arc<Series<Close, Connections>>>,
        readings: Vec<Reading>,
    ) -> Self {
        let mut new = Self { requests, connections, readings, at: (0, 0) };
        // In an order that does not change from scrape to scrape.
        sort(&mut new.requests);
        sort(&mut new.connections);
        new
    }
}

impl Iterator for Rendering {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut out = Text::default();
        while out.len() < PIECE {
            let (family, done) = self.at;
            let more = if let Some(family) = REQUESTS.get(family) {
                write(&mut out, family, &self.requests, done)
            } else if let Some(family) = CONNECTIONS.get(family.wrapping_sub(REQUESTS.len())) {
                write(&mut out, family, &self.connections, done)
            } else if family == REQUESTS.len() + CONNECTIONS.len() {
                out.readings(&self.readings);
                out.end();
                false
            } else {
                break;
            };
            self.at = if more { (family, done + 1) } else { (family + 1, 0) };
        }
        let piece = out.into_string();
        (!piece.is_empty()).then_some(piece)
    }
}

/// Writes one of `series`, the head before the first; whether there are more.
fn write<O: Ending, V>(
    out: &mut Text,
    family: &Family<V>,
    series: &[Arc<Series<O, V>>],
    done: usize,
) -> bool {
    if done == 0 {
        out.family(family.name, family.kind, family.help);
    }
    if let Some(one) = series.get(done) {
        (family.write)(out, &one.text(), &one.values);
    }
    done + 1 < series.len()
}

fn sort<O: Ending, V>(series: &mut [Arc<Series<O, V>>]) {
    series.sort_unstable_by(|a, b| (&a.labels, &a.outcome).cmp(&(&b.labels, &b.outcome)));
}
