//! Spans that wait for the exporter, already encoded.
//!
//! One lane per workload revision, striped so that threads seldom meet. The whole is bounded by
//! bytes and a lane may hold at most as much as is still free, so however busy one workload is,
//! others find room.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    metrics::{Dropped, Health},
    resource,
};
use crate::mesh::Workload;

/// Drains without a span after which a lane goes; its Resource is encoded anew when needed.
const IDLE_DRAINS: u32 = 60;
/// Buffers that grew beyond this are not kept for reuse.
const LARGEST_SPARE: usize = 256 * 1024;
const MOST_SPARES: usize = 64;

/// When spans leave, and how many may wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Batching {
    /// Longest time a span waits (`OTEL_BSP_SCHEDULE_DELAY`).
    pub delay: Duration,
    /// Spans that are worth a message, and the most a message carries
    /// (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`).
    pub batch_spans: usize,
    /// Bytes that are worth a message.
    pub batch_bytes: usize,
    /// Most bytes of encoded spans held, those in flight included.
    pub queue_bytes: usize,
    /// Most spans held (`OTEL_BSP_MAX_QUEUE_SIZE`); bytes alone bound the queue by default.
    pub queue_spans: usize,
    /// How long a message may be tried, retries included (`OTEL_BSP_EXPORT_TIMEOUT`).
    pub export_timeout: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(1),
            batch_spans: 512,
            batch_bytes: 1024 * 1024,
            queue_bytes: 16 * 1024 * 1024,
            queue_spans: usize::MAX,
            export_timeout: Duration::from_secs(30),
        }
    }
}

/// Where finished spans go. Never waits, never grows beyond its bounds.
#[derive(Debug)]
pub(super) struct Queue {
    /// By the address of the lane's workload, which the lane keeps alive.
    lanes: papaya::HashMap<usize, Arc<Lane>>,
    batching: Batching,
    resource_defaults: Vec<(String, String)>,
    health: Arc<Health>,
    held_bytes: AtomicUsize,
    held_spans: AtomicUsize,
    fresh_bytes: AtomicUsize,
    fresh_spans: AtomicUsize,
    worth_a_message: Notify,
    spares: Mutex<Vec<Vec<u8>>>,
}

/// The spans of one workload revision.
#[derive(Debug)]
pub(super) struct Lane {
    /// Held so that its address, the key of the lane, stays its own.
    _workload: Arc<Workload>,
    /// The encoded `resource` field.
    pub(super) resource: Vec<u8>,
    stripes: Box<[Mutex<Stripe>]>,
    held_bytes: AtomicUsize,
    idle_drains: AtomicU32,
}

#[derive(Debug, Default)]
struct Stripe {
    /// `ScopeSpans.spans` fields, one after the other.
    spans: Vec<u8>,
    count: usize,
    /// The lane has left the queue; nobody will drain what is added.
    closed: bool,
}

/// Encoded spans of one lane on their way out.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) lane: Arc<Lane>,
    pub(super) spans: Vec<u8>,
}

/// How much of a lane's spans a message carries.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lane: Arc<Lane>,
    pub(super) bytes: usize,
    pub(super) spans: usize,
}

