//! A way down into an object as it is written.

use crate::config::yaml::{Node, Step};

/// A node below an object, and the way to it.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub(super) node: &'a Node,
    pub(super) steps: Vec<Step<'a>>,
}

impl<'a> At<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { node, steps: Vec::new() }
    }

    /// Its field `name`, if it has it.
    pub(super) fn field(&self, name: &'a str) -> Option<Self> {
        let node = self.node.field(name)?;
        Some(Self { node, steps: [&self.steps[..], &[Step::Field(name)]].concat() })
    }

    /// What it is a sequence of.
    pub(super) fn items(&self) -> impl Iterator<Item = Self> + use<'a> {
        let Self { node, steps } = self.clone();
        node.items().iter().enumerate().map(move |(index, node)| Self {
            node,
            steps: [&steps[..], &[Step::Item(index)]].concat(),
        })
    }

    /// What its field `name` is a sequence of.
    pub(super) fn each(&self, name: &'a str) -> impl Iterator<Item = Self> + use<'a> {
        self.field(name).into_iter().flat_map(|list| list.items())
    }

    /// The texts of which its field `name` is a sequence.
    pub(super) fn texts(
        &self,
        name: &'a str,
    ) -> impl Iterator<Item = (Vec<Step<'a>>, &'a str)> + use<'a> {
        self.each(name).filter_map(|item| Some((item.steps, item.node.as_text()?)))
    }
}
