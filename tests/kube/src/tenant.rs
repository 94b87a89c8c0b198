//! A Kubernetes namespace of a test's own.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Stdio, id},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{Bed, Workload};

/// How long anything may take that should take seconds.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A namespace in the cluster that is up. Everything in it goes with it.
#[derive(Debug)]
pub struct Tenant {
    bed: Bed,
    namespace: String,
}

impl Tenant {
    /// Makes the namespace; its name holds `name`, which is unique among tests.
    ///
    /// # Errors
    /// When no cluster is up, or the namespace cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let bed = Bed::find()?.context("no cluster is up (hint: cargo xtask kube test)")?;
        let tenant = Self { bed, namespace: format!("{name}-{}", id()) };
        tenant.kubectl(["create", "namespace", &tenant.namespace])?;
        // Pods are refused until it has its account.
        let account = ["wait", "--for=create", "--timeout", "120s", "serviceaccount/default"];
        tenant.kubectl(account)?;
        Ok(tenant)
    }

    /// Its name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cluster it is in.
    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    /// Runs `kubectl` in the namespace to its end, and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error holds what it said.
    pub fn kubectl<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<String> {
        let mut command = self.bed.command("kubectl");
        command.args(["--namespace", &self.namespace]).args(arguments);
        finish(command, "")
    }

    /// Makes or changes an object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let mut command = self.bed.command("kubectl");
        command.args(["--namespace", &self.namespace, "apply", "--filename", "-"]);
        finish(command, &object.to_string()).map(drop)
    }

    /// Makes workloads, which may never be ready.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn deploy(&self, workloads: impl IntoIterator<Item = Workload>) -> anyhow::Result<()> {
        let objects: Vec<_> = workloads.into_iter().flat_map(Workload::objects).collect();
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))
    }

    /// Waits until a Deployment has all its replicas ready.
    ///
    /// # Errors
    /// When it has not within [`PATIENCE`]; the error shows the pods.
    pub fn await_deployment(&self, name: &str) -> anyhow::Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let target = format!("deployment/{name}");
        self.kubectl(["rollout", "status", &timeout, &target]).map(drop).or_else(|error| {
            let events = self.kubectl(["get", "pods,events", "--output=wide"])?;
            Err(error.context(events))
        })
    }

    /// Tries until `what` holds.
    ///
    /// # Errors
    /// The last one of `try_it`, when it does not succeed within [`PATIENCE`].
    pub fn eventually<T>(
        &self,
        what: &str,
        mut try_it: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match try_it() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("{what}: not within {PATIENCE:?}")));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // The cluster may be gone. Nobody waits for the pods: the next test has another name.
        let _ = self.kubectl(["delete", "namespace", "--wait=false", &self.namespace]);
    }
}

pub(crate) fn finish(mut command: Command, input: &str) -> anyhow::Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("could not run {command:?}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // One that stops reading says why on its standard error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output =
        child.wait_with_output().with_context(|| format!("could not wait for {command:?}"))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|one| one.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", arguments.join(" "), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
