//! Enrolling pods, and letting them go.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use aya::programs::links::FdLink;
use tokio::{net::TcpListener, runtime::Handle, sync::watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    dial::PodDialer,
    error::{CaptureError, Step},
    keeping::Kept,
    kubelet::KubeletCgroup,
    log::Forwarding,
    maps::{DialMaps, Maps, OwnMaps},
    netlink::News,
    netns::Netns,
    pins::{Pinned, Pins, PodPin},
    programs::Loader,
    settings::Settings,
    sockets::listen,
    succession::{InCharge, Next},
    uninstall::{find_netns, give_back},
    watcher::{Held, Holding},
};
use crate::mesh::PodUid;

/// The capture of one node. Dropping it leaves everything in place: SYNs of enrolled pods are
/// refused until the next agent takes over.
pub struct Capture {
    pub(super) pins: Pins,
    state: Mutex<State>,
    charge: Mutex<Charge>,
    /// Whether pods' namespaces are this agent's to change.
    active: watch::Sender<bool>,
    /// How often somebody else had undone a part of it.
    repairs: Arc<AtomicU64>,
}

/// What this agent may do, and since when.
pub(super) struct Charge {
    /// `None` once another agent has it.
    pub(super) in_charge: Option<InCharge>,
    /// Held until the pods are taken over.
    pub(super) next: Option<Next>,
}

pub(super) struct State {
    maps: Maps,
    pub(super) loader: Loader,
    pub(super) log: Option<Forwarding>,
    pub(super) kept: Kept,
    pub(super) pods: BTreeMap<PodUid, Enrolled>,
}

/// A pod whose traffic is captured by this agent.
pub(super) struct Enrolled {
    pub(super) pin: PodPin,
    pub(super) netns: Arc<Netns>,
    /// Its steer program's, as its pin; `None` while another agent takes the pod over.
    pub(super) link: Option<FdLink>,
    held: Held,
    /// Keeps it captured as its network changes.
    _watching: AbortOnDropHandle<()>,
}

/// A pod that was just enrolled.
#[derive(Debug)]
pub struct EnrolledPod {
    /// Connections from the pod.
    pub outbound: TcpListener,
    /// Connections to the pod.
    pub inbound: TcpListener,
    /// Makes sockets inside the pod.
    pub dialer: PodDialer,
}

impl Capture {
    /// With the programs at work, and as `charge` says.
    pub(super) fn new(
        pins: Pins,
        maps: Maps,
        loader: Loader,
        log: Option<Forwarding>,
        kept: Kept,
        charge: Charge,
    ) -> Self {
        let state = State { maps, loader, log, kept, pods: BTreeMap::new() };
        Self {
            pins,
            state: Mutex::new(state),
            charge: Mutex::new(charge),
            active: watch::Sender::new(true),
            repairs: Arc::default(),
        }
    }

    /// Says that every pod there is has been taken over: whoever stood by so far has nothing to
    /// wait for, and the next may come.
    pub fn took_over(&self) {
        self.charge().next = None;
    }

