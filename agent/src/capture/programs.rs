//! The eBPF programs: the connect programs, loaded once for the cgroup, a steer program for each
//! pod's netns, and one for the kubelet's cgroup.

use std::os::fd::AsFd;

use agent_common::MAX_PODS;
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, ProgramError,
        SkLookup, links::FdLink,
    },
};

use super::{
    error::{CaptureError, Step},
    kernel_types,
    log::{self, Forwarding},
    maps::MAPS,
    netns::Netns,
    pins::Pins,
};

/// The object `build.rs` compiled, aligned as its ELF header wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SLUICE_EBPF_OBJECT"));

pub(super) const CONNECT: [&str; 2] = ["sluice_connect4", "sluice_connect6"];
pub(super) const STEER: &str = "sluice_steer";
pub(super) const KUBELET: &str = "sluice_kubelet";
/// Other programs serve all pods; no pod has this slot.
static NO_POD: u32 = u32::MAX;

/// Values of `KNOWS_INGRESS`.
static NO: u32 = 0;
static YES: u32 = 1;

/// Every slot, to be borrowed for as long as a [`Loader`] lives, as its library wants it.
static SLOTS: [u32; MAX_PODS as usize] = {
    let mut slots = [0; MAX_PODS as usize];
    let mut slot = 0;
    while slot < MAX_PODS {
        slots[slot as usize] = slot;
        slot += 1;
    }
    slots
};

/// Makes the programs, as often as there are pods.
pub(super) struct Loader {
    loader: EbpfLoader<'static>,
    /// Whether the kernel tells `steer` on which interface a SYN came in (Linux 5.17), as far as
    /// has been tried.
    knows_ingress: bool,
}

impl Loader {
    /// With the maps of `pins`; without pins the maps are new ones for every object, nobody
    /// else's, and go with the last program.
    pub(super) fn new(pins: Option<&Pins>) -> Self {
        let mut loader = kernel_types::unseen(EbpfLoader::new);
        // Nor are they to be kept in memory where they were seen.
        loader.btf(None);
        loader.override_global(aya_log::LEVEL, log::level(), false);
        if let Some(pins) = pins {
            for map in MAPS {
                loader.map_pin_path(map, pins.map(map));
            }
        }
        Self { loader, knows_ingress: true }
    }

    /// Whether `steer` tells SYNs that came by `lo` from others. To be asked when it has been
    /// loaded once.
    pub(super) fn knows_ingress(&self) -> bool {
        self.knows_ingress
    }

    /// The maps, and the programs ready to be loaded for the pod in `slot`; without a slot for
    /// all pods.
    pub(super) fn object(&mut self, slot: Option<u32>) -> Result<Ebpf, CaptureError> {
        let slot = slot.map_or(Some(&NO_POD), |slot| SLOTS.get(slot as usize));
        self.loader.override_global("POD", slot.ok_or(CaptureError::Full)?, true);
        let knows_ingress = if self.knows_ingress { &YES } else { &NO };
        self.loader.override_global("KNOWS_INGRESS", knows_ingress, true);
        self.loader.load(OBJECT).map_err(|error| CaptureError::ebpf("load the eBPF maps", &error))
    }

    /// Every program that capture cannot do without, accepted by the kernel and attached nowhere.
    pub(super) fn connect(&mut self) -> Result<Connect, CaptureError> {
        // What pods get is the same but for a number: an agent that stands by must not find out
        // only when it is in charge that the kernel does not want it.
        let mut ebpf = self.steerable(None)?;
        for name in CONNECT {
            load_connect(&mut ebpf, name)?;
        }
        Ok(Connect(ebpf))
    }

    /// Attaches a steer program of its own to the namespace of the pod in `slot`. It detaches and
    /// is unloaded when the link goes.
    pub(super) fn steer(&mut self, netns: &Netns, slot: u32) -> Result<FdLink, CaptureError> {
        attach_steer(&mut self.steerable(Some(slot))?, netns)
    }

