//! Turns files into Kubernetes objects of the kinds the agent understands.

use std::{path::Path, sync::Arc};

use k8s_openapi::{
    Metadata, Resource,
    api::{
        core::v1::{Namespace, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;

use super::{
    directory::File,
    error::{Place, Problem, nearest},
    strict::fit,
    yaml::{self, Node, Position, Step, Value},
};

/// Every object of every file, by kind.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    pub(super) namespaces: Vec<Object<Namespace>>,
    pub(super) service_accounts: Vec<Object<ServiceAccount>>,
    pub(super) pods: Vec<Object<Pod>>,
    pub(super) services: Vec<Object<Service>>,
    pub(super) slices: Vec<Object<EndpointSlice>>,
}

/// One object, with its text kept for the places of later complaints.
#[derive(Debug)]
pub(super) struct Object<T> {
    pub(super) body: T,
    source: Source,
}

#[derive(Debug)]
struct Source {
    node: Node,
    file: Arc<Path>,
}

/// Kinds by name, with the one version each is read in.
const KINDS: [(&str, &str); 6] = [
    (Namespace::KIND, Namespace::API_VERSION),
    (ServiceAccount::KIND, ServiceAccount::API_VERSION),
    (Pod::KIND, Pod::API_VERSION),
    (Service::KIND, Service::API_VERSION),
    (EndpointSlice::KIND, EndpointSlice::API_VERSION),
    ("List", "v1"),
];

impl Manifests {
    /// Reads `files`; whatever cannot be read is added to `problems`.
    pub(super) fn read(files: &[File], problems: &mut Vec<Problem>) -> Self {
        let mut manifests = Self::default();
        for File { path, text } in files {
            match yaml::parse(text) {
                Ok(documents) => {
                    for node in documents {
                        manifests.add(Source { node, file: path.clone() }, problems);
                    }
                }
                Err((position, what)) => {
                    problems.push(Problem::new(
                        Place::new(path, position),
                        format!("not readable as YAML: {what}"),
                    ));
                }
            }
        }
        manifests
    }

    fn add(&mut self, source: Source, problems: &mut Vec<Problem>) {
        match source.kind() {
            Ok("Namespace") => source.keep(&mut self.namespaces, problems, &[]),
            Ok("ServiceAccount") => source.keep(&mut self.service_accounts, problems, &[]),
            Ok("Pod") => source.keep(&mut self.pods, problems, &["spec"]),
            Ok("Service") => source.keep(&mut self.services, problems, &["spec"]),
            Ok("EndpointSlice") => source.keep(&mut self.slices, problems, &["addressType"]),
            // `KINDS` has no other name left.
            Ok(_list) => self.add_items(source, problems),
            Err(problem) => problems.push(problem),
        }
    }

    fn add_items(&mut self, source: Source, problems: &mut Vec<Problem>) {
        let Source { node, file } = source;
        let Value::Mapping(entries) = node.value else { return };
        for entry in entries {
            let problem = |position: Position, what: String| {
                Problem::new(Place::new(&file, Some(position)), what)
            };
            match (entry.key.as_str(), entry.value.value) {
                ("items", Value::Sequence(items)) => {
                    for node in items {
                        self.add(Source { node, file: file.clone() }, problems);
                    }
                }
                ("apiVersion" | "kind" | "metadata", _) | ("items", Value::Null) => {}
                ("items", _) => problems
                    .push(problem(entry.value.position, "items: expected a sequence".to_owned())),
                (unknown, _) => problems.push(
                    problem(entry.position, format!("{unknown} is not a field of List"))
                        .hint("the fields are apiVersion, kind, metadata, items"),
                ),
            }
        }
    }
}

impl Source {
    /// The name of the object's kind, if it is one of [`KINDS`].
    fn kind(&self) -> Result<&str, Problem> {
        if !matches!(self.node.value, Value::Mapping(_)) {
            return Err(self
                .problem(&[], "not a Kubernetes object")
                .hint("an object starts with apiVersion and kind"));
        }
        let required = |field| {
            self.node.text(field).ok_or_else(|| {
                self.problem(&[Step::Field(field)], format!("the object names no {field}"))
                    .hint(format!("supported kinds are {}", supported()))
            })
        };
        let (version, kind) = (required("apiVersion")?, required("kind")?);
        let unsupported = |field, what: String| self.problem(&[Step::Field(field)], what);
        match KINDS.iter().find(|(name, _)| *name == kind) {
            Some((_, expected)) if *expected == version => Ok(kind),
            // `Service` is a name other API groups use for things of their own.
            Some((_, expected)) if group(version) == group(expected) => {
                Err(unsupported("apiVersion", format!("{version} is no version of {kind}"))
                    .hint(format!("write apiVersion: {expected}")))
            }
            _ if group(version).ends_with("istio.io")
                || group(version) == "gateway.networking.k8s.io" =>
            {
                Err(unsupported("kind", format!("{kind} ({version}) is not supported yet"))
                    .hint(format!("supported kinds are {}", supported())))
            }
            _ => {
                let hint = match nearest(kind, KINDS.map(|(name, _)| name)) {
                    Some(near) if near != kind => format!("did you mean `{near}`?"),
                    _ => format!("supported kinds are {}", supported()),
                };
                Err(unsupported("kind", format!("{kind} ({version}) is no kind the agent knows"))
                    .hint(hint))
            }
        }
    }

    fn keep<T>(self, objects: &mut Vec<Object<T>>, problems: &mut Vec<Problem>, required: &[&str])
    where
        T: for<'n> Deserialize<'n> + Metadata<Ty = ObjectMeta>,
    {
        let before = problems.len();
        let name: &[Step<'_>] = &["metadata".into(), "name".into()];
        let fields = required.iter().map(|field| vec![Step::Field(field)]);
        for steps in fields.chain([name.to_vec()]) {
            if self.node.at(&steps).is_none() {
                problems.push(self.missing(&steps));
            }
        }
        match fit::<T>(&self.node) {
            Ok(body) if problems.len() == before => {
                let object = Object { body, source: self };
                problems.extend(object.illegal_names());
                objects.push(object);
            }
            Ok(_) => {}
            Err(misfits) => problems.extend(misfits.into_iter().map(|misfit| {
                let place = Place::new(&self.file, Some(misfit.position));
                let problem = Problem::new(place, misfit.what);
                match misfit.hint {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                }
            })),
        }
    }

    fn place(&self, steps: &[Step<'_>]) -> Place {
        Place::new(&self.file, Some(self.node.nearest_position(steps)))
    }

    fn problem(&self, steps: &[Step<'_>], what: impl Into<String>) -> Problem {
        Problem::new(self.place(steps), what)
    }

    fn missing(&self, steps: &[Step<'_>]) -> Problem {
        self.problem(steps, format!("{} is missing", dotted(steps)))
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
        self.source.place(steps)
    }

    /// Something wrong with the field `steps` below, which `what` speaks of after its path.
    pub(super) fn problem(&self, steps: &[Step<'_>], what: impl std::fmt::Display) -> Problem {
        self.source.problem(steps, format!("{} {what}", dotted(steps)))
    }

    /// The complaint about a required field, if the text lacks it.
    pub(super) fn require(&self, steps: &[Step<'_>]) -> Result<(), Problem> {
        match self.source.node.at(steps) {
            Some(_) => Ok(()),
            None => Err(self.source.missing(steps)),
        }
    }

    fn illegal_names(&self) -> Option<Problem> {
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

/// The API group of an `apiVersion`; empty for the core group.
fn group(version: &str) -> &str {
    version.rsplit_once('/').map_or("", |(group, _)| group)
}

fn supported() -> String {
    KINDS.map(|(kind, version)| format!("{kind} ({version})")).join(", ")
}

fn dotted(steps: &[Step<'_>]) -> String {
    steps.iter().fold(String::new(), |path, step| match step {
        Step::Field(name) if path.is_empty() => (*name).to_owned(),
        Step::Field(name) => format!("{path}.{name}"),
        Step::Item(index) => format!("{path}[{index}]"),
    })
}
