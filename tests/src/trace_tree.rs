//! Traces as trees, for people.

use std::fmt::Write;

use crate::span::{Kind, Span};

/// Draws the traces in `spans`, one line a span, children below their parents. A span whose
/// parent is not among them is drawn as a root.
pub fn trace_tree(spans: &[Span]) -> String {
    let mut roots: Vec<_> = spans.iter().filter(|span| parent(span, spans).is_none()).collect();
    roots.sort_by_key(|span| span.start);
    let mut text = String::new();
    for root in roots {
        writeln!(text, "trace {}", root.trace_id).expect("a String takes everything");
        draw(&mut text, root, spans, "", true);
    }
    text
}

fn parent<'a>(span: &Span, spans: &'a [Span]) -> Option<&'a Span> {
    let id = span.parent_id.as_ref()?;
    spans.iter().find(|other| other.trace_id == span.trace_id && other.span_id == *id)
}

fn draw(text: &mut String, span: &Span, spans: &[Span], indent: &str, last: bool) {
    let branch = if last { "└─" } else { "├─" };
    writeln!(text, "{indent}{branch} {}", line(span)).expect("a String takes everything");
    let mut children: Vec<_> = spans
        .iter()
        .filter(|other| {
            other.trace_id == span.trace_id && other.parent_id.as_ref() == Some(&span.span_id)
        })
        .collect();
    children.sort_by_key(|child| child.start);
    let indent = format!("{indent}{}", if last { "   " } else { "│  " });
    for (index, child) in children.iter().enumerate() {
        draw(text, child, spans, &indent, index + 1 == children.len());
    }
}

fn line(span: &Span) -> String {
    let kind = match span.kind {
        Kind::Client => "CLIENT",
        Kind::Server => "SERVER",
        Kind::Internal => "INTERNAL",
    };
    let recorder = if span.is_agents() { "agent" } else { "app" };
    let milliseconds = span.duration().as_secs_f64() * 1000.0;
    let mut line =
        format!("{:<13} {kind:<6} {recorder:<5} {} {milliseconds:.2} ms", span.service, span.name);
    // The peer is the other end: who answers a client, who calls a server.
    let peer = match span.kind {
        Kind::Client => span.attribute("mesh.destination.principal"),
        Kind::Server => span.attribute("mesh.source.principal"),
        Kind::Internal => "",
    };
    if !peer.is_empty() {
        let arrow = if span.kind == Kind::Client { "→" } else { "←" };
        line += &format!("  {arrow} {peer}");
    }
    if let Some(error) = &span.error {
        line += &format!("  ✘ {} {error}", span.attribute("error.type"));
    }
    line
}
