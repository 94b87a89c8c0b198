//! `sluice bugreport`.

use std::{collections::BTreeMap, fs, io::Read, process::Command};

use anyhow::{Context, ensure};
use flate2::read::GzDecoder;
use sluice_tests::{Mesh, agent_program};

/// The parts of an archive.
fn parts(archive: &[u8]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut parts = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(archive)).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        let name = name.strip_prefix("sluice-bugreport/").context(name.clone())?;
        parts.insert(name.to_owned(), text);
    }
    Ok(parts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_a_running_agent_has_every_part_and_no_key() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let node = &mesh.a;
    let mut command = Command::new(agent_program()?);
    let archive = mesh.lab.directory().join("report.tar.gz");
    command.args(["bugreport", "--bpffs"]).arg(node.bpffs()).arg("--output").arg(&archive);
    let said = node.run(command)?.success()?;
    ensure!(said.contains("status.json: "), "{said}");
    let parts = parts(&fs::read(&archive)?)?;
    let part = |name: &str| parts.get(name).with_context(|| format!("{:?}", parts.keys()));
    ensure!(part("versions.txt")?.contains("kernel "));
    ensure!(part("check.txt")?.contains("BTF"));
    ensure!(part("status.json")?.contains("\"pods\""));
    ensure!(part("metrics.txt")?.contains("sluice_pods{"));
    ensure!(part("log.txt")?.contains("agent started"));
    ensure!(part("kernel.txt")?.contains("sluice_steer"));
    // Where files are read nothing is saved, and the archive says so.
    ensure!(part("snapshot.json.missing")?.contains("snapshot.json"));
    for (name, text) in &parts {
        ensure!(!text.contains("PRIVATE KEY"), "a key in {name}");
    }
    Ok(())
}
