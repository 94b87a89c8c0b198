//! Medians by way, as a table.

use std::{collections::BTreeMap, fmt};

use crate::world::Way;

/// One measured value.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
}

/// What is measured: a way, through the agents of one build.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Column {
    pub(crate) way: Way,
    /// By the build that this one is compared with.
    pub(crate) beside: bool,
}

/// Every value measured so far, columns and figures in the order they were first added.
#[derive(Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    names: Vec<&'static str>,
    values: BTreeMap<(&'static str, Column), Vec<f64>>,
}

impl Table {
    pub(crate) fn add(&mut self, column: Column, Figure { name, value }: Figure) {
        if !self.columns.contains(&column) {
            self.columns.push(column);
        }
        if !self.names.contains(&name) {
            self.names.push(name);
        }
        self.values.entry((name, column)).or_default().push(value);
    }

    fn median(&self, name: &'static str, column: Column) -> Option<f64> {
        let mut values = self.values.get(&(name, column))?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {:<40} |", "")?;
        for column in &self.columns {
            write!(f, " {:>20} |", column.to_string())?;
        }
        write!(f, "\n|{:-<42}|", "")?;
        for _ in &self.columns {
            write!(f, "{:->21}:|", "")?;
        }
        for name in &self.names {
            write!(f, "\n| {name:<40} |")?;
            for column in &self.columns {
                match self.median(name, *column) {
                    Some(value) if value >= 100.0 => write!(f, " {value:>20.0} |")?,
                    Some(value) => write!(f, " {value:>20.3} |")?,
                    None => write!(f, " {:>20} |", "")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.way.name(), if self.beside { ", other" } else { "" })
    }
}
