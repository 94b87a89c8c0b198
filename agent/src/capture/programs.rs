//! The eBPF programs: loaded once, attached to the cgroup and to each pod's netns.

use std::fs::File;

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, SkLookup, links::FdLink},
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

/// The programs, loaded into the kernel.
pub(super) struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the programs. They share the pinned maps of a former agent where there are any.
    pub(super) fn load(pins: &Pins) -> Result<Self, CaptureError> {
        let level = log::level();
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, false);
        for map in MAPS {
            loader.map_pin_path(map, pins.map(map));
        }
        let mut ebpf = loader.load(OBJECT).step("load the eBPF maps")?;
        for (name, program) in ebpf.programs_mut() {
            let loaded = match program {
                aya::programs::Program::CgroupSockAddr(program) => program.load(),
                aya::programs::Program::SkLookup(program) => program.load(),
                _ => unreachable!("agent-ebpf has programs of two kinds"),
            };
            loaded.map_err(|error| refused(name, error))?;
        }
        log::forward(&mut ebpf);
        Ok(Self { ebpf })
    }

    /// Attaches the connect programs to `cgroup`, in place of a former agent's.
    pub(super) fn capture_cgroup(
        &mut self,
        cgroup: &File,
        pins: &Pins,
    ) -> Result<(), CaptureError> {
        for name in ["sluice_connect4", "sluice_connect6"] {
            let link = self
                .connect_link(name, cgroup)
                .map_err(|error| CaptureError::kernel(format!("attach {name}"), &*error))?;
            pins.pin_link(link, name)?;
        }
        Ok(())
    }

    fn connect_link(
        &mut self,
        name: &str,
        cgroup: &File,
    ) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
        let program: &mut CgroupSockAddr = self.program(name).try_into()?;
        // `Single` is about programs attached without a link; links are always many.
        let link = program.attach(cgroup, CgroupAttachMode::Single)?;
        Ok(program.take_link(link)?.try_into()?)
    }

    /// Attaches the steer program to a pod's namespace. It detaches when the link goes.
    pub(super) fn steer(&mut self, netns: &Netns) -> Result<FdLink, ProgramError> {
        let program: &mut SkLookup = self.program("sluice_steer").try_into()?;
        let link = program.attach(netns.file())?;
        Ok(program.take_link(link)?.into())
    }

    fn program(&mut self, name: &str) -> &mut aya::programs::Program {
        self.ebpf.program_mut(name).expect("agent-ebpf defines it")
    }
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
