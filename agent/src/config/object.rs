//! One Kubernetes object, and how to speak of what is wrong with it.

use std::{fmt, path::Path, sync::Arc};

use k8s_openapi::{Metadata, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{
    error::{Place, Problem},
    yaml::{Node, Step},
};

/// One object with what is known of where it was written.
#[derive(Debug)]
pub(super) struct Object<T> {
    pub(super) body: T,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(Text),
    /// The API server, which checked the form of everything; what is left to say is which object
    /// it is.
    Cluster,
}

/// An object's text, kept for the places of later complaints.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) node: Node,
    pub(super) file: Arc<Path>,
}

impl<T> Object<T> {
    pub(super) fn of_file(body: T, text: Text) -> Self {
        Self { body, source: Source::File(text) }
    }

    pub(super) fn of_cluster(body: T) -> Self {
        Self { body, source: Source::Cluster }
    }

    /// Whether whoever runs the node wrote it, and not whoever may create pods in a cluster.
    pub(super) fn is_of_file(&self) -> bool {
        matches!(self.source, Source::File(_))
    }
}

impl Text {
    pub(super) fn problem(&self, steps: &[Step<'_>], what: impl Into<String>) -> Problem {
        Problem::new(self.place(steps), what)
    }

    pub(super) fn missing(&self, steps: &[Step<'_>]) -> Problem {
        self.problem(steps, format!("{} is missing", dotted(steps)))
    }

    fn place(&self, steps: &[Step<'_>]) -> Place {
        Place::new(&self.file, Some(self.node.nearest_position(steps)))
    }
}

impl<T: Metadata<Ty = ObjectMeta>> Object<T> {
    /// The object's name.
    pub(super) fn name(&self) -> &str {
        self.body.metadata().name.as_deref().unwrap_or_default()
    }

    /// The object's namespace: `default` where none is written, as with `kubectl apply`.
    pub(super) fn namespace(&self) -> &str {
        self.body.metadata().namespace.as_deref().unwrap_or("default")
    }

    /// The value of the label `key`.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.body.metadata().labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Where the field `steps` below is.
    pub(super) fn place(&self, steps: &[Step<'_>]) -> Place {
        match &self.source {
            Source::File(text) => text.place(steps),
            Source::Cluster => Place::object(&named::<T>(self.namespace(), self.name())),
        }
    }

    /// Something wrong with the field `steps` below, which `what` speaks of after its path.
    pub(super) fn problem(&self, steps: &[Step<'_>], what: impl fmt::Display) -> Problem {
        Problem::new(self.place(steps), format!("{} {what}", dotted(steps)))
    }

    /// What is written of it, where it is of a file.
    pub(super) fn node(&self) -> Option<&Node> {
        match &self.source {
            Source::File(text) => Some(&text.node),
            Source::Cluster => None,
        }
    }

    /// The complaint about a required field, if the text lacks it.
    pub(super) fn require(&self, steps: &[Step<'_>]) -> Result<(), Problem> {
        match &self.source {
            Source::File(text) if text.node.at(steps).is_none() => Err(text.missing(steps)),
            _ => Ok(()),
        }
    }

    pub(super) fn illegal_names(&self) -> Option<Problem> {
        let legal = |name: &str| {
            !name.is_empty()
                && name.len() <= 253
                && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.'))
        };
        let field = [("name", self.name()), ("namespace", self.namespace())]
            .into_iter()
            .find(|(_, name)| !legal(name));
        field.map(|(field, name)| {
            self.problem(
                &["metadata".into(), field.into()],
                format_args!("`{}` is not a name Kubernetes allows", name.escape_debug()),
            )
            .hint("lower-case letters, digits, `-` and `.`, at most 253")
        })
    }
}

/// What people call an object: `Pod shop/order`, `Namespace shop`.
pub(super) fn named<T: Resource>(namespace: &str, name: &str) -> String {
    match T::KIND {
        "Namespace" => format!("Namespace {name}"),
        kind => format!("{kind} {namespace}/{name}"),
    }
}

pub(super) fn dotted(steps: &[Step<'_>]) -> String {
    steps.iter().fold(String::new(), |path, step| match step {
        Step::Field(name) if path.is_empty() => (*name).to_owned(),
        Step::Field(name) => format!("{path}.{name}"),
        Step::Item(index) => format!("{path}[{index}]"),
    })
}
