//! The eBPF programs: attached to the cgroup, and a copy of one to each pod's netns.

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

/// Loads and attaches programs. Once attached they need nobody: links hold programs, programs
/// hold maps, and pins hold links.
pub(super) struct Programs {
    log_level: u8,
}

impl Programs {
    /// Attaches the connect programs to `cgroup`, in place of a former agent's. The maps are a
    /// former agent's where there are any.
    pub(super) fn capture_cgroup(cgroup: &File, pins: &Pins) -> Result<Self, CaptureError> {
        let programs = Self { log_level: log::level() };
        let mut ebpf = programs.object(pins, u32::MAX)?;
        for name in ["sluice_connect4", "sluice_connect6"] {
            let link = connect_link(&mut ebpf, name, cgroup).map_err(|e| refused(name, e))?;
            pins.pin_link(link, name)?;
        }
        log::forward(&mut ebpf);
        Ok(programs)
    }

    /// Attaches a copy of the steer program to the namespace of the pod in `slot`. It detaches
    /// when the link goes.
    pub(super) fn steer(
        &self,
        slot: u32,
        netns: &Netns,
        pins: &Pins,
    ) -> Result<FdLink, CaptureError> {
        let mut ebpf = self.object(pins, slot)?;
        let name = "sluice_steer";
        steer_link(&mut ebpf, name, netns).map_err(|e| refused(name, e))
    }

    /// The object with its maps in the kernel and its programs yet to be loaded.
    fn object(&self, pins: &Pins, pod: u32) -> Result<Ebpf, CaptureError> {
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &self.log_level, false);
        loader.override_global("POD", &pod, true);
        for map in MAPS {
            loader.map_pin_path(map, pins.map(map));
        }
        loader.load(OBJECT).step("load the eBPF maps")
    }
}

type Refusal = Box<dyn std::error::Error + Send + Sync>;

fn connect_link(ebpf: &mut Ebpf, name: &str, cgroup: &File) -> Result<FdLink, Refusal> {
    let program: &mut CgroupSockAddr = program(ebpf, name).try_into()?;
    program.load()?;
    // `Single` is about programs attached without a link; links are always many.
    let link = program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(program.take_link(link)?.try_into()?)
}

fn steer_link(ebpf: &mut Ebpf, name: &str, netns: &Netns) -> Result<FdLink, Refusal> {
    let program: &mut SkLookup = program(ebpf, name).try_into()?;
    program.load()?;
    let link = program.attach(netns.file())?;
    Ok(program.take_link(link)?.into())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Program {
    ebpf.program_mut(name).expect("agent-ebpf defines it")
}

/// The verifier's output is hundreds of lines, for whoever debugs the program; the error itself
/// is for whoever runs the agent.
fn refused(program: &str, error: Refusal) -> CaptureError {
    let step = format!("load and attach the eBPF program {program}");
    match error.downcast_ref() {
        Some(ProgramError::LoadError { io_error, verifier_log }) => {
            tracing::debug!(program, %verifier_log, "the kernel refused an eBPF program");
            CaptureError::kernel(step, io_error)
        }
        _ => CaptureError::kernel(step, &*error),
    }
}
