//! The threads that carry traffic.
//!
//! Enters: pods, each of which is at home at one thread. Leaves: the thread to carry something on.
//! Knows neither sockets nor protocols.
//!
//! A pod's connections are carried at its home, and what their tasks spawn as well, so that one task
//! wakes another without waking a thread. With threads that all take whatever is to be done, as tokio's
//! do, a request between two nodes took a quarter more of the processors. While a thread has no time
//! left, what comes new goes to one that has.

use std::{
    cell::Cell,
    io,
    num::NonZero,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Handle, Runtime};

/// How often it is looked at what a thread does, at most.
const LOOK: Duration = Duration::from_millis(100);
/// Percent of a processor of which a thread takes so much has no time left.
const FULL: u32 = 80;
/// Percent of the time in which a thread that has time for others has something to do, at most.
const FREE: u32 = 50;

/// The threads themselves. They end when this is dropped, which is not to be in a task.
#[derive(Debug)]
pub struct Threads {
    workers: Workers,
    _runtimes: Vec<Runtime>,
}

/// What is known of the threads. Clones share that.
#[derive(Clone, Debug)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    thread: Handle,
    /// How many are at home here.
    pods: AtomicUsize,
    seen: Mutex<Seen>,
    /// Percent of the time before that.
    busy: AtomicU32,
}

/// A worker when it was last looked at.
#[derive(Debug)]
struct Seen {
    at: Instant,
    /// How long it had been busy until then.
    busy: Duration,
}

/// Where a pod's traffic is carried, until this is dropped.
#[derive(Debug)]
pub struct Home {
    workers: Workers,
    number: usize,
}

impl Threads {
    /// Starts `count` of them, or as many as there are processors for this process.
    ///
    /// # Errors
    /// When the system has no more threads or file descriptors.
    pub fn start(count: Option<u16>) -> io::Result<Self> {
        let count = match count {
            Some(count) => count.into(),
            None => std::thread::available_parallelism().map_or(1, NonZero::get),
        };
        // Each a runtime of its own: between threads of one, tasks would move.
        let runtimes = (0..count.max(1))
            .map(|_| one_thread("sluice-worker"))
            .collect::<io::Result<Vec<_>>>()?;
        let workers =
            Workers(runtimes.iter().map(|runtime| Worker::new(runtime.handle())).collect());
        Ok(Self { workers, _runtimes: runtimes })
    }

    /// Files that they have open themselves: what epoll needs, and signals.
    pub fn descriptors(&self) -> u64 {
        4 * self.workers.0.len() as u64
    }

    /// What is known of them.
    pub fn workers(&self) -> Workers {
        self.workers.clone()
    }
}

impl Workers {
    /// A home for one more pod: where the fewest are.
    pub fn home(&self) -> Home {
        let pods = self.0.iter().map(|worker| worker.pods.load(Relaxed)).enumerate();
        let number = pods.min_by_key(|(_, pods)| *pods).map_or(0, |(number, _)| number);
        self.0[number].pods.fetch_add(1, Relaxed);
        Home { workers: self.clone(), number }
    }

    /// The thread for something new, where it is not to be the one that asks: that has no time left,
    /// and another has.
    pub fn elsewhere(&self) -> Option<Handle> {
        let number = with_time(share_of_this_thread(), self.0.iter().map(Worker::busy))?;
        let thread = &self.0[number].thread;
        (thread.id() != Handle::current().id()).then(|| thread.clone())
    }

    /// Waits until each of them has done something: none is stuck.
    pub async fn respond(&self) {
        // Fails only for one that has ended, which the process does not outlive.
        join_all(self.0.iter().map(|worker| worker.thread.spawn(async {}))).await;
    }
}

impl Worker {
    fn new(thread: &Handle) -> Self {
        Self {
            thread: thread.clone(),
            pods: AtomicUsize::new(0),
            seen: Mutex::new(Seen { at: Instant::now(), busy: Duration::ZERO }),
            busy: AtomicU32::new(0),
        }
    }

    /// Percent of the time in which it had something to do lately, be it that others kept it from that.
    fn busy(&self) -> u32 {
        // Somebody else is looking.
        let Ok(mut seen) = self.seen.try_lock() else { return self.busy.load(Relaxed) };
        let passed = seen.at.elapsed();
        if passed >= LOOK {
            let metrics = self.thread.metrics();
            let busy = metrics.worker_total_busy_duration(0);
            // It is told after some tasks, or when there are none left: one that is in the same task
            // for long has told nothing. Every other time it is counted, it goes on.
            let is_stuck =
                busy == seen.busy && metrics.worker_park_unpark_count(0).is_multiple_of(2);
            let share = if is_stuck { 100 } else { percent(busy - seen.busy, passed) };
            self.busy.store(share, Relaxed);
            *seen = Seen { at: seen.at + passed, busy };
        }
        self.busy.load(Relaxed)
    }
}

impl Home {
    /// The thread.
    pub fn thread(&self) -> &Handle {
        &self.workers.0[self.number].thread
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.workers.0[self.number].pods.fetch_sub(1, Relaxed);
    }
}

