//! From nothing to a node that can be captured, in two steps: one that touches nothing another
//! agent uses, and one for the agent in charge.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use agent_common::Config;

use super::{
    cgroup::Cgroup,
    enrol::{Capture, Charge, cookie},
    error::{CaptureError, Step},
    host,
    keeping::Kept,
    maps::{DialMaps, Maps, spare},
    netns::Netns,
    pins::Pins,
    programs::{Attached, Connect, Loader},
    succession::{InCharge, Next},
};

/// How capture is set up.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The cgroup2 directory whose processes are captured; `None` for the whole node.
    pub cgroup: Option<PathBuf>,
    /// Where programs, maps and links are pinned.
    pub bpffs: PathBuf,
    /// What happens to connections from a netns that is not enrolled.
    pub unknown_pods: UnknownPods,
}

/// What happens to TCP connections from a netns that is neither the node's nor enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnknownPods {
    /// They pass, in plaintext.
    Allow,
    /// connect() fails with EPERM.
    Deny,
}

/// All that can be had before this agent is in charge: its place in line, and programs that the
/// kernel has accepted. Nothing is captured by it yet.
pub struct Prepared {
    pins: Pins,
    next: Next,
    in_charge: Option<InCharge>,
    cgroup: Cgroup,
    loader: Loader,
    connect: Connect,
    unknown_pods: UnknownPods,
}

impl Prepared {
    /// Takes charge if nobody has it, else the place of the next, and loads the programs.
    ///
    /// # Errors
    /// When the node lacks something, or another agent is next already; the error says what, with
    /// a hint.
    pub fn new(options: &CaptureOptions) -> Result<Self, CaptureError> {
        host::need_root()?;
        let cgroup = Cgroup::open(options.cgroup.as_deref())?;
        for caveat in cgroup.caveats() {
            tracing::warn!(%cgroup, "{caveat}");
        }
        let pins = Pins::open(&options.bpffs)?;
        let next = Next::claim(&pins)?;
        let in_charge = next.try_in_charge()?;
        let mut loader = Loader::new(Some(&pins));
        let connect = loader.connect()?;
        if in_charge.is_none() {
            // The programs at work are another agent's, and this one has to ask for what it needs.
            spare_own(&pins, &cgroup)?;
        }
        let unknown_pods = options.unknown_pods;
        Ok(Self { pins, next, in_charge, cgroup, loader, connect, unknown_pods })
    }

    /// Whether another agent is in charge, so that [`start`](Self::start) will wait.
    pub fn stands_by(&self) -> bool {
        self.in_charge.is_none()
    }

    /// Captures the cgroup, once no other agent is in charge. Pods that a former agent enrolled
    /// stay as they are until they are enrolled again or
    /// [forgotten](Capture::forget_unknown).
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub async fn start(self) -> Result<Capture, CaptureError> {
        let Self { pins, mut next, in_charge, cgroup, loader, connect, unknown_pods } = self;
        let in_charge = match in_charge {
            Some(in_charge) => in_charge,
            None => next.in_charge().await?,
        };
        let Attached { links, log } = connect.attach(&pins, &cgroup)?;
        let mut maps = Maps::open(&pins)?;
        let own_netns = spare_own(&pins, &cgroup)?;
        let host_netns = match Netns::open(Path::new("/proc/1/ns/net")) {
            Ok(node) => cookie(&node, &mut DialMaps::open(&pins)?)?.unwrap_or(own_netns),
            // In a container that sees no processes but its own.
            Err(_) => own_netns,
        };
        let deny_unknown = u32::from(unknown_pods == UnknownPods::Deny);
        maps.configure(Config { host_netns, deny_unknown, reserved: 0 })
            .step("configure the eBPF programs")?;
        let charge = Charge { in_charge: Some(in_charge), next: Some(next) };
        let kept = Kept::new(&pins, cgroup, links)?;
        Ok(Capture::new(pins, maps, loader, log, kept, charge))
    }
}

/// Lets the agent's own connections pass, and returns the cookie of its namespace.
fn spare_own(pins: &Pins, cgroup: &Cgroup) -> Result<u64, CaptureError> {
    let own = Netns::own().step("open the agent's network namespace")?;
    let cookie = cookie(own, &mut DialMaps::open(pins)?)?
        .ok_or_else(|| CaptureError::OutsideCgroup { cgroup: cgroup.to_string() })?;
    spare(pins, cookie)?;
    Ok(cookie)
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("pins", &self.pins)
            .field("in_charge", &self.in_charge)
            .finish_non_exhaustive()
    }
}
