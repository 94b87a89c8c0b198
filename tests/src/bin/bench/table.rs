//! Medians by column, with ratios, as a table in Markdown.

use std::{collections::HashMap, fmt};

use crate::{
    column::{Column, Way},
    row::Row,
};

/// One measured value: what it is, and how much.
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) value: f64,
}

impl Figure {
    pub(crate) fn new(what: &'static str, value: f64) -> Self {
        Self { what, value }
    }
}

/// What each value is a multiple of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Against {
    /// This build's column of that way.
    Way(Way),
    /// The same way of the other build.
    Other,
}

type Line = (Row, &'static str);

/// Every value measured so far; columns and lines in the order they were first added.
pub(crate) struct Table {
    against: Against,
    columns: Vec<Column>,
    lines: Vec<Line>,
    values: HashMap<(Line, Column), Vec<f64>>,
}

impl Table {
    pub(crate) fn new(against: Against, columns: Vec<Column>) -> Self {
        Self { against, columns, lines: Vec::new(), values: HashMap::new() }
    }

    pub(crate) fn add(&mut self, row: Row, column: Column, Figure { what, value }: Figure) {
        // CPU time of nobody, or latencies of nothing.
        if value == 0.0 || value.is_nan() {
            return;
        }
        let line = (row, what);
        if !self.lines.contains(&line) {
            self.lines.push(line);
        }
        self.values.entry((line, column)).or_default().push(value);
    }

    fn median(&self, line: Line, column: Column) -> Option<f64> {
        median(self.values.get(&(line, column))?.clone())
    }

    /// A column's value as a multiple of the one it is compared with.
    fn ratio(&self, line: Line, column: Column) -> Option<f64> {
        let base = match self.against {
            Against::Way(way) => Column { way, beside: false },
            Against::Other => Column { beside: true, ..column },
        };
        if base == column {
            return None;
        }
        let base = self.median(line, base).filter(|base| *base > 0.0)?;
        Some(self.median(line, column)? / base)
    }

    fn cell(&self, line: Line, column: Column) -> String {
        match (self.median(line, column), self.ratio(line, column)) {
            (None, _) => "–".to_owned(),
            (Some(value), None) => number(value),
            (Some(value), Some(ratio)) => format!("{} ({ratio:.2}x)", number(value)),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(self.columns.iter().map(ToString::to_string));
        for line @ (row, what) in self.lines.iter().copied() {
            let cells = self.columns.iter().map(|column| self.cell(line, *column));
            let name = format!("{}: {what}", row.name());
            rows.push([name].into_iter().chain(cells).collect());
        }
        let widest = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..=self.columns.len()).map(widest).collect();
        for (at, row) in rows.iter().enumerate() {
            write!(f, "| {:<1$} |", row[0], widths[0])?;
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                write!(f, " {cell:>width$} |")?;
            }
            writeln!(f)?;
            if at == 0 {
                write!(f, "|{:-<1$}|", "", widths[0] + 2)?;
                widths[1..].iter().try_for_each(|width| write!(f, "{:->1$}:|", "", width + 1))?;
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// Three digits that count, or whole thousands with commas.
fn number(value: f64) -> String {
    match value.abs() {
        ..1.0 => format!("{value:.3}"),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

/// The one in the middle, or between the two that are; none of none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (below, above) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values[below] + values[above]) / 2.0)
}