/// A runtime of one thread called `name`, beside those that block.
///
/// # Errors
/// When the system has no more threads or file descriptors.
pub fn one_thread(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()
}

/// Which one is to have what is new, where `here` is full; all are `busy` for some percent of the time.
fn with_time(here: u32, busy: impl Iterator<Item = u32>) -> Option<usize> {
    if here < FULL {
        return None;
    }
    let (number, busy) = busy.enumerate().min_by_key(|(_, busy)| *busy)?;
    (busy <= FREE).then_some(number)
}

/// Percent of a processor that the calling thread has taken lately. Not how long it was busy: where
/// processors are short, all threads are, and to share would only cost more.
fn share_of_this_thread() -> u32 {
    thread_local! {
        static SEEN: Cell<(Instant, Duration, u32)> = Cell::new((Instant::now(), spent(), 0));
    }
    SEEN.with(|seen| {
        let (at, before, share) = seen.get();
        let passed = at.elapsed();
        if passed < LOOK {
            return share;
        }
        let spent = spent();
        let share = percent(spent.saturating_sub(before), passed);
        seen.set((at + passed, spent, share));
        share
    })
}

/// Time of a processor that the calling thread has taken.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn percent(part: Duration, whole: Duration) -> u32 {
    (part.as_micros() * 100 / whole.as_micros().max(1)).try_into().unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_at_home_where_the_fewest_are() {
        let threads = Threads::start(Some(3)).unwrap();
        let workers = threads.workers();
        let mut homes: Vec<_> = (0..6).map(|_| workers.home()).collect();
        let mut pods: Vec<_> = homes.iter().map(|home| home.number).collect();
        pods.sort_unstable();
        assert_eq!(pods, [0, 0, 1, 1, 2, 2]);
        let left = homes.remove(4).number;
        assert_eq!(workers.home().number, left);
    }

    #[test]
    fn what_a_pod_spawns_runs_on_one_thread() {
        let threads = Threads::start(Some(2)).unwrap();
        let home = threads.workers().home();
        let ids = home.thread().spawn(async {
            let id = || std::thread::current().id();
            let others = join_all((0..100).map(|_| tokio::spawn(async move { id() }))).await;
            others.into_iter().all(|other| other.unwrap() == id())
        });
        let control = Builder::new_current_thread().build().unwrap();
        assert!(control.block_on(ids).unwrap());
    }

    #[test]
    fn what_is_new_goes_elsewhere_when_there_is_no_time_here_and_some_there() {
        let with_time = |here, busy: &[u32]| with_time(here, busy.iter().copied());
        assert_eq!(with_time(FULL - 1, &[100, 0]), None);
        assert_eq!(with_time(FULL, &[100, FREE, FREE - 1]), Some(2));
        assert_eq!(with_time(100, &[100, FREE + 1]), None, "nobody has time");
    }

    #[test]
    fn a_thread_with_time_left_keeps_what_comes() {
        let threads = Threads::start(Some(2)).unwrap();
        let workers = threads.workers();
        let home = workers.home();
        let elsewhere = home.thread().spawn(async move {
            // From here on it is counted what the thread does, which is to wait.
            share_of_this_thread();
            tokio::time::sleep(2 * LOOK).await;
            workers.elsewhere().is_some()
        });
        let control = Builder::new_current_thread().build().unwrap();
        assert!(!control.block_on(elsewhere).unwrap());
    }

    #[test]
    fn a_thread_that_is_in_one_task_for_long_is_busy() {
        let threads = Threads::start(Some(2)).unwrap();
        let workers = threads.workers();
        let (go_on, stuck) = std::sync::mpsc::channel::<()>();
        let (began, begins) = std::sync::mpsc::channel::<()>();
        let home = workers.home();
        home.thread().spawn(async move {
            began.send(()).unwrap();
            stuck.recv()
        });
        begins.recv().unwrap();
        let busy = || {
            std::thread::sleep(LOOK);
            workers.0[home.number].busy()
        };
        // The first look may see how it began.
        assert!((0..10).any(|_| busy() == 100));
        go_on.send(()).unwrap();
    }

    #[test]
    fn one_that_is_stuck_does_not_respond_for_all() {
        let threads = Threads::start(Some(2)).unwrap();
        let workers = threads.workers();
        let (go_on, stuck) = std::sync::mpsc::channel::<()>();
        let control = Builder::new_current_thread().build().unwrap();
        control.block_on(workers.respond());
        workers.home().thread().spawn(async move { stuck.recv() });
        let mut responds = Box::pin(workers.respond());
        let mut now = std::task::Context::from_waker(std::task::Waker::noop());
        // Asks them all.
        assert!(responds.as_mut().poll(&mut now).is_pending());
        // One has long responded when the stuck one still has not.
        control.block_on(workers.0[1].thread.spawn(async {})).unwrap();
        assert!(responds.as_mut().poll(&mut now).is_pending());
        go_on.send(()).unwrap();
        control.block_on(responds);
    }

    #[test]
    fn shares_are_told_in_percent() {
        assert_eq!(percent(Duration::from_millis(50), Duration::from_millis(200)), 25);
        assert_eq!(percent(Duration::ZERO, Duration::ZERO), 0);
    }
}