    /// Whether another agent stands by to take over from this one.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has_successor(&self) -> Result<bool, CaptureError> {
        let mut charge = self.charge();
        charge.next = None;
        charge.in_charge.as_ref().map_or(Ok(false), InCharge::has_successor)
    }

    /// Lets the agent that stands by take over, and waits until it has the pods. From the call on
    /// nothing may be enrolled or unenrolled here. Listeners stay open: what has reached them
    /// before comes from them alone. `false` when that agent ended before it had all pods.
    ///
    /// # Errors
    /// When the kernel does not tell how it went.
    pub async fn hand_over(&self) -> Result<bool, CaptureError> {
        self.active.send_replace(false);
        let in_charge = {
            // Both at once, so that whoever keeps them does not open the links again in between.
            let mut charge = self.charge();
            self.state().let_go();
            charge.in_charge.take()
        };
        let Some(in_charge) = in_charge else { return Ok(true) };
        let back = in_charge.hand_over().await?;
        let taken = back.is_none();
        self.charge().in_charge = back;
        self.active.send_replace(!taken);
        Ok(taken)
    }

    /// Captures the traffic of the pod whose network namespace is `namespace`. A pod that a former
    /// agent enrolled changes hands without a moment in between. The listeners are for tasks of the
    /// runtime `served_on`.
    ///
    /// # Errors
    /// When `namespace` is not the pod's, another agent is in charge, or the kernel refuses a step;
    /// nothing is left behind.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn enroll(
        &self,
        uid: &PodUid,
        namespace: Netns,
        ips: &[IpAddr],
        served_on: &Handle,
    ) -> Result<EnrolledPod, CaptureError> {
        namespace.is_pods(ips)?;
        let netns = namespace.path().to_owned();
        let mut dials = DialMaps::open(&self.pins)?;
        let cookie = cookie(&namespace, &mut dials)?
            .ok_or_else(|| CaptureError::OutsideCgroup { cgroup: netns.display().to_string() })?;
        let step = |what: &str| format!("{what} in {}", netns.display());
        // News first: what changes after a look at the network must not be missed.
        let (news, outbound, inbound) = namespace
            .run(|| {
                let news = News::subscribe()?;
                let _there = served_on.enter();
                Ok((news, listen()?, listen()?))
            })
            .step(step("listen"))?;

        // Held until the end: the pods become another agent's between two enrolments, never in one.
        let _charge = self.in_charge()?;
        let mut state = self.state();
        let State { maps, loader, pods, .. } = &mut *state;
        let pins = self.pins.pods().step("read the pins of enrolled pods")?;
        let former = pins.pods.iter().find(|pin| pin.uid == *uid);
        if let Some(former) = former.filter(|former| former.cookie != cookie) {
            // The pod's sandbox was made anew; nothing of the old one is of use. Its slot may be
            // another pod's from here on.
            if let Some(enrolled) = pods.remove(uid) {
                enrolled.held.end();
            }
            release(maps, &self.pins, former, None)?;
        }
        let former = former.filter(|former| former.cookie == cookie);
        let slot = match former {
            Some(former) => former.slot,
            None => Maps::free_slot(&pins.slots()).ok_or(CaptureError::Full)?,
        };
        let settings = namespace.run(Settings::read).step(step("read network settings"))?;
        let pin = PodPin {
            uid: uid.clone(),
            slot,
            netns: namespace.inode(),
            cookie,
            settings: former.map_or(settings, |former| former.settings),
            more: former.map(|former| former.more.clone()).unwrap_or_default(),
        };
        let netns = Arc::new(namespace);
        let mut holding = Holding {
            slot,
            netns: netns.clone(),
            ips: ips.to_vec(),
            maps: OwnMaps::open(&self.pins)?,
        };
        // Listeners before the SYNs that need them, and marks last.
        let captured = (|| {
            maps.listen(slot, &outbound, &inbound).step(step("register the listeners"))?;
            holding.make_good().step(step("set up routing"))?;
            maps.set_addresses(slot, ips).step(step("register the pod's addresses"))?;
            let link = loader.steer(&netns, slot)?;
            let link = self.pins.pin_pod(link, &pin)?;
            maps.capture(slot, cookie).step(step("register the pod"))?;
            Ok(link)
        })();
        let link = match captured {
            Ok(link) => Some(link),
            // Still captured, and closed while nobody listens: better than let go.
            Err(error) if former.is_some() => return Err(error),
            Err(error) => {
                if let Err(left) = release(maps, &self.pins, &pin, Some(&netns)) {
                    tracing::warn!(pod = %uid, %left, "a failed enrolment left something behind");
                }
                return Err(error);
            }
        };
        let repairs = self.repairs.clone();
        let repaired = move || {
            repairs.fetch_add(1, Relaxed);
        };
        let held = Held::new(holding);
        let _watching = held.watch(&netns, news, self.active.subscribe(), repaired);
        let enrolled = Enrolled { pin, netns: netns.clone(), link, held, _watching };
        if let Some(former) = pods.insert(uid.clone(), enrolled) {
            former.held.end();
        }
        let dialer = PodDialer::new(netns, dials, loader.knows_ingress());
        Ok(EnrolledPod { outbound, inbound, dialer })
    }

    /// Ends capture of a pod and leaves its network namespace as it was before.
    ///
    /// # Errors
    /// When the kernel refuses a step; what could be undone is.
    pub fn unenroll(&self, uid: &PodUid) -> Result<(), CaptureError> {
        let _charge = self.in_charge()?;
        let mut state = self.state();
        let pinned = self.pins.pods().step("read the pins of enrolled pods")?;
        let Some(Enrolled { pin, netns, held, .. }) = state.pods.remove(uid) else {
            // One that a former agent captured, and that could not be enrolled here.
            let former = pinned.pods.iter().find(|pin| pin.uid == *uid);
            return former.map_or(Ok(()), |pin| self.release_former(&mut state, &pinned, pin));
        };
        held.end();
        // A pod that is there under another name now, as the same one in a file may be.
        let netns = Some(&*netns).filter(|_| !pinned.shares(&pin));
        release(&mut state.maps, &self.pins, &pin, netns)
    }

    /// Ends capture of a pod that is not enrolled by this agent.
    fn release_former(
        &self,
        state: &mut State,
        pinned: &Pinned,
        pin: &PodPin,
    ) -> Result<(), CaptureError> {
        let mut dials = DialMaps::open(&self.pins)?;
        // Whoever else is in the namespace needs its routing.
        let netns = Some(pin).filter(|pin| !pinned.shares(pin));
        let netns = netns.and_then(|pin| find_netns(pin, &mut dials));
        release(&mut state.maps, &self.pins, pin, netns.as_ref())
    }

    /// Ends capture of pods a former agent enrolled and that are not among `known`.
    ///
    /// # Errors
    /// When the kernel refuses a step; the first refusal is told, and the other pods let go.
    pub fn forget_unknown(&self, known: &HashSet<PodUid>) -> Result<(), CaptureError> {
        let _charge = self.in_charge()?;
        let mut state = self.state();
        let mut released = Ok(());
        let pinned = self.pins.pods().step("read the pins of enrolled pods")?;
        for name in &pinned.unread {
            tracing::warn!(name, "a pin of another version is left alone");
        }
        for pin in pinned.pods.iter().filter(|pin| !known.contains(&pin.uid)) {
            // One that this agent has enrolled meanwhile is unenrolled in order.
            if state.pods.contains_key(&pin.uid) {
                continue;
            }
            let pod = self.release_former(&mut state, &pinned, pin);
            tracing::info!(pod = %pin.uid, "let go of a pod that a former agent captured");
            released = released.and(pod);
        }
        released
    }

    /// From here on, connections of root's from `cgroup` to this node's pods go past the agent, and
    /// of no other cgroup.
    ///
    /// # Errors
    /// When the kernel refuses a step; nothing has changed then.
    pub fn pass_kubelet(&self, cgroup: &KubeletCgroup) -> Result<(), CaptureError> {
        let charge = self.charge();
        if charge.in_charge.is_none() {
            return Ok(());
        }
        let mut state = self.state();
        let State { loader, kept, .. } = &mut *state;
        kept.pass_kubelet(&self.pins, loader, cgroup)
    }

    /// From here on, nobody's connections go past the agent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pass_nobody(&self) -> Result<(), CaptureError> {
        let charge = self.charge();
        if charge.in_charge.is_none() {
            return Ok(());
        }
        self.state().kept.pass_nobody(&self.pins)
    }

    /// Counts what had been taken away and is there again.
    pub(super) fn repaired(&self) {
        self.repairs.fetch_add(1, Relaxed);
    }

    /// How often something that keeps a pod captured had been taken away, and was put back.
    pub fn repairs(&self) -> u64 {
        self.repairs.load(Relaxed)
    }

    /// What the programs counted, by name, since they were first loaded on this node.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.state().maps.counters()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the pods are not another agent's, and do not become one's before what is
    /// returned is dropped.
    fn in_charge(&self) -> Result<MutexGuard<'_, Charge>, CaptureError> {
        let charge = self.charge();
        if charge.in_charge.is_none() { Err(CaptureError::NotInCharge) } else { Ok(charge) }
    }

    pub(super) fn charge(&self) -> MutexGuard<'_, Charge> {
        self.charge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").field("pins", &self.pins).finish_non_exhaustive()
    }
}

