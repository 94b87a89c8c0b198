//! The eBPF programs: the connect programs, loaded once for the cgroup, and a steer program for
//! each pod's netns.

use std::fs::File;

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

const CONNECT: [&str; 2] = ["sluice_connect4", "sluice_connect6"];
const STEER: &str = "sluice_steer";
/// The connect programs serve all pods; no pod has this slot.
const NO_POD: u32 = u32::MAX;

/// Attaches the connect programs to `cgroup`, in place of a former agent's.
pub(super) fn connect(pins: &Pins, cgroup: &File) -> Result<(), CaptureError> {
    let mut ebpf = object(pins, NO_POD)?;
    for name in CONNECT {
        let program: &mut CgroupSockAddr = program(&mut ebpf, name);
        program.load().map_err(|error| refused(name, error))?;
        // `Single` is about programs attached without a link; links are always many.
        let attached = program.attach(cgroup, CgroupAttachMode::Single);
        let link = attached.and_then(|link| program.take_link(link));
        let link = link.step(format!("attach {name}"))?;
        pins.pin_link(link.try_into().step(format!("attach {name}"))?, name)?;
    }
    log::forward(&mut ebpf);
    Ok(())
}

/// Attaches a steer program of its own to the namespace of the pod in `slot`. It detaches and is
/// unloaded when the link goes.
pub(super) fn steer(pins: &Pins, netns: &Netns, slot: u32) -> Result<FdLink, CaptureError> {
    let mut ebpf = object(pins, slot)?;
    let program: &mut SkLookup = program(&mut ebpf, STEER);
    program.load().map_err(|error| refused(STEER, error))?;
    let attached = program.attach(netns.file()).and_then(|link| program.take_link(link));
    Ok(attached.step(format!("attach {STEER}"))?.into())
}

/// The maps, and the programs ready to be loaded for the pod in `slot`.
fn object(pins: &Pins, slot: u32) -> Result<Ebpf, CaptureError> {
    let level = log::level();
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.override_global("POD", &slot, true);
    for map in MAPS {
        loader.map_pin_path(map, pins.map(map));
    }
    loader.load(OBJECT).step("load the eBPF maps")
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
            CaptureError::kernel(step, &io_error)
        }
        error => CaptureError::kernel(step, &error),
    }
}
