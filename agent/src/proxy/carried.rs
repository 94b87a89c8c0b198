//! What there is of a connection for as long as it lasts, which it may mostly be idle.
//!
//! A future has room for the largest of all it ever waits for, and an `async fn` for its arguments
//! twice. So what is large and soon over is boxed where it runs, and what lasts is small.

use std::{future::Future, pin::Pin};

/// What is carried, to its end.
pub(super) type Carried = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Bytes of one of the few futures that a connection is as long as it lasts. Together they once were
/// 16 KiB.
const LARGEST: usize = 1280;

/// One of them.
pub(super) fn lasting<F: Future<Output = ()> + Send + 'static>(carried: F) -> Carried {
    const {
        assert!(size_of::<F>() <= LARGEST, "what is large of an idle connection is to be boxed");
    }
    Box::pin(carried)
}
