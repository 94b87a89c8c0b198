//! Who series are about: a side of a connection or a Service, held once for all series of it.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize},
    },
};

use super::text::append_label;
use crate::{
    mesh::{Principal, Service, Workload},
    telemetry::flow::{Flow, Reporter, SecurityPolicy},
};

const UNKNOWN: &str = "unknown";
/// What the labels of a side are called, behind `source_` or `destination_`.
const SIDE: [&str; 8] = [
    "workload",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "cluster",
    "canonical_service",
    "canonical_revision",
];
const SERVICE: [&str; 3] =
    ["destination_service", "destination_service_name", "destination_service_namespace"];

/// The values of some labels that always stand together. Two of the same values are equal,
/// whether they are one object or not.
pub(super) struct Party {
    hash: u64,
    /// Each with a line break behind it. One within a value becomes a space, so that values
    /// cannot shift.
    values: Box<str>,
    /// A workload of the mesh, by the first two values. Nobody leaves a mesh that is in none.
    workload: bool,
    /// Series held on behalf of this workload.
    pub(super) series: AtomicUsize,
    /// When it left the mesh, in seconds of [`super::Metrics`]' clock and never 0; else 0.
    pub(super) left: AtomicU32,
}

impl Party {
    fn values(&self) -> impl Iterator<Item = &str> {
        self.values.split_terminator('\n')
    }

    /// The workload's namespace and name.
    pub(super) fn workload(&self) -> Option<(&str, &str)> {
        let mut values = self.values();
        let (name, namespace) = (values.next()?, values.next()?);
        self.workload.then_some((namespace, name))
    }
}

impl PartialEq for Party {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self.workload == other.workload && self.values == other.values)
    }
}

impl Eq for Party {}

impl Hash for Party {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl PartialOrd for Party {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Party {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.values, self.workload).cmp(&(&other.values, other.workload))
    }
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.values()).finish()
    }
}

/// Every party there is.
#[derive(Debug, Default)]
pub(super) struct Parties {
    known: papaya::HashMap<Arc<Party>, ()>,
    hasher: RandomState,
}

impl Parties {
    fn side(
        &self,
        workload: Option<&Workload>,
        principal: Option<&Principal>,
        cluster: &str,
    ) -> Arc<Party> {
        let principal = principal.map(Principal::to_string);
        let of = |value: fn(&Workload) -> &str| workload.map_or(UNKNOWN, value);
        let values: [&str; SIDE.len()] = [
            of(|pod| &pod.owner.name),
            of(|pod| &pod.namespace),
            principal.as_deref().unwrap_or(UNKNOWN),
            of(Workload::app),
            of(Workload::version),
            if workload.is_some() { cluster } else { UNKNOWN },
            of(Workload::canonical_service),
            workload.map_or("latest", Workload::canonical_revision),
        ];
        self.of(&values, workload.is_some())
    }

    fn service(&self, service: Option<&Service>) -> Arc<Party> {
        let hostname = service.map(Service::hostname);
        let values: [&str; SERVICE.len()] = [
            hostname.as_deref().unwrap_or(UNKNOWN),
            service.map_or(UNKNOWN, |service| service.id.name()),
            service.map_or(UNKNOWN, |service| service.id.namespace()),
        ];
        self.of(&values, false)
    }

    fn of(&self, values: &[&str], workload: bool) -> Arc<Party> {
        let mut text = String::with_capacity(values.iter().map(|value| value.len() + 1).sum());
        for value in values {
            text.extend(value.chars().map(|c| if c == '\n' { ' ' } else { c }));
            text.push('\n');
        }
        let party = Arc::new(Party {
            hash: self.hasher.hash_one((&*text, workload)),
            values: text.into(),
            workload,
            series: AtomicUsize::new(0),
            left: AtomicU32::new(0),
        });
        let known = self.known.pin();
        if known.try_insert(party.clone(), ()).is_ok() {
            return party;
        }
        known.get_key_value(&party).map_or(party, |(known, ())| known.clone())
    }

    /// Forgets those that nobody speaks of.
    pub(super) fn retain(&self) {
        self.known.pin().retain(|party, ()| Arc::strong_count(party) > 1);
    }
}

/// The labels that every series of a flow has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Labels {
    /// `None` in the series that takes what is over the limits.
    reporter: Option<Reporter>,
    source: Arc<Party>,
    destination: Arc<Party>,
    service: Arc<Party>,
    /// `None` there too.
    security: Option<SecurityPolicy>,
}

impl Labels {
    pub(super) fn of(flow: &Flow, parties: &Parties, cluster: &str) -> Self {
        let (source, destination) = (flow.source(), flow.destination());
        let side = |workload: Option<&Arc<Workload>>, principal: &Option<Principal>| {
            parties.side(workload.map(|workload| &**workload), principal.as_ref(), cluster)
        };
        Self {
            reporter: Some(flow.reporter),
            source: side(source, &flow.source_principal),
            destination: side(destination, &flow.destination_principal),
            service: parties.service(flow.service.as_deref()),
            // The source cannot know what the other side enforced (Istio's standard metrics).
            security: Some(match flow.reporter {
                Reporter::Source => SecurityPolicy::None,
                Reporter::Destination => flow.security,
            }),
        }
    }

    /// Those of what is over the limits.
    pub(super) fn overflow(parties: &Parties) -> Self {
        let side = parties.of(&["overflow"; SIDE.len()], false);
        let service = parties.of(&["overflow"; SERVICE.len()], false);
        Self { reporter: None, source: side.clone(), destination: side, service, security: None }
    }

    /// The workload on whose behalf is counted.
    pub(super) fn local(&self) -> &Party {
        match self.reporter {
            Some(Reporter::Destination) => &self.destination,
            _ => &self.source,
        }
    }

    /// Both sides.
    pub(super) fn sides(&self) -> [&Party; 2] {
        [&self.source, &self.destination]
    }

    pub(super) fn append_to(&self, out: &mut String) {
        let (reporter, security) = match (self.reporter, self.security) {
            (Some(Reporter::Source), _) => ("source", UNKNOWN),
            (Some(Reporter::Destination), Some(security)) => ("destination", security.as_str()),
            (None, _) | (_, None) => ("overflow", "overflow"),
        };
        append_label(out, &["reporter"], reporter);
        for (side, party) in [("source_", &self.source), ("destination_", &self.destination)] {
            for (name, value) in SIDE.into_iter().zip(party.values()) {
                append_label(out, &[side, name], value);
            }
        }
        for (name, value) in SERVICE.into_iter().zip(self.service.values()) {
            append_label(out, &[name], value);
        }
        append_label(out, &["connection_security_policy"], security);
    }
}
