//! What the agent spends on traffic, and how much of it one pod or one client may have.
//!
//! Enters: who asks for a connection, a handshake or memory. Leaves: a [`Permit`], which gives
//! back what it stands for when it is dropped, or a refusal with its [`Limit`]. Knows neither
//! sockets of pods nor protocols.
//!
//! One rule shares everything: *nobody may hold more than what is still free*, but a five-hundredth
//! of the total at any time. One pod alone thus gets half of a total, a second one half of the
//! rest, and so on: the greediest leaves as much as it has, and who comes last has the guaranteed
//! part. Nothing is set aside for pods that do not ask, and there is no list of pods to keep.
//! (Switches share their packet buffers so: Choudhury and Hahne, "Dynamic queue length
//! thresholds", 1998.) A pod's two directions are two holders, so that what comes in cannot keep
//! the pod from going out, and within what comes in the rule holds once more for each client's
//! address.
//!
//! Costs two atomic counters a permit: one for each connection, each request of HTTP/2 and each piece
//! of a body. Processors are shared otherwise, by [turns](Turn).

mod budget;
mod descriptors;
mod inflow;
mod pod;
mod sources;
mod turn;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

pub use budget::{Budget, Permit, Share};
pub use descriptors::{Descriptors, is_exhaustion};
pub use inflow::{Behind, Inflow};
pub use pod::{Arrived, Handshaking, PodLimits};
pub use turn::{Pause, Turn, in_turn};

/// How often one cause is logged. Every refusal is counted.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What there is to share.
#[derive(Clone, Copy, Debug)]
pub struct LimitOptions {
    /// Connections, streams of tunnels that lead to pods of this node, and open requests of HTTP/2.
    pub connections: u64,
    /// Bytes that wait in the agent because whoever they are for does not take them.
    pub buffered: u64,
    /// TLS handshakes of tunnels to pods of this node that are in progress.
    pub handshakes: u64,
}

impl LimitOptions {
    /// By default. The chart's limit of memory, 512 MiB, has to hold when all of it is taken: what
    /// is buffered, 256 MiB for connections and 100 MiB for the agent itself, its spans and its
    /// metrics. An HTTP connection whose head has begun costs 20 KiB in a build without
    /// optimisation, in which 3,286 of them were held; a head of more than 4 KiB is buffered.
    pub const DEFAULT: Self = Self { connections: 8_192, buffered: 128 << 20, handshakes: 512 };

    /// No more connections than `descriptors` allow: each needs two, and one in
    /// three is left for tunnels, pods, guaranteed parts and the agent itself.
    pub fn within(self, descriptors: u64) -> Self {
        const OTHERS: u64 = 256;
        let connections = (descriptors.saturating_sub(OTHERS) / 3).max(1);
        Self { connections: self.connections.min(connections), ..self }
    }
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Of connections, streams and requests of HTTP/2.
    Connections,
    /// Of bytes that wait.
    Buffered,
    /// Of handshakes in progress.
    Handshakes,
    /// Of open files, which the kernel sets.
    Descriptors,
}

impl Limit {
    const ALL: [Self; 4] = [Self::Connections, Self::Buffered, Self::Handshakes, Self::Descriptors];

    /// The reason in metrics and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connection_limit",
            Self::Buffered => "buffer_limit",
            Self::Handshakes => "handshake_limit",
            Self::Descriptors => "descriptor_limit",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => {
                "it has as many connections as are left for all others (hint: \
                 `--max-connections`)"
            }
            Self::Buffered => {
                "as many bytes wait for its readers as are left for all others (hint: \
                 `--max-buffered`)"
            }
            Self::Handshakes => {
                "as many TLS handshakes are in progress as are left for all others (hint: \
                 `--max-handshakes`)"
            }
            Self::Descriptors => "the agent has no file descriptor left (hint: `ulimit -n`)",
        })
    }
}

/// The totals of this agent, and what was refused for their sake.
#[derive(Debug)]
pub struct Limits {
    connections: Arc<Budget>,
    buffered: Arc<Budget>,
    handshakes: Arc<Budget>,
    /// What is kept for the time when there are no more descriptors.
    pub descriptors: Descriptors,
    refused: [Refused; Limit::ALL.len()],
}

/// Refusals for one cause.
#[derive(Debug, Default)]
struct Refused {
    count: AtomicU64,
    told: Mutex<Option<Instant>>,
}

impl Limits {
    /// Nothing is taken yet.
    pub fn new(options: LimitOptions) -> Self {
        Self {
            connections: Budget::new(options.connections),
            buffered: Budget::new(options.buffered),
            handshakes: Budget::new(options.handshakes),
            descriptors: Descriptors::reserve(),
            refused: Default::default(),
        }
    }

    /// The limits of a pod that was just enrolled.
    pub fn pod(&self) -> PodLimits {
        PodLimits::new(&self.connections, &self.buffered, &self.handshakes)
    }

    /// Counts what was refused. Returns whether it is to be told in words too: once in a while
    /// for each cause, so that a flood of connections is none of lines and spans.
    pub fn refused(&self, limit: Limit) -> bool {
        let refused = &self.refused[limit as usize];
        refused.count.fetch_add(1, Relaxed);
        let mut told = refused.told.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = told.is_none_or(|told| told.elapsed() >= LOG_INTERVAL);
        if tell {
            *told = Some(Instant::now());
        }
        tell
    }

    /// Counts what was cut since too much waits for readers of `pod`.
    pub fn overfull(&self, pod: &impl fmt::Display) {
        if self.refused(Limit::Buffered) {
            tracing::warn!(%pod, reason = Limit::Buffered.as_str(),
                "connections are reset: {}", Limit::Buffered);
        }
    }

    /// Refusals so far, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Limit::ALL
            .into_iter()
            .map(|limit| (limit.as_str(), self.refused[limit as usize].count.load(Relaxed)))
    }

    /// What is limited, how much of it is in use, and how much there is.
    pub fn usage(&self) -> [(&'static str, u64, u64); 3] {
        [
            ("connections", &self.connections),
            ("buffered_bytes", &self.buffered),
            ("handshakes", &self.handshakes),
        ]
        .map(|(what, budget)| (what, budget.used(), budget.total()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_counted_and_one_in_a_while_told() {
        let limits = Limits::new(LimitOptions::DEFAULT);
        let told = (0..100).filter(|_| limits.refused(Limit::Buffered)).count();
        assert_eq!(told, 1);
        assert!(limits.refused(Limit::Connections), "another cause is told by itself");
        let counts: Vec<_> = limits.refusals().collect();
        assert!(
            counts.contains(&("buffer_limit", 100)) && counts.contains(&("connection_limit", 1))
        );
    }

    #[test]
    fn descriptors_bound_connections() {
        let few = LimitOptions::DEFAULT.within(1024);
        assert_eq!(few.connections, (1024 - 256) / 3);
        assert_eq!(LimitOptions::DEFAULT.within(1 << 20).connections, 8_192);
        assert_eq!(LimitOptions::DEFAULT.within(0).connections, 1);
    }
}