impl Queue {
    pub(super) fn new(
        batching: Batching,
        resource_defaults: Vec<(String, String)>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            lanes: papaya::HashMap::new(),
            batching,
            resource_defaults,
            health,
            held_bytes: AtomicUsize::new(0),
            held_spans: AtomicUsize::new(0),
            fresh_bytes: AtomicUsize::new(0),
            fresh_spans: AtomicUsize::new(0),
            worth_a_message: Notify::new(),
            spares: Mutex::default(),
        }
    }

    /// Adds the span that `encode` appends, on behalf of `workload`, or counts it as dropped.
    pub(super) fn record(&self, workload: &Arc<Workload>, encode: impl Fn(&mut Vec<u8>)) {
        let lanes = self.lanes.pin();
        loop {
            let lane = lanes.get_or_insert_with(Arc::as_ptr(workload).addr(), || {
                Arc::new(Lane::new(workload.clone(), &self.resource_defaults))
            });
            let mut stripe = lane.stripe();
            if stripe.closed {
                // Left the map a moment ago; the next look finds or makes another.
                continue;
            }
            let before = stripe.spans.len();
            encode(&mut stripe.spans);
            let bytes = stripe.spans.len() - before;
            if self.admit(lane, bytes) {
                stripe.count += 1;
            } else {
                stripe.spans.truncate(before);
                drop(stripe);
                self.health.dropped(Dropped::QueueFull, 1);
            }
            return;
        }
    }

    /// Makes room for a span of `bytes`: in all, and within the lane's share of what is free.
    fn admit(&self, lane: &Lane, bytes: usize) -> bool {
        let held = self.held_bytes.fetch_add(bytes, Relaxed) + bytes;
        let spans = self.held_spans.fetch_add(1, Relaxed) + 1;
        let lane_held = lane.held_bytes.fetch_add(bytes, Relaxed) + bytes;
        let free = self.batching.queue_bytes.checked_sub(held);
        if free.is_none_or(|free| lane_held > free) || spans > self.batching.queue_spans {
            self.held_bytes.fetch_sub(bytes, Relaxed);
            self.held_spans.fetch_sub(1, Relaxed);
            lane.held_bytes.fetch_sub(bytes, Relaxed);
            return false;
        }
        let fresh_bytes = self.fresh_bytes.fetch_add(bytes, Relaxed) + bytes;
        let fresh_spans = self.fresh_spans.fetch_add(1, Relaxed) + 1;
        if fresh_spans >= self.batching.batch_spans || fresh_bytes >= self.batching.batch_bytes {
            self.worth_a_message.notify_one();
        }
        true
    }

    /// Waits until enough spans are there for a message, or the oldest has waited long enough.
    pub(super) async fn due(&self) {
        let _ = tokio::time::timeout(self.batching.delay, self.worth_a_message.notified()).await;
    }

    /// Takes everything that waits. It counts as held until [`release`](Self::release)d.
    pub(super) fn drain(&self) -> Vec<Chunk> {
        self.fresh_bytes.store(0, Relaxed);
        self.fresh_spans.store(0, Relaxed);
        let mut chunks = Vec::new();
        let lanes = self.lanes.pin();
        for (address, lane) in &lanes {
            let before = chunks.len();
            lane.drain(&mut chunks, false, || self.spare());
            if chunks.len() > before {
                lane.idle_drains.store(0, Relaxed);
            } else if lane.idle_drains.fetch_add(1, Relaxed) >= IDLE_DRAINS {
                lanes.remove(address);
                lane.drain(&mut chunks, true, Vec::new);
            }
        }
        chunks
    }

    /// What a message carried has left the process, one way or the other.
    pub(super) fn release(&self, held: &[Held]) {
        for Held { lane, bytes, spans } in held {
            lane.held_bytes.fetch_sub(*bytes, Relaxed);
            self.held_bytes.fetch_sub(*bytes, Relaxed);
            self.held_spans.fetch_sub(*spans, Relaxed);
        }
    }

    /// Gives a drained buffer back for reuse.
    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() <= LARGEST_SPARE && spares.len() < MOST_SPARES {
            buffer.clear();
            spares.push(buffer);
        }
    }

    fn spare(&self) -> Vec<u8> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn batching(&self) -> &Batching {
        &self.batching
    }

    /// Bytes of encoded spans held, those in flight included.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Relaxed)
    }

    /// Spans held, those in flight included.
    pub(super) fn held_spans(&self) -> usize {
        self.held_spans.load(Relaxed)
    }
}

impl Lane {
    fn new(workload: Arc<Workload>, resource_defaults: &[(String, String)]) -> Self {
        let stripes = std::thread::available_parallelism().map_or(1, |n| n.get().min(16));
        Self {
            resource: resource::encode(&workload, resource_defaults),
            _workload: workload,
            stripes: (0..stripes).map(|_| Mutex::default()).collect(),
            held_bytes: AtomicUsize::new(0),
            idle_drains: AtomicU32::new(0),
        }
    }

    /// This thread's stripe.
    fn stripe(&self) -> MutexGuard<'_, Stripe> {
        lock(&self.stripes[thread_number() % self.stripes.len()])
    }

    fn drain(self: &Arc<Self>, chunks: &mut Vec<Chunk>, close: bool, spare: impl Fn() -> Vec<u8>) {
        for stripe in &self.stripes {
            let mut stripe = lock(stripe);
            stripe.closed |= close;
            if stripe.count > 0 {
                stripe.count = 0;
                let spans = mem::replace(&mut stripe.spans, spare());
                drop(stripe);
                chunks.push(Chunk { lane: self.clone(), spans });
            }
        }
    }
}