/// Undoes an enrolment. Every step is taken even where one fails; the first failure is told.
fn release(
    maps: &mut Maps,
    pins: &Pins,
    pin: &PodPin,
    netns: Option<&Netns>,
) -> Result<(), CaptureError> {
    let step = |what: &str| format!("{what} of pod {}", pin.uid);
    // New connections go unmarked before the route that marked ones need is gone.
    let forgotten = maps.forget(pin.slot).step(step("clear the map entries"));
    let unpinned = pins.unpin_pod(pin).step(step("remove the pin"));
    let unrouted = netns
        .map_or(Ok(()), |netns| netns.run(|| give_back(pin.settings)))
        .step(step("undo the routing"));
    forgotten.and(unpinned).and(unrouted)
}

/// The kernel's cookie of a namespace, as the connect program sees it: a throw-away socket of
/// ours connects there, and the program writes down where. Works on every kernel that has
/// cookies for these programs (5.7), unlike asking with `SO_NETNS_COOKIE` (5.14). `None` when
/// the program did not run, which it would not for the sockets of real dials either.
pub(super) fn cookie(netns: &Netns, maps: &mut DialMaps) -> Result<Option<u64>, CaptureError> {
    cookie_by(Ipv4Addr::LOCALHOST.into(), netns, maps)
}

/// The same by the connect program of the family of `loopback`.
pub(super) fn cookie_by(
    loopback: IpAddr,
    netns: &Netns,
    maps: &mut DialMaps,
) -> Result<Option<u64>, CaptureError> {
    let any: IpAddr = match loopback {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut ask = || -> io::Result<u64> {
        let socket = netns.run(|| UdpSocket::bind((any, 0)))?;
        let socket_cookie = socket2::SockRef::from(&socket).cookie()?;
        maps.own.insert(socket_cookie, 0, 0).map_err(io::Error::other)?;
        // A datagram socket: nothing is sent. Where no route leads there, the program has run before
        // that was found out.
        let _ = socket.connect((loopback, 9));
        let netns_cookie = maps.own.get(&socket_cookie, 0).map_err(io::Error::other)?;
        maps.own.remove(&socket_cookie).map_err(io::Error::other)?;
        Ok(netns_cookie)
    };
    let cookie = ask().step("read the cookie of a network namespace")?;
    Ok((cookie != 0).then_some(cookie))
}
