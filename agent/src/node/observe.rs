//! What the admin servers say about the running agent.

use std::{
    collections::BTreeMap,
    future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{runtime::Handle, sync::watch::Receiver};

use super::enrolment::Enrolment;
use crate::{
    admin::{self, Answer, Readiness, RecentLog, Status, text},
    capture::KubeletCgroup,
    config::{Origin, Source, WatchState},
    explain::{Meant, Question, Unclear, View, explain, list},
    proxy::Proxy,
    telemetry::{Failure, Kind, Reading},
};

/// The parts of the agent that can be looked at.
pub(super) struct Observed {
    pub(super) node: String,
    pub(super) readiness: Readiness,
    pub(super) source: Source,
    /// Not there before the agent is in charge.
    pub(super) enrolment: Arc<OnceLock<Arc<Enrolment>>>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) log: RecentLog,
    /// Whether the container runtime tells of new pods; `None` when it is not to be asked.
    pub(super) runtime: Option<Receiver<bool>>,
    /// Where the kubelet is, while that is known.
    pub(super) kubelet: Receiver<Option<KubeletCgroup>>,
}

impl Observed {
    /// Starts the servers of health, metrics and status. Health is answered once all threads that
    /// carry traffic have responded: where one is stuck, so is the answer.
    pub(super) fn serve(
        self,
        ready: SocketAddr,
        stats: SocketAddr,
        admin: SocketAddr,
    ) -> anyhow::Result<()> {
        let observed = Arc::new(self);
        let (here, own) = (Handle::current(), admin::own_thread()?);
        let state = observed.clone();
        let health = move |path: &str| {
            let (state, path) = (state.clone(), path.to_owned());
            async move {
                state.proxy.workers.respond().await;
                state.health(&path)
            }
        };
        admin::serve(&here, "health", "--ready-addr", ready, health)?;
        let state = observed.clone();
        let metrics = move |path: &str| future::ready(state.metrics(path));
        admin::serve(&own, "metrics", "--stats-addr", stats, metrics)?;
        let status = move |path: &str| {
            future::ready(observed.status(path).or_else(|| observed.metrics(path)))
        };
        admin::serve(&own, "status", "--admin-addr", admin, status)?;
        Ok(())
    }

    fn health(&self, path: &str) -> Option<Answer> {
        match path {
            "/healthz/live" => Some(text(StatusCode::OK, "live\n")),
            "/healthz/ready" => Some(self.readiness.answer()),
            _ => None,
        }
    }

    fn metrics(&self, path: &str) -> Option<Answer> {
        (path == "/stats/prometheus")
            .then(|| admin::openmetrics(self.proxy.telemetry.metrics().render(self.readings())))
    }

    fn status(&self, path: &str) -> Option<Answer> {
        match path {
            "/status" => Some(admin::json(serde_json::to_string(&self.current()).ok()?)),
            "/log" => Some(text(StatusCode::OK, self.log.text())),
            _ => {
                let explained = asked(path, admin::EXPLAIN, |question: Question| {
                    self.viewed(|view| explain(view, &question))
                });
                explained.or_else(|| {
                    asked(path, admin::POLICIES, |meant: Meant| {
                        self.viewed(|view| list(view, &meant))
                    })
                })
            }
        }
    }