fn lock(stripe: &Mutex<Stripe>) -> MutexGuard<'_, Stripe> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts threads up in the order in which they first ask.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Relaxed);
    }
    NUMBER.with(|number| *number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::testing::workload;

    fn queue(queue_bytes: usize) -> Queue {
        let batching = Batching { queue_bytes, ..Batching::default() };
        Queue::new(batching, Vec::new(), Arc::default())
    }

    fn add(queue: &Queue, workload: &Arc<Workload>, bytes: usize) {
        queue.record(workload, |out| out.resize(out.len() + bytes, 7));
    }

    fn release_all(queue: &Queue, chunks: Vec<Chunk>) {
        for Chunk { lane, spans } in chunks {
            queue.release(&[Held { lane, bytes: spans.len(), spans: spans.len() / 10 }]);
        }
    }

    #[test]
    fn one_workload_cannot_take_the_room_of_others() {
        let queue = queue(1000);
        let (busy, quiet) = (Arc::new(workload("busy")), Arc::new(workload("quiet")));
        for _ in 0..1000 {
            add(&queue, &busy, 10);
        }
        assert_eq!(queue.held_bytes(), 500);
        add(&queue, &quiet, 10);
        assert_eq!(queue.held_bytes(), 510);
        assert_eq!(queue.health.dropped_total(Dropped::QueueFull), 950);
    }

    #[test]
    fn no_number_of_workloads_exceeds_the_bound() {
        let queue = queue(1000);
        for n in 0..100 {
            let pod = Arc::new(workload(&format!("pod-{n}")));
            for _ in 0..100 {
                add(&queue, &pod, 10);
            }
        }
        assert!(queue.held_bytes() <= 1000, "{}", queue.held_bytes());
    }

    #[test]
    fn what_is_in_flight_counts_until_it_is_released() {
        let queue = queue(1000);
        let pod = Arc::new(workload("order"));
        add(&queue, &pod, 10);
        let chunks = queue.drain();
        assert_eq!((queue.held_bytes(), queue.held_spans()), (10, 1));
        release_all(&queue, chunks);
        assert_eq!((queue.held_bytes(), queue.held_spans()), (0, 0));
    }

    #[test]
    fn a_span_limit_bounds_the_queue_as_well() {
        let batching = Batching { queue_spans: 3, ..Batching::default() };
        let queue = Queue::new(batching, Vec::new(), Arc::default());
        let pod = Arc::new(workload("order"));
        for _ in 0..5 {
            add(&queue, &pod, 10);
        }
        assert_eq!(queue.held_spans(), 3);
    }

    #[test]
    fn a_lane_that_stays_empty_goes_and_comes_back_when_needed() {
        let queue = queue(1000);
        let pod = Arc::new(workload("order"));
        add(&queue, &pod, 10);
        release_all(&queue, queue.drain());
        for _ in 0..=IDLE_DRAINS {
            queue.drain();
        }
        assert_eq!(queue.lanes.len(), 0);
        add(&queue, &pod, 10);
        assert_eq!(queue.drain().len(), 1);
    }

    #[test]
    fn threads_that_record_while_lanes_come_and_go_lose_nothing() {
        let queue = queue(usize::MAX);
        let pod = Arc::new(workload("order"));
        let recorded = 4 * 5000;
        let mut drained = 0;
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..5000).for_each(|_| add(&queue, &pod, 10))))
                .collect();
            while writers.iter().any(|writer| !writer.is_finished()) {
                drained += queue.drain().iter().map(|chunk| chunk.spans.len()).sum::<usize>();
                for lane in queue.lanes.pin().values() {
                    lane.idle_drains.store(IDLE_DRAINS, Relaxed);
                }
            }
        });
        drained += queue.drain().iter().map(|chunk| chunk.spans.len()).sum::<usize>();
        assert_eq!(drained, recorded * 10);
    }

    #[tokio::test]
    async fn enough_spans_are_due_at_once() {
        let batching =
            Batching { batch_spans: 2, delay: Duration::from_secs(3600), ..Batching::default() };
        let queue = Queue::new(batching, Vec::new(), Arc::default());
        let pod = Arc::new(workload("order"));
        add(&queue, &pod, 10);
        add(&queue, &pod, 10);
        queue.due().await;
        assert_eq!(queue.drain().len(), 1);
    }
}
