//! When to try again (OTLP specification, "Failures" and "Throttling").

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use tonic::{Code, Status};

use super::{super::wire, ExportError};

/// Waits that double, each shortened at random so that agents do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

const LONGEST_WAIT: Duration = Duration::from_secs(5);

impl Default for Backoff {
    fn default() -> Self {
        Self { next: Duration::from_millis(100) }
    }
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(LONGEST_WAIT);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// Whether a gRPC status allows another attempt.
pub(super) fn grpc(status: &Status) -> ExportError {
    let after = retry_info(status.details());
    let cause = format!("{:?}: {}", status.code(), status.message().escape_debug());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => ExportError::Retry { after, cause },
        // Exhausted resources recover only where the receiver says when.
        Code::ResourceExhausted if after.is_some() => ExportError::Retry { after, cause },
        _ => ExportError::Refused { cause },
    }
}

/// The delay of a `google.rpc.RetryInfo` among the details of a `google.rpc.Status`.
fn retry_info(status: &[u8]) -> Option<Duration> {
    wire::fields(status)
        .filter_map(|field| match field {
            (3, wire::Field::Bytes(any)) => Some(any),
            _ => None,
        })
        .find(|any| {
            wire::submessage(any, 1).is_some_and(|url| url.ends_with(b"/google.rpc.RetryInfo"))
        })
        .map(|any| {
            let delay = wire::submessage(any, 2)
                .and_then(|info| wire::submessage(info, 1))
                .unwrap_or_default();
            let nanoseconds = u32::try_from(wire::number(delay, 2)).unwrap_or(0);
            Duration::from_secs(wire::number(delay, 1))
                .saturating_add(Duration::from_nanos(nanoseconds.into()))
        })
}

/// Whether an HTTP response allows another attempt.
pub(super) fn http(status: StatusCode, headers: &HeaderMap) -> ExportError {
    let cause = format!("HTTP {status}");
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            ExportError::Retry { after: retry_after(headers, SystemTime::now()), cause }
        }
        _ => ExportError::Refused { cause },
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_differ() {
        let mut backoff = Backoff::default();
        let mut longest = Duration::from_millis(100);
        for _ in 0..10 {
            let wait = backoff.next();
            assert!(wait >= longest / 2 && wait <= longest, "{wait:?} of {longest:?}");
            longest = (longest * 2).min(LONGEST_WAIT);
        }
    }

    #[test]
    fn only_codes_the_specification_lists_are_retried() {
        let retried = |code| matches!(grpc(&Status::new(code, "")), ExportError::Retry { .. });
        let codes: Vec<_> = (0..=16).map(Code::from).filter(|code| retried(*code)).collect();
        use Code::*;
        assert_eq!(
            codes,
            [Cancelled, DeadlineExceeded, Aborted, OutOfRange, Unavailable, DataLoss]
        );
    }

    #[test]
    fn exhausted_resources_are_retried_when_the_receiver_says_when() {
        let mut details = Vec::new();
        wire::uint(&mut details, 1, 8);
        wire::nested(&mut details, 3, |any| {
            wire::bytes(any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
            wire::nested(any, 2, |info| {
                wire::nested(info, 1, |delay| {
                    wire::uint(delay, 1, 3);
                    wire::uint(delay, 2, 500_000_000);
                });
            });
        });
        let status = Status::with_details(Code::ResourceExhausted, "later", details.into());
        let expected = Some(Duration::from_millis(3500));
        assert!(matches!(grpc(&status), ExportError::Retry { after, .. } if after == expected));
    }

    #[test]
    fn a_wait_no_clock_can_hold_is_no_panic() {
        let mut details = Vec::new();
        wire::nested(&mut details, 3, |any| {
            wire::bytes(any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
            wire::nested(any, 2, |info| {
                wire::nested(info, 1, |delay| {
                    wire::uint(delay, 1, u64::MAX);
                    wire::uint(delay, 2, 999_999_999);
                });
            });
        });
        let after = retry_info(&details).unwrap();
        assert!(after >= Duration::from_secs(u64::MAX));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let read = |text: &str| {
            let headers = [(header::RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            retry_after(&headers, now)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        let date = httpdate::fmt_http_date(now + Duration::from_secs(9));
        assert_eq!(read(&date), Some(Duration::from_secs(9)));
        assert_eq!(read("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn http_statuses_are_retried_as_the_specification_says() {
        for (status, retried) in
            [(429, true), (502, true), (503, true), (504, true), (400, false), (500, false)]
        {
            let outcome = http(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
            assert_eq!(matches!(outcome, ExportError::Retry { .. }), retried, "{status}");
        }
    }
}
