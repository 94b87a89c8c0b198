//! `sluice bugreport`: all that is asked for first when something does not work.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    time::SystemTime,
};

use anyhow::Context;
use clap::Args;
use flate2::{Compression, write::GzEncoder};

use super::output::print;
use crate::{admin, capture};

/// Collect versions, the check, status, metrics, the newest log lines, the saved snapshot and
/// what is pinned in the kernel into one archive (tar, gzip).
///
/// It holds names, addresses and labels of pods, and no keys, tokens or environment variables. A
/// part that cannot be had is in the archive as the reason why. From a cluster:
/// kubectl exec --namespace sluice-system PODNAME -- /sluice bugreport --output - > report.tar.gz
#[derive(Args, Debug)]
pub(super) struct Bugreport {
    /// Where the archive goes; `-` is the standard output
    #[arg(long, short, value_name = "FILE", default_value = "sluice-bugreport.tar.gz")]
    output: PathBuf,

    /// Address of the agent's admin server
    #[arg(long, env = "SLUICE_ADMIN_ADDR", value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin_addr: SocketAddr,

    /// Where the agent saves the API server's last known state
    #[arg(long, env = "SLUICE_STATE_DIR", value_name = "DIR", default_value = "/var/lib/sluice")]
    state_dir: PathBuf,

    /// cgroup2 directory that is captured [default: the root of the hierarchy]
    #[arg(long, env = "SLUICE_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// Where programs, maps and links are pinned
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,
}

/// One file of the archive.
type Part = (&'static str, anyhow::Result<String>);

impl Bugreport {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let parts = self.parts();
        if self.output.as_os_str() == "-" {
            return archive(&parts, io::stdout().lock()).context("could not write the archive");
        }
        let path = self.output.display();
        let written = File::create(&self.output).and_then(|file| archive(&parts, file));
        written.with_context(|| {
            format!("could not write {path} (hint: --output names another file, or `-`)")
        })?;
        let mut contents = format!("{path}\n");
        for (name, part) in parts {
            contents += &match part {
                Ok(text) => format!("  {name}: {} bytes\n", text.len()),
                Err(error) => format!("  {name}: {error:#}\n"),
            };
        }
        print(&contents)
    }

    fn parts(&self) -> [Part; 7] {
        let check = capture::probe(self.cgroup.as_deref(), &self.bpffs);
        let snapshot = self.state_dir.join("snapshot.json");
        [
            ("versions.txt", versions()),
            ("check.txt", Ok(check.to_string())),
            ("kernel.txt", capture::inventory(&self.bpffs)),
            ("status.json", admin::fetch(self.admin_addr, "/status")),
            ("metrics.txt", admin::fetch(self.admin_addr, "/stats/prometheus")),
            ("log.txt", admin::fetch(self.admin_addr, "/log")),
            (
                "snapshot.json",
                fs::read_to_string(&snapshot)
                    .with_context(|| format!("could not read {}", snapshot.display())),
            ),
        ]
    }
}

fn versions() -> anyhow::Result<String> {
    let system = nix::sys::utsname::uname().context("could not ask for the kernel's version")?;
    let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    Ok(format!(
        "sluice {}\nkernel {} {}\nmachine {}\nnode {}\ncollected {}\n",
        env!("CARGO_PKG_VERSION"),
        text(system.release()),
        text(system.version()),
        text(system.machine()),
        text(system.nodename()),
        humantime::format_rfc3339_seconds(SystemTime::now()),
    ))
}

/// Writes the parts; in place of one that could not be had, why.
fn archive(parts: &[Part], into: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(into, Compression::default()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    for (name, part) in parts {
        let (name, text) = match part {
            Ok(text) => (format!("sluice-bugreport/{name}"), text.clone()),
            Err(error) => (format!("sluice-bugreport/{name}.missing"), format!("{error:#}\n")),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now.as_ref().map_or(0, std::time::Duration::as_secs));
        archive.append_data(&mut header, name, text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}
