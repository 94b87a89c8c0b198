//! What reaches the log, however much strangers give cause for.
//!
//! Enters: events, and lines made of them. Leaves: as many of each cause as somebody may want to
//! read with a count of the others, and no line longer than that.

mod limit;
mod lines;

pub(crate) use limit::Limit;
pub(crate) use lines::{Form, Short};
