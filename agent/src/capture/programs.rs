//! The eBPF programs: the connect programs, loaded once for the cgroup, and a steer program for
//! each pod's netns.

use std::os::fd::AsFd;

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SkLookup, links::FdLink},
};

use super::{
    error::{CaptureError, Step},
    log,
    maps::MAPS,
    netns::Netns,
    pins::Pins,
};

/// The object `build.rs` compiled, aligned as its ELF header wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SLUICE_EBPF_OBJECT"));

pub(super) const CONNECT: [&str; 2] = ["sluice_connect4", "sluice_connect6"];
pub(super) const STEER: &str = "sluice_steer";
/// The connect programs serve all pods; no pod has this slot.
const NO_POD: u32 = u32::MAX;

/// Attaches the connect programs to `cgroup`, in place of a former agent's.
pub(super) fn connect(pins: &Pins, cgroup: impl AsFd) -> Result<(), CaptureError> {
    let mut ebpf = object(Some(pins), NO_POD)?;
    for name in CONNECT {
        let program = load_connect(&mut ebpf, name)?;
        // `Single` is about programs attached without a link; links are always many.
        let attached = program.attach(cgroup.as_fd(), CgroupAttachMode::Single);
        let link = attached.and_then(|link| program.take_link(link));
        let link = link.map_err(|error| CaptureError::ebpf(format!("attach {name}"), &error))?;
        pins.pin_link(link.try_into().step(format!("attach {name}"))?, name)?;
    }
    log::forward(&mut ebpf);
    Ok(())
}

/// Attaches a steer program of its own to the namespace of the pod in `slot`. It detaches and is
/// unloaded when the link goes.
pub(super) fn steer(pins: &Pins, netns: &Netns, slot: u32) -> Result<FdLink, CaptureError> {
    attach_steer(&mut object(Some(pins), slot)?, netns)
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

/// Loads the steer program and attaches it to a namespace.
pub(super) fn attach_steer(ebpf: &mut Ebpf, netns: &Netns) -> Result<FdLink, CaptureError> {
    let program: &mut SkLookup = program(ebpf, STEER);
    program.load().map_err(|error| refused(STEER, error))?;
    let attached = program.attach(netns.file()).and_then(|link| program.take_link(link));
    let attached =
        attached.map_err(|error| CaptureError::ebpf(format!("attach {STEER}"), &error))?;
    Ok(attached.into())
}

/// The maps, and the programs ready to be loaded for the pod in `slot`. Without pins the maps
/// are new ones, nobody else's, and go with the last program.
pub(super) fn object(pins: Option<&Pins>, slot: u32) -> Result<Ebpf, CaptureError> {
    let level = log::level();
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.override_global("POD", &slot, true);
    for (pins, map) in pins.iter().flat_map(|pins| MAPS.map(|map| (pins, map))) {
        loader.map_pin_path(map, pins.map(map));
    }
    loader.load(OBJECT).map_err(|error| CaptureError::ebpf("load the eBPF maps", &error))
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
