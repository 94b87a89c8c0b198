//! What one pod or one peer may try to bring a node down with, an attack a module. While each runs,
//! another pod of the node goes on with its own requests, of which none may fail. Figures are
//! printed, a table line an attack; what is asserted is only what must hold on any machine.
//!
//! One at a time (`--test-threads=1`): each uses up what there is, and all have figures.

mod bystander;
mod calm;
mod descriptors;
mod flood;
mod idle;
mod listeners;
mod port_scan;
mod siege;
mod slow_starts;
mod unread;
