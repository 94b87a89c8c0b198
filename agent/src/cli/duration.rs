//! Durations on the command line.

use std::time::Duration;

/// A duration with a unit, or seconds without one, as Kubernetes writes grace periods.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<u64>().map(Duration::from_secs).or_else(|_| {
        humantime::parse_duration(text).map_err(|error| format!("{error} (hint: `15s`, `24h`)"))
    })
}
