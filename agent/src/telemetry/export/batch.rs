//! Messages made of what the queue held.

use std::{collections::VecDeque, sync::LazyLock};

use bytes::Bytes;

use super::super::{
    queue::{Chunk, Held, Queue},
    semconv, wire,
};

/// Receivers usually refuse gRPC messages over 4 MiB; some room is left for what wraps them.
const LARGEST_MESSAGE: usize = 4 * 1024 * 1024 - 64 * 1024;

/// `ScopeSpans.scope`, the same everywhere.
static SCOPE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = Vec::new();
    wire::nested(&mut out, 1, |out| {
        wire::bytes(out, 1, semconv::SCOPE_NAME.as_bytes());
        wire::bytes(out, 2, semconv::SCOPE_VERSION.as_bytes());
    });
    out
});

/// `schema_url`, of `ResourceSpans` and of `ScopeSpans` alike.
static SCHEMA: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = Vec::new();
    wire::bytes(&mut out, 3, semconv::SCHEMA_URL.as_bytes());
    out
});

/// An `ExportTraceServiceRequest`.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) spans: usize,
    /// What to release once the message is gone.
    pub(super) held: Vec<Held>,
}

/// What one drain of the queue found, message by message.
pub(super) struct Batches<'a> {
    queue: &'a Queue,
    /// Chunks and how many of their bytes have been taken.
    chunks: VecDeque<(Chunk, usize)>,
    most_bytes: usize,
}

impl<'a> Batches<'a> {
    pub(super) fn new(queue: &'a Queue) -> Self {
        let chunks = queue.drain().into_iter().map(|chunk| (chunk, 0)).collect();
        Self { queue, chunks, most_bytes: LARGEST_MESSAGE }
    }

    /// The next message; it is only made when the one before is gone.
    pub(super) fn next(&mut self) -> Option<Message> {
        let most_spans = self.queue.batching().batch_spans;
        let mut bytes = Vec::new();
        let mut spans = 0;
        let mut held: Vec<Held> = Vec::new();
        while let Some((chunk, taken)) = self.chunks.front_mut() {
            let overhead = chunk.lane.resource.len() + SCOPE.len() + 2 * SCHEMA.len() + 32;
            let room = self.most_bytes.saturating_sub(bytes.len() + overhead);
            let (len, count) = prefix(&chunk.spans[*taken..], room, most_spans - spans);
            if count == 0 && spans > 0 {
                break;
            }
            // A span is far smaller than a message; should one not be, it goes alone.
            let (len, count) = match count {
                0 => prefix(&chunk.spans[*taken..], usize::MAX, 1),
                _ => (len, count),
            };
            resource_spans(&mut bytes, &chunk.lane.resource, &chunk.spans[*taken..*taken + len]);
            spans += count;
            *taken += len;
            held.push(Held { lane: chunk.lane.clone(), bytes: len, spans: count });
            if *taken == chunk.spans.len()
                && let Some((chunk, _)) = self.chunks.pop_front()
            {
                self.queue.recycle(chunk.spans);
            }
            if spans >= most_spans {
                break;
            }
        }
        (spans > 0).then(|| Message { bytes: bytes.into(), spans, held })
    }
}

/// How many bytes and spans of `spans`, in whole fields, fit into `room`.
fn prefix(spans: &[u8], room: usize, most_spans: usize) -> (usize, usize) {
    let (mut len, mut count) = (0, 0);
    while count < most_spans && len < spans.len() {
        // One byte of tag, then a length, then the span: as the queue's writers wrote it.
        let mut rest = &spans[len + 1..];
        let Some(size) = wire::read_varint(&mut rest) else { break };
        let end = spans.len() - rest.len() + size as usize;
        if end > room {
            break;
        }
        len = end;
        count += 1;
    }
    (len, count)
}

/// Appends one `ResourceSpans`.
fn resource_spans(out: &mut Vec<u8>, resource: &[u8], spans: &[u8]) {
    let scope_len = SCOPE.len() + spans.len() + SCHEMA.len();
    let scope_head = 1 + wire::varint_len(scope_len as u64);
    wire::header(out, 1, resource.len() + scope_head + scope_len + SCHEMA.len());
    out.extend_from_slice(resource);
    wire::header(out, 2, scope_len);
    out.extend_from_slice(&SCOPE);
    out.extend_from_slice(spans);
    out.extend_from_slice(&SCHEMA);
    out.extend_from_slice(&SCHEMA);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message as _;

    use super::*;
    use crate::telemetry::{queue::Batching, testing::workload};

    /// A queue that holds `spans` of about 100 bytes for each of `workloads`.
    fn queue(workloads: &[&str], spans: usize, batch_spans: usize) -> Queue {
        let batching = Batching { batch_spans, ..Batching::default() };
        let queue = Queue::new(batching, Vec::new(), Arc::default());
        for name in workloads {
            let pod = Arc::new(workload(name));
            for n in 0..spans {
                queue.record(&pod, |out| {
                    wire::nested(out, 2, |out| wire::display(out, 5, format_args!("{n:0100}")));
                });
            }
        }
        queue
    }

    fn names(message: &Message) -> Vec<String> {
        let request = ExportTraceServiceRequest::decode(&*message.bytes).unwrap();
        request
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| &scope.spans)
            .map(|span| span.name.trim_start_matches('0').to_owned())
            .collect()
    }

    #[test]
    fn one_message_carries_several_workloads_each_under_its_resource() {
        let queue = queue(&["order", "user"], 2, 512);
        let mut batches = Batches::new(&queue);
        let message = batches.next().unwrap();
        assert_eq!(message.spans, 4);
        let request = ExportTraceServiceRequest::decode(&*message.bytes).unwrap();
        assert_eq!(request.resource_spans.len(), 2);
        for resource in &request.resource_spans {
            assert_eq!(resource.schema_url, semconv::SCHEMA_URL);
            assert_eq!(resource.scope_spans[0].schema_url, semconv::SCHEMA_URL);
            let scope = resource.scope_spans[0].scope.as_ref().unwrap();
            assert_eq!((scope.name.as_str(), scope.version.as_str()), ("sluice", "0.1.0"));
        }
        assert!(batches.next().is_none());
    }

    #[test]
    fn messages_keep_to_both_limits_and_lose_nothing() {
        for (batch_spans, most_bytes) in [(7, LARGEST_MESSAGE), (usize::MAX, 2000), (1, 10)] {
            let queue = queue(&["order"], 50, batch_spans);
            let mut batches = Batches { most_bytes, ..Batches::new(&queue) };
            let mut seen = Vec::new();
            while let Some(message) = batches.next() {
                assert!(message.spans <= batch_spans);
                assert!(message.bytes.len() <= most_bytes || message.spans == 1);
                seen.extend(names(&message));
                queue.release(&message.held);
            }
            let expected: Vec<_> =
                (0..50).map(|n: u32| n.to_string().trim_start_matches('0').to_owned()).collect();
            assert_eq!(seen, expected);
            assert_eq!((queue.held_bytes(), queue.held_spans()), (0, 0));
        }
    }
}
