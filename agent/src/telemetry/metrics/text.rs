//! OpenMetrics 1.0 text.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::telemetry::context::TraceId;

/// What a metric's value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up while the agent lives.
    Counter,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

/// One value another room adds to the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The metric's name; a counter's ends in `_total`. Readings of one name follow one another.
    pub name: &'static str,
    /// What the value says, in a few words.
    pub help: &'static str,
    /// What the value means.
    pub kind: Kind,
    /// Label names and their values.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

impl Reading {
    /// The reading's name with its labels, as it stands in the text format.
    pub fn series(&self) -> String {
        if self.labels.is_empty() {
            return self.name.to_owned();
        }
        let mut labels = String::new();
        for (name, value) in &self.labels {
            append_label(&mut labels, &[name], value);
        }
        format!("{}{{{labels}}}", self.name)
    }
}

/// Readings alone, as OpenMetrics 1.0 text.
pub fn openmetrics(readings: &[Reading]) -> String {
    let mut out = Text::default();
    out.readings(readings);
    out.end();
    out.into_string()
}

/// One request that stands for others in its bucket.
pub(super) struct Exemplar {
    pub(super) bucket: usize,
    pub(super) trace: TraceId,
    pub(super) value: f64,
    pub(super) at: SystemTime,
}

/// Appends `name="value"`, and a comma before it where it is not the first. The name may come
/// in parts.
pub(super) fn append_label(labels: &mut String, name: &[&str], value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    labels.extend(name.iter().copied());
    labels.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            c => labels.push(c),
        }
    }
    labels.push('"');
}

/// Text in the making. Writing to a `String` cannot fail, hence the ignored results.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a metric; its samples must follow before the next begins.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}.");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    pub(super) fn bucket(
        &mut self,
        name: &str,
        labels: &str,
        bound: &str,
        count: u64,
        exemplar: Option<&Exemplar>,
    ) {
        let _ = write!(self.0, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        if let Some(Exemplar { trace, value, at, .. }) = exemplar {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let _ = write!(self.0, " # {{trace_id=\"{trace}\"}} {value} {at:.3}");
        }
        self.0.push('\n');
    }

    pub(super) fn readings(&mut self, readings: &[Reading]) {
        let mut last = "";
        for Reading { name, help, kind, labels, value } in readings {
            if *name != last {
                // OpenMetrics names a counter without the suffix of its samples.
                self.family(name.strip_suffix("_total").unwrap_or(name), kind.as_str(), help);
                last = name;
            }
            let mut text = String::new();
            for (name, value) in labels {
                append_label(&mut text, &[name], value);
            }
            self.sample(name, &text, *value);
        }
    }

    pub(super) fn end(&mut self) {
        self.0.push_str("# EOF\n");
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut labels = String::new();
        append_label(&mut labels, &["a"], "1");
        append_label(&mut labels, &["b"], "say \"hi\"\\\n");
        assert_eq!(labels, r#"a="1",b="say \"hi\"\\\n""#);
    }

    #[test]
    fn readings_of_one_name_share_a_head_that_lacks_the_suffix() {
        let reading = |reason: &str| Reading {
            name: "sluice_things_total",
            help: "Things",
            kind: Kind::Counter,
            labels: vec![("reason", reason.to_owned())],
            value: 2.0,
        };
        let mut text = Text::default();
        text.readings(&[reading("a"), reading("b")]);
        text.end();
        assert_eq!(
            text.into_string(),
            "# TYPE sluice_things counter\n# HELP sluice_things Things.\n\
             sluice_things_total{reason=\"a\"} 2\nsluice_things_total{reason=\"b\"} 2\n# EOF\n"
        );
    }
}