    /// Has `answer` look at the mesh as this node sees it.
    fn viewed<A>(&self, answer: impl FnOnce(&View<'_>) -> Result<A, Unclear>) -> Result<A, String> {
        let snapshot = self.proxy.snapshots.load_full();
        let of_node = |node: &str| (node == self.node).then(|| snapshot.clone());
        let view = View { snapshot: &snapshot, of_node: &of_node, notes: &[] };
        answer(&view).map_err(|unclear| unclear.to_string())
    }

    /// What the other rooms know, beside the metrics telemetry counts itself.
    fn readings(&self) -> Vec<Reading> {
        let counters = self.enrolment.get().map(|enrolment| enrolment.capture().counters());
        let mut readings: Vec<_> = counters
            .into_iter()
            .flatten()
            .map(|(event, count)| Reading {
                name: "sluice_capture_events_total",
                help: "What the eBPF programs did",
                kind: Kind::Counter,
                labels: vec![("event", event.to_owned())],
                value: count as f64,
            })
            .collect();
        readings.extend(self.enrolment.get().map(|enrolment| Reading {
            name: "sluice_capture_repairs_total",
            help: "How often rules, settings or pins of capture were gone, and put back",
            kind: Kind::Counter,
            labels: Vec::new(),
            value: enrolment.capture().repairs() as f64,
        }));
        readings.extend(self.proxy.issuers.counts().map(|(result, count)| Reading {
            name: "sluice_jwks_fetches_total",
            help: "How often the keys of issuers of tokens were asked for",
            kind: Kind::Counter,
            labels: vec![("result", result.to_owned())],
            value: count as f64,
        }));
        let source = self.source.state().borrow().clone();
        let version = self.proxy.snapshots.load().version as f64;
        let loaded = unix(source.loaded_at);
        let rejected = if source.error.is_some() { 1.0 } else { 0.0 };
        let open = self.proxy.drain.open() as f64;
        readings.extend([
            gauge("sluice_snapshot_version", "Changes of the configuration so far", version),
            gauge("sluice_snapshot_loaded_seconds", "When it was read, Unix time", loaded),
            gauge("sluice_snapshot_rejected", "1 while a change is not in force", rejected),
            gauge(
                "sluice_snapshot_saved",
                "1 while the copy saved on this node is in force, for want of the API server",
                if source.origin == Origin::Saved { 1.0 } else { 0.0 },
            ),
            gauge(
                "sluice_objects_rejected",
                "Objects of the API server that are not in force as they are",
                source.rejected as f64,
            ),
            gauge("sluice_connections_open", "Connections being carried", open),
            gauge(
                "sluice_standby",
                "1 while another agent of this node is in charge, and this one ready to take over",
                if self.stands_by() { 1.0 } else { 0.0 },
            ),
        ]);
        readings.extend(source.watches.iter().flat_map(watch));
        readings.extend(self.runtime_connected().map(|connected| {
            gauge(
                "sluice_nri_connected",
                "1 while the container runtime tells of new pods before they start",
                if connected { 1.0 } else { 0.0 },
            )
        }));
        let pods = self.pods();
        let failed = pods.iter().filter(|pod| pod.error.is_some()).count();
        let uncertified = pods.iter().filter(|pod| pod.is_refused()).count();
        let captured = pods.len() - failed - uncertified;
        for (state, count) in
            [("captured", captured), ("uncertified", uncertified), ("failed", failed)]
        {
            readings.push(Reading {
                labels: vec![("state", state.to_owned())],
                ..gauge("sluice_pods", "Pods of this node that belong to the mesh", count as f64)
            });
        }
        // One after the other: both have connections refused.
        readings.extend(self.limits());
        readings.extend(self.admissions());
        let contradictions = self.proxy.contradictions.counts();
        readings.extend(contradictions.map(|(reason, count)| Reading {
            name: "sluice_connections_not_http_total",
            help: "Connections carried as opaque although something said that they are HTTP",
            kind: Kind::Counter,
            labels: vec![("reason", reason.to_owned())],
            value: count as f64,
        }));
        let (issued, failed) = self.proxy.identity.requests();
        for (outcome, count) in [("issued", issued), ("failed", failed)] {
            readings.push(Reading {
                name: "sluice_certificate_requests_total",
                help: "What the CA was asked, by outcome",
                kind: Kind::Counter,
                labels: vec![("outcome", outcome.to_owned())],
                value: count as f64,
            });
        }
        for certificate in self.proxy.identity.certificates() {
            let expiry = unix(certificate.not_after);
            readings.push(Reading {
                labels: vec![("principal", certificate.principal.to_string())],
                ..gauge("sluice_certificate_expiry_seconds", "When it expires, Unix time", expiry)
            });
        }
        readings
    }

    /// What policy decided.
    fn admissions(&self) -> impl Iterator<Item = Reading> {
        let admissions = &self.proxy.admissions;
        let plaintext = admissions.refused().map(|it| (Failure::MutualTlsRequired, it));
        let uncertified = admissions.uncertified().map(|it| (Failure::CertificateMissing, it));
        let refused = plaintext.chain(uncertified).map(|(reason, (client, count))| Reading {
            name: "sluice_connections_refused_total",
            help: REFUSED,
            kind: Kind::Counter,
            labels: vec![("reason", reason.as_str().to_owned()), ("client", client.to_owned())],
            value: count as f64,
        });
        let probes = Reading {
            name: "sluice_probe_connections_total",
            help: "Connections of the node itself let in although they are plaintext",
            kind: Kind::Counter,
            labels: Vec::new(),
            value: admissions.probes() as f64,
        };
        refused.chain([probes])
    }

    /// What was refused for want of room, and how much room there is.
    fn limits(&self) -> Vec<Reading> {
        let limits = &self.proxy.limits;
        let refused = limits.refusals().map(|(reason, count)| Reading {
            name: "sluice_connections_refused_total",
            help: REFUSED,
            kind: Kind::Counter,
            labels: vec![("reason", reason.to_owned())],
            value: count as f64,
        });
        let used = limits.usage().map(|(resource, used, _)| Reading {
            labels: vec![("resource", resource.to_owned())],
            ..gauge("sluice_limit_used", "How much of what is limited is in use", used as f64)
        });
        let totals = limits.usage().map(|(resource, _, total)| Reading {
            labels: vec![("resource", resource.to_owned())],
            ..gauge("sluice_limit", "The most of it that all pods may use", total as f64)
        });
        used.into_iter().chain(totals).chain(refused).collect()
    }

    fn current(&self) -> Status {
        let snapshot = self.proxy.snapshots.load();
        let source = self.source.state().borrow().clone();
        let certificates = self.proxy.identity.certificates().into_iter();
        Status {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            standby: self.stands_by(),
            pending: self.readiness.pending().iter().map(|&pending| pending.to_owned()).collect(),
            configuration: admin::Configuration {
                version: snapshot.version,
                loaded_at: rfc3339(source.loaded_at),
                origin: source.origin.as_str().to_owned(),
                workloads: snapshot.workloads().len(),
                services: snapshot.services().len(),
                error: source.error,
            },
            watches: source.watches.into_iter().map(described).collect(),
            runtime_connected: self.runtime_connected(),
            kubelet_cgroup: self.kubelet.borrow().as_ref().map(|it| it.path().to_owned()),
            same_node: self.proxy.same_node.always_tunnels(&snapshot).map(str::to_owned),
            pods: self.pods(),
            outside: self.enrolment.get().map(|enrolment| enrolment.outside()).unwrap_or_default(),
            certificates: certificates
                .map(|certificate| admin::Certificate {
                    principal: certificate.principal.to_string(),
                    serial: certificate.serial,
                    expires: rfc3339(certificate.not_after),
                    renewal: rfc3339(certificate.renewal),
                    error: certificate.error,
                })
                .collect(),
            issuers: self.issuers(),
            connections: self.proxy.drain.open(),
            counters: self.counters(),
        }
    }

    fn issuers(&self) -> Vec<admin::Issuer> {
        let state = self.proxy.issuers.state().into_iter();
        let described = state.map(|(source, state)| admin::Issuer {
            source,
            keys: state.keys,
            fetched_at: state.fetched_at.map(rfc3339),
            error: state.error,
        });
        described.collect()
    }

    fn runtime_connected(&self) -> Option<bool> {
        self.runtime.as_ref().map(|connected| *connected.borrow())
    }

    fn stands_by(&self) -> bool {
        self.enrolment.get().is_none()
    }

    fn pods(&self) -> Vec<admin::Pod> {
        self.enrolment.get().map(|enrolment| enrolment.status()).unwrap_or_default()
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let telemetry = self.proxy.telemetry.metrics().own();
        let all = self.readings().into_iter().chain(telemetry);
        all.filter(|reading| reading.kind == Kind::Counter)
            .map(|reading| (reading.series(), reading.value as u64))
            .collect()
    }
}

/// The answer to a question behind `at` in `path`; `None` where there is none.
fn asked<Q: DeserializeOwned, A: Serialize>(
    path: &str,
    at: &str,
    answer: impl FnOnce(Q) -> Result<A, String>,
) -> Option<Answer> {
    let question = URL_SAFE_NO_PAD.decode(path.strip_prefix(at)?).ok()?;
    let answer = answer(serde_json::from_slice(&question).ok()?);
    Some(admin::json(serde_json::to_string(&answer).ok()?))
}

const REFUSED: &str = "Connections refused or cut by reason; where policy did, what the client \
                       was taken for";

/// The readings of one watch on the API server.
fn watch(watch: &WatchState) -> [Reading; 4] {
    let labelled = |reading| Reading { labels: vec![("kind", watch.kind.to_owned())], ..reading };
    let counter = |name, help, value| Reading { kind: Kind::Counter, ..gauge(name, help, value) };
    let up = if watch.connected || watch.absent { 1.0 } else { 0.0 };
    let heard = watch.heard_at.map_or(0.0, unix);
    [
        labelled(gauge(
            "sluice_watch_up",
            "1 while the API server is being watched, or lacks the kind",
            up,
        )),
        labelled(gauge(
            "sluice_watch_heard_seconds",
            "When the API server last said something, Unix time; about every minute it does",
            heard,
        )),
        labelled(counter(
            "sluice_watch_restarts_total",
            "Starts of a watch after an error",
            watch.restarts as f64,
        )),
        labelled(counter(
            "sluice_watch_lists_total",
            "Lists of every object, the first included",
            watch.lists as f64,
        )),
    ]
}

fn described(watch: WatchState) -> admin::Watch {
    let age = watch.heard_at.and_then(|heard| heard.elapsed().ok());
    admin::Watch {
        kind: watch.kind.to_owned(),
        connected: watch.connected,
        absent: watch.absent,
        age_seconds: age.map(|age| age.as_secs()),
        restarts: watch.restarts,
        lists: watch.lists,
        error: watch.error,
    }
}

fn gauge(name: &'static str, help: &'static str, value: f64) -> Reading {
    Reading { name, help, kind: Kind::Gauge, labels: Vec::new(), value }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs() as f64)
}