    /// As [`object`](Self::object), with the steer program loaded as this kernel takes it.
    pub(super) fn steerable(&mut self, slot: Option<u32>) -> Result<Ebpf, CaptureError> {
        let mut ebpf = self.object(slot)?;
        match load_steer(&mut ebpf) {
            Ok(()) => Ok(ebpf),
            // It may be for want of that field alone.
            Err(_) if self.knows_ingress => {
                self.knows_ingress = false;
                self.steerable(slot)
            }
            Err(error) => Err(error),
        }
    }

    /// Attaches the kubelet's program to a cgroup. It detaches and is unloaded when the link goes.
    pub(super) fn kubelet(&mut self, cgroup: impl AsFd) -> Result<FdLink, CaptureError> {
        let mut ebpf = self.object(None)?;
        let program = load_kubelet(&mut ebpf)?;
        // `Single` as with the connect programs.
        let (egress, mode) = (CgroupSkbAttachType::Egress, CgroupAttachMode::Single);
        let attached = program.attach(cgroup, egress, mode);
        let link = attached.and_then(|link| program.take_link(link));
        let link = link.map_err(|error| CaptureError::ebpf(format!("attach {KUBELET}"), &error))?;
        link.try_into().step(format!("attach {KUBELET}"))
    }
}

/// The connect programs, loaded.
pub(super) struct Connect(Ebpf);

/// The connect programs, attached.
pub(super) struct Attached {
    /// Keep them so, as their pins do.
    pub(super) links: Vec<FdLink>,
    /// What they log is passed on for as long as it lives.
    pub(super) log: Option<Forwarding>,
}

impl Connect {
    /// Attaches them to `cgroup`, in place of a former agent's.
    pub(super) fn attach(self, pins: &Pins, cgroup: impl AsFd) -> Result<Attached, CaptureError> {
        let Self(mut ebpf) = self;
        let mut links = Vec::new();
        for name in CONNECT {
            let program: &mut CgroupSockAddr = program(&mut ebpf, name);
            // `Single` is about programs attached without a link; links are always many.
            let attached = program.attach(cgroup.as_fd(), CgroupAttachMode::Single);
            let link = attached.and_then(|link| program.take_link(link));
            let link =
                link.map_err(|error| CaptureError::ebpf(format!("attach {name}"), &error))?;
            links.push(pins.pin_link(link.try_into().step(format!("attach {name}"))?, name)?);
        }
        Ok(Attached { links, log: log::forward(&mut ebpf) })
    }
}

/// Loads one of the connect programs.
pub(super) fn load_connect<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut CgroupSockAddr, CaptureError> {
    let program: &mut CgroupSockAddr = program(ebpf, name);
    program.load().map_err(|error| refused(name, error))?;
    Ok(program)
}

/// Loads the kubelet's program.
pub(super) fn load_kubelet(ebpf: &mut Ebpf) -> Result<&mut CgroupSkb, CaptureError> {
    let program: &mut CgroupSkb = program(ebpf, KUBELET);
    program.load().map_err(|error| refused(KUBELET, error))?;
    Ok(program)
}

fn load_steer(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let program: &mut SkLookup = program(ebpf, STEER);
    program.load().map_err(|error| refused(STEER, error))
}

/// Attaches the steer program of a [steerable](Loader::steerable) object to a namespace.
pub(super) fn attach_steer(ebpf: &mut Ebpf, netns: &Netns) -> Result<FdLink, CaptureError> {
    let program: &mut SkLookup = program(ebpf, STEER);
    let attached = program.attach(netns.file()).and_then(|link| program.take_link(link));
    let attached =
        attached.map_err(|error| CaptureError::ebpf(format!("attach {STEER}"), &error))?;
    Ok(attached.into())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).and_then(|program| program.try_into().ok());
    program.expect("agent-ebpf defines it")
}

/// The verifier's output is hundreds of lines, for whoever debugs the program; the error itself
/// is for whoever runs the agent.
fn refused(program: &str, error: ProgramError) -> CaptureError {
    let step = format!("load the eBPF program {program}");
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            tracing::debug!(program, %verifier_log, "the kernel refused an eBPF program");
            CaptureError::ebpf(step, &io_error)
        }
        error => CaptureError::ebpf(step, &error),
    }
}
