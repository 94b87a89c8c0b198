//! Keeps what capture has in the kernel from going.
//!
//! A pin is a file: a job that cleans up may remove it, and with the last reference to a link its
//! program is detached. The agent in charge holds every link and map as well, looks every few
//! seconds whether its pins are there, and pins what is not: capture goes on meanwhile, and outlives
//! the agent again afterwards. Whether a program is attached can be told of the connect programs
//! alone, by what they do; of what root on the node detaches from a pod by hand the kernel says
//! nothing.

use std::net::Ipv6Addr;

use aya::{maps::MapData, programs::links::FdLink};

use super::{
    cgroup::Cgroup,
    enrol::{Capture, Charge, Enrolled, State, cookie, cookie_by},
    error::{CaptureError, Step},
    kubelet::KubeletCgroup,
    log::Forwarding,
    maps::{DialMaps, MAPS, pinned},
    netns::Netns,
    pins::Pins,
    programs::{Attached, CONNECT, KUBELET, Loader},
};

/// What pods have in common, held beside its pins.
pub(super) struct Kept {
    maps: Vec<(&'static str, MapData)>,
    /// What is captured, for programs to attach to.
    cgroup: Cgroup,
    /// The connect programs'. None while another agent takes over.
    connect: Vec<FdLink>,
    /// Whose connections pass, and the link of the program that sees to it.
    kubelet: Option<(KubeletCgroup, Option<FdLink>)>,
}

impl Kept {
    /// With the maps that are pinned, and the connect programs attached to `cgroup`.
    pub(super) fn new(
        pins: &Pins,
        cgroup: Cgroup,
        connect: Vec<FdLink>,
    ) -> Result<Self, CaptureError> {
        let open = |&name: &&'static str| Ok((name, pinned(pins, name)?));
        let maps = MAPS.iter().map(open).collect::<Result<_, CaptureError>>()?;
        Ok(Self { maps, cgroup, connect, kubelet: None })
    }

    /// See [`Capture::pass_kubelet`].
    pub(super) fn pass_kubelet(
        &mut self,
        pins: &Pins,
        loader: &mut Loader,
        cgroup: &KubeletCgroup,
    ) -> Result<(), CaptureError> {
        let directory = cgroup.open().step(format!("open {}", cgroup.path().display()))?;
        let link = pins.pin_link(loader.kubelet(directory)?, KUBELET)?;
        self.kubelet = Some((cgroup.clone(), Some(link)));
        Ok(())
    }

    /// See [`Capture::pass_nobody`].
    pub(super) fn pass_nobody(&mut self, pins: &Pins) -> Result<(), CaptureError> {
        self.kubelet = None;
        pins.unpin_link(KUBELET).step("remove the pin of the kubelet's link")
    }
}

impl State {
    /// Leaves everything to its pins, so that another agent may put others in their place.
    pub(super) fn let_go(&mut self) {
        self.log = None;
        self.kept.connect.clear();
        if let Some((_, link)) = &mut self.kept.kubelet {
            *link = None;
        }
        self.pods.values_mut().for_each(|pod| pod.link = None);
    }
}

impl Capture {
    /// Holds and pins everything that capture consists of, where this agent is in charge. What was
    /// gone is counted as a [repair](Self::repairs). Blocks.
    ///
    /// # Errors
    /// When the kernel refuses a step, of which the first is told and the others are taken;
    /// [`CaptureError::InUse`] when another agent has made pins of its own in the meantime.
    pub fn keep(&self) -> Result<(), CaptureError> {
        let mut charge = self.charge();
        let Charge { in_charge: Some(in_charge), next } = &mut *charge else { return Ok(()) };
        // Before anything is made there: another agent may have come to an empty place.
        self.pins.make_directories()?;
        in_charge.renew()?;
        next.as_mut().map_or(Ok(()), |next| next.renew())?;
        let mut state = self.state();
        let State { loader, log, kept, pods, .. } = &mut *state;
        // Maps first: programs that are loaded without them would have others.
        let maps = kept.maps.iter().filter(|(name, _)| !self.pins.map(name).exists());
        maps.map(|(name, map)| {
            let pinned = map.pin(self.pins.map(name)).step(format!("pin the eBPF map {name}"));
            self.made_good(pinned, name)
        })
        .fold(Ok(()), Result::and)?;

        let connect = self.keep_connect(kept, loader, log);
        let kubelet = self.keep_kubelet(kept, loader);
        let pods = pods.values_mut().map(|pod| self.keep_pod(pod, loader));
        pods.fold(connect.and(kubelet), Result::and)
    }

    fn keep_connect(
        &self,
        kept: &mut Kept,
        loader: &mut Loader,
        log: &mut Option<Forwarding>,
    ) -> Result<(), CaptureError> {
        if self.connect_runs()? && CONNECT.iter().all(|name| self.pins.has_link(name)) {
            if kept.connect.is_empty() {
                kept.connect = CONNECT.iter().filter_map(|name| self.pins.link(name)).collect();
            }
            return Ok(());
        }
        // The lines of both would come through one buffer, which has one reader.
        *log = None;
        let attached = loader.connect().and_then(|it| it.attach(&self.pins, &kept.cgroup));
        let attached = attached.map(|Attached { links, log: forwarding }| {
            kept.connect = links;
            *log = forwarding;
        });
        self.made_good(attached, "the connect programs")
    }

    /// Whether the connect programs do what they are there for.
    fn connect_runs(&self) -> Result<bool, CaptureError> {
        let own = Netns::own().step("open the agent's network namespace")?;
        let mut maps = DialMaps::open(&self.pins)?;
        let runs = cookie(own, &mut maps)?.is_some();
        // Where there are no sockets of IPv6, nobody connects by it.
        let ipv6 = cookie_by(Ipv6Addr::LOCALHOST.into(), own, &mut maps);
        Ok(runs && ipv6.map_or(true, |cookie| cookie.is_some()))
    }

    fn keep_kubelet(&self, kept: &mut Kept, loader: &mut Loader) -> Result<(), CaptureError> {
        let Some((cgroup, link)) = &mut kept.kubelet else { return Ok(()) };
        if self.pins.has_link(KUBELET) {
            *link = link.take().or_else(|| self.pins.link(KUBELET));
            return Ok(());
        }
        let cgroup = cgroup.clone();
        let passed = kept.pass_kubelet(&self.pins, loader, &cgroup);
        self.made_good(passed, "the kubelet's program")
    }

    fn keep_pod(&self, pod: &mut Enrolled, loader: &mut Loader) -> Result<(), CaptureError> {
        if self.pins.has_pod(&pod.pin) {
            pod.link = pod.link.take().or_else(|| self.pins.pod(&pod.pin));
            return Ok(());
        }
        let steer = loader.steer(&pod.netns, pod.pin.slot);
        let pinned = steer.and_then(|link| self.pins.pin_pod(link, &pod.pin));
        let pinned = pinned.map(|link| pod.link = Some(link));
        self.made_good(pinned, "a pod's steer program")
    }

    /// Counts and says that `what` was gone and is there again, where it is.
    fn made_good(&self, made: Result<(), CaptureError>, what: &str) -> Result<(), CaptureError> {
        if made.is_ok() {
            tracing::warn!(what, "somebody removed what capture has pinned; it is there again");
            self.repaired();
        }
        made
    }
}
