//! So many lines of one cause, and how many more there were.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one cause within [`WINDOW`].
const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// Rooms whose lines anybody can cause who reaches a port, down to a level. What a room says of
/// its own doing is not limited.
const STRANGERS: [(&str, Level); 7] = [
    // What it says at the level below it does for the node, not for a pod.
    ("sluice::capture", Level::WARN),
    ("sluice::proxy", Level::INFO),
    ("sluice::tunnel", Level::INFO),
    ("sluice::http", Level::INFO),
    ("sluice::listen", Level::INFO),
    ("sluice::ca::server", Level::INFO),
    // At the level below it says what was issued, which is kept for good.
    ("sluice::ca::service", Level::WARN),
];

/// Lets [`MOST`] lines of each cause pass within [`WINDOW`], and says once after it how many it has
/// kept back. A cause is a place in the code, so that there are never more than a few.
pub(crate) struct Limit {
    causes: Arc<Mutex<HashMap<Identifier, Cause>>>,
    wake: SyncSender<()>,
}

struct Cause {
    since: Instant,
    said: u32,
    kept_back: Option<KeptBack>,
}

/// What was not said.
#[derive(Debug, PartialEq, Eq)]
struct KeptBack {
    lines: u64,
    /// What they said, without what tells them apart.
    what: String,
    level: Level,
}

impl Limit {
    /// Starts the thread that says what was kept back.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start() -> io::Result<Self> {
        let causes = Arc::<Mutex<HashMap<_, _>>>::default();
        let (wake, woken) = mpsc::sync_channel(1);
        let all = causes.clone();
        thread::Builder::new().name("sluice-log".into()).spawn(move || {
            while woken.recv().is_ok() {
                thread::sleep(WINDOW);
                for KeptBack { lines, what, level } in kept_back(&all) {
                    if level <= Level::WARN {
                        tracing::warn!(target: "sluice::log", "{what}: and {lines} more");
                    } else {
                        tracing::info!(target: "sluice::log", "{what}: and {lines} more");
                    }
                }
            }
        })?;
        Ok(Self { causes, wake })
    }

    /// Whether one more is to be said `now`.
    fn admits(&self, event: &Event<'_>, now: Instant) -> bool {
        let mut causes = lock(&self.causes);
        let fresh = || Cause { since: now, said: 0, kept_back: None };
        let cause = causes.entry(event.metadata().callsite()).or_insert_with(fresh);
        if now.saturating_duration_since(cause.since) >= WINDOW {
            (cause.since, cause.said) = (now, 0);
        }
        if cause.said < MOST {
            cause.said += 1;
            return true;
        }
        match &mut cause.kept_back {
            Some(kept_back) => kept_back.lines += 1,
            None => {
                cause.kept_back = Some(KeptBack {
                    lines: 1,
                    what: Message::of(event),
                    level: *event.metadata().level(),
                });
                // Full is woken.
                let _ = self.wake.try_send(());
            }
        }
        false
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        !is_limited(event.metadata()) || self.admits(event, Instant::now())
    }
}

fn is_limited(metadata: &Metadata<'_>) -> bool {
    let (target, level) = (metadata.target(), metadata.level());
    let within = |room: &str| {
        target.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    match STRANGERS.iter().find(|(room, _)| within(room)) {
        Some((_, least)) => level <= least,
        // Libraries log what peers do to them. At the levels below somebody asked for it.
        None => !within("sluice") && *level <= Level::INFO,
    }
}

fn kept_back(causes: &Mutex<HashMap<Identifier, Cause>>) -> Vec<KeptBack> {
    lock(causes).values_mut().filter_map(|cause| cause.kept_back.take()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The words of an event.
#[derive(Default)]
struct Message(String);

impl Message {
    fn of(event: &Event<'_>) -> String {
        const LONGEST: usize = 100;
        let mut message = Self::default();
        event.record(&mut message);
        message.0.chars().take(LONGEST).collect()
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt};

    use super::*;
    use crate::admin::RecentLog;

    /// What is logged while `work` runs, and what was kept back of it.
    fn logged(work: impl FnOnce()) -> (String, Vec<KeptBack>) {
        let log = RecentLog::default();
        let limit = Limit::start().unwrap();
        let causes = limit.causes.clone();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.make_writer())
            .finish()
            .with(limit);
        tracing::subscriber::with_default(subscriber, work);
        let kept_back = kept_back(&causes);
        (log.text(), kept_back)
    }

    #[test]
    fn a_flood_of_one_cause_is_a_few_lines_and_a_number() {
        let (log, kept_back) = logged(|| {
            for n in 0..5000 {
                tracing::info!(target: "sluice::proxy::outbound", n, "connection failed");
            }
            tracing::info!(target: "sluice::proxy::outbound", "something else");
        });
        assert_eq!(log.matches("connection failed").count(), MOST as usize);
        assert!(log.contains("something else"), "another cause is not heard: {log}");
        let what = "connection failed".to_owned();
        let lines = 5000 - u64::from(MOST);
        assert_eq!(kept_back, [KeptBack { lines, what, level: Level::INFO }]);
    }

    #[test]
    fn what_nobody_outside_can_cause_is_all_said() {
        let (log, kept_back) = logged(|| {
            for n in 0..100 {
                tracing::info!(target: "sluice::node::enrolment", n, "captured");
                tracing::info!(target: "sluice::ca::service", n, "issued");
                tracing::info!(target: "sluice::proxying", n, "another room");
                tracing::info!(target: "sluice::capture::enrol", n, "let go");
            }
        });
        for said in ["captured", "issued", "another room", "let go"] {
            assert_eq!(log.matches(said).count(), 100, "{said}");
        }
        assert_eq!(kept_back, []);
    }

    #[test]
    fn libraries_and_refusals_are_limited() {
        let (log, _) = logged(|| {
            for n in 0..100 {
                tracing::warn!(target: "rustls::conn", n, "alert");
                tracing::warn!(target: "sluice::ca::service", n, "refused");
                tracing::warn!(target: "sluice::listen", n, "not accepted");
                tracing::warn!(target: "sluice::capture::watcher", n, "put back");
            }
        });
        for said in ["alert", "refused", "not accepted", "put back"] {
            assert_eq!(log.matches(said).count(), MOST as usize, "{said}");
        }
    }

    #[test]
    fn a_cause_is_heard_again_after_a_while() {
        let limit = Limit::start().unwrap();
        let causes = limit.causes.clone();
        let log = RecentLog::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.make_writer())
            .finish()
            .with(limit);
        tracing::subscriber::with_default(subscriber, || {
            for round in 0..2 {
                for n in 0..=MOST {
                    tracing::info!(target: "sluice::proxy", round, n, "failed");
                }
                for cause in lock(&causes).values_mut() {
                    cause.since -= WINDOW;
                }
            }
        });
        assert_eq!(log.text().matches("failed").count(), 2 * MOST as usize);
    }
}
