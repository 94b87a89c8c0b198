//! The sample's load between the two nodes, in a namespace of the mesh of its own.

use std::{fmt::Write, process::Command, time::Instant};

use crate::{NODES, Tenant, Workload, text};
use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Every kind of traffic that it has.
const KINDS: [&str; 4] = ["connects", "http1", "http2", "echo"];

/// The load, from the first node to the second.
#[derive(Debug)]
pub struct Load {
    /// The namespace that it is in.
    pub tenant: Tenant,
    /// The log of the one who counts, as its node knows it.
    log: String,
}

impl Load {
    /// Starts it, and waits until every kind of traffic flows.
    ///
    /// # Errors
    /// When it does not within the usual time.
    pub fn start(name: &str) -> anyhow::Result<Self> {
        let tenant = Tenant::new(name)?;
        let label = ["label", "namespace", tenant.namespace(), "istio.io/dataplane-mode=ambient"];
        tenant.kubectl(label)?;
        let [first, second] = NODES;
        let serving = [
            Workload::new("order-service", &["order"], 8080).on(second),
            Workload::new("echo", &["echo"], 9000).on(second),
        ];
        let calling = Workload::new("load", &["load"], 9100).on(first);
        for workloads in [serving.to_vec(), vec![calling]] {
            let names: Vec<_> = workloads.iter().map(|one| one.name().to_owned()).collect();
            tenant.deploy(workloads)?;
            names.iter().try_for_each(|name| tenant.await_deployment(name))?;
        }
        let pods = ["get", "pods", "--selector=app=load", "--output=json"];
        let pods: Value = serde_json::from_str(&tenant.kubectl(pods)?)?;
        let pod = &pods["items"][0]["metadata"];
        let (pod, uid) = (text(pod, "/name")?, text(pod, "/uid")?);
        let log = format!("/var/log/pods/{}_{pod}_{uid}/sample/0.log", tenant.namespace());
        let load = Self { tenant, log };
        load.tenant.eventually("the load has begun", || load.totals())?;
        // Names and pods are new: what failed before every part was there is nobody's fault.
        load.await_more(100)?;
        Ok(load)
    }

    /// All that was printed. Read on the node: that needs no API server.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn lines(&self) -> anyhow::Result<Vec<String>> {
        let mut cat = self.tenant.bed().node_command(NODES[0], "cat")?;
        let output = Command::output(cat.arg(&self.log))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Each line has a time, a stream and a mark before it.
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(lines.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned).collect())
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// When nothing was yet.
    pub fn totals(&self) -> anyhow::Result<Value> {
        let lines = self.lines()?;
        let last = lines.iter().rev().find(|line| line.starts_with('{'));
        Ok(serde_json::from_str(last.context("nothing counted yet")?)?)
    }

    /// Waits until `more` exchanges of each kind have come to their end.
    ///
    /// # Errors
    /// When they have not within the usual time.
    pub fn await_more(&self, more: u64) -> anyhow::Result<Value> {
        let before = self.totals()?;
        self.tenant.eventually("the load goes on", || {
            let now = self.totals()?;
            for kind in KINDS {
                let done = count(&now, kind, "tried")? - count(&before, kind, "tried")?;
                ensure!(done >= more, "{done} {kind}");
            }
            Ok(now)
        })
    }

    /// Waits until `end`, while exchanges of each kind come to their end all the time.
    ///
    /// # Errors
    /// When 200 of a kind take longer than the usual time.
    pub fn await_until(&self, end: Instant) -> anyhow::Result<Value> {
        loop {
            let now = self.await_more(200)?;
            if Instant::now() >= end {
                return Ok(now);
            }
        }
    }

    /// Waits until `more` exchanges of each kind have come to their end and none of them failed.
    ///
    /// # Errors
    /// When some fail for longer than the usual time.
    pub fn await_calm(&self, more: u64) -> anyhow::Result<()> {
        self.tenant.eventually("no more failures", || {
            let before = self.totals()?;
            let after = self.await_more(more)?;
            self.none_failed(&before, &after)
        })
    }

    /// Makes sure that nothing failed between `before` and `after`.
    ///
    /// # Errors
    /// When something did; the error has all that the load said of failures.
    pub fn none_failed(&self, before: &Value, after: &Value) -> anyhow::Result<()> {
        for kind in KINDS {
            let failed = count(after, kind, "failed")? - count(before, kind, "failed")?;
            if failed > 0 {
                let lines = self.lines()?;
                let said: Vec<_> = lines.iter().filter(|line| !line.starts_with('{')).collect();
                bail!("{failed} {kind} failed: {said:#?}");
            }
        }
        Ok(())
    }

    /// What came to its end between `before` and `after`, in words.
    ///
    /// # Errors
    /// When these are no totals.
    pub fn difference(&self, before: &Value, after: &Value) -> anyhow::Result<String> {
        let mut said = String::new();
        for kind in KINDS {
            let more =
                |what: &str| anyhow::Ok(count(after, kind, what)? - count(before, kind, what)?);
            let (tried, failed) = (more("tried")?, more("failed")?);
            let (connections, bytes) = (more("connections")?, more("bytes")?);
            write!(
                said,
                "{kind} {tried} tried, {failed} failed, {connections} connections, {bytes} bytes; "
            )?;
        }
        Ok(said)
    }
}

/// One number of `totals`: of a kind, `tried`, `failed`, `connections` or `bytes`.
fn count(totals: &Value, kind: &str, what: &str) -> anyhow::Result<u64> {
    totals[kind][what].as_u64().with_context(|| format!("no {kind} {what} in {totals}"))
}
