//! placeholder replaced by the capture part
fn main() {}
