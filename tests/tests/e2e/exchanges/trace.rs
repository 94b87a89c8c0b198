//! The trace's context, which the mesh adds and replaces: left out of what servers heard.

/// The fields of a trace's context, in lower case.
const NAMES: [&str; 3] = ["traceparent", "tracestate", "b3"];
const B3: &str = "x-b3-";

/// `heard` without the lines that say a trace's context.
pub(super) fn without_context(heard: &[u8]) -> Vec<u8> {
    let lines = heard.split_inclusive(|byte| *byte == b'\n');
    lines.filter(|line| !is_context(line)).flatten().copied().collect()
}

fn is_context(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
    let Ok(name) = str::from_utf8(&line[..colon]) else { return false };
    let name = name.to_ascii_lowercase();
    line.ends_with(b"\r\n") && (NAMES.contains(&&*name) || name.starts_with(B3))
}

#[test]
fn only_the_traces_context_is_left_out() {
    let heard = b"GET /b3: HTTP/1.1\r\nTraceParent: 00-1\r\nHost: a\r\nX-B3-Sampled: 0\r\n\
                  b3: 0\r\nx-b: 1\r\ntracestate: a=b\r\n\r\nb3: ";
    assert_eq!(without_context(heard), b"GET /b3: HTTP/1.1\r\nHost: a\r\nx-b: 1\r\n\r\nb3: ");
}
