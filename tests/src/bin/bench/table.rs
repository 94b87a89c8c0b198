//! Medians by way, as a table.

use std::{collections::BTreeMap, fmt};

use crate::world::Way;

/// One measured value.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
}

/// Every value measured so far, figures in the order they were first added.
#[derive(Default)]
pub(crate) struct Table {
    names: Vec<&'static str>,
    values: BTreeMap<(&'static str, Way), Vec<f64>>,
}

impl Table {
    pub(crate) fn add(&mut self, way: Way, Figure { name, value }: Figure) {
        if !self.names.contains(&name) {
            self.names.push(name);
        }
        self.values.entry((name, way)).or_default().push(value);
    }

    fn median(&self, name: &'static str, way: Way) -> Option<f64> {
        let mut values = self.values.get(&(name, way))?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {:<40} |", "")?;
        for way in Way::ALL {
            write!(f, " {:>12} |", way.name())?;
        }
        write!(f, "\n|{:-<42}|", "")?;
        for _ in Way::ALL {
            write!(f, "{:->13}:|", "")?;
        }
        for name in &self.names {
            write!(f, "\n| {name:<40} |")?;
            for way in Way::ALL {
                match self.median(name, way) {
                    Some(value) if value >= 100.0 => write!(f, " {value:>12.0} |")?,
                    Some(value) => write!(f, " {value:>12.3} |")?,
                    None => write!(f, " {:>12} |", "")?,
                }
            }
        }
        Ok(())
    }
}
