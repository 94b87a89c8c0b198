//! Another version of the mesh in place of the one at work, while an application is under load.

use std::{collections::BTreeSet, env, path::PathBuf, time::Instant};

use anyhow::{Context, ensure};
use sluice_kube::{Attached, Load, Mesh, NODES};

/// The archive of an image whose agent has another eBPF object; `cargo xtask kube test` makes it.
const NEXT: &str = "SLUICE_KUBE_NEXT";
const TAG: &str = concat!(env!("CARGO_PKG_VERSION"), "-next");
/// A map that the next version's programs have, and those of this one lack.
const NEW_MAP: &str = "SEEN";

/// What is at work on both nodes.
fn programs(mesh: &Mesh) -> anyhow::Result<[BTreeSet<Attached>; 2]> {
    let [first, second] = NODES;
    Ok([mesh.attached(first)?, mesh.attached(second)?])
}

#[test]
fn an_upgrade_to_another_ebpf_object_and_the_way_back_are_not_felt() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let archive = env::var_os(NEXT).map(PathBuf::from);
    mesh.import(
        &archive.with_context(|| format!("{NEXT} is not set (hint: cargo xtask kube test)"))?,
    )?;
    let load = Load::start("upgrade")?;
    let usual = programs(&mesh)?;
    let begun = load.await_more(1000)?;

    let (former, started) = (mesh.agents()?, Instant::now());
    let next = mesh.change(&[&format!("image.tag={TAG}")])?;
    mesh.await_gone(&former)?;
    let upgraded = load.await_more(200)?;
    println!(
        "upgrade: {:.1} s; {}",
        started.elapsed().as_secs_f64(),
        load.difference(&begun, &upgraded)?
    );
    for (usual, new) in usual.iter().zip(programs(&mesh)?) {
        for program in &new {
            let was = usual.iter().find(|one| one.name == program.name);
            let was = was.with_context(|| format!("{program:?} is in place of none"))?;
            println!("{}: tag {} was {}", program.name, program.tag, was.tag);
            ensure!(program.tag != was.tag && program.maps.contains(NEW_MAP), "{program:?}");
            ensure!(!was.maps.contains(NEW_MAP), "{was:?}");
        }
        // One for each family of addresses, what steers, and the kubelet's.
        assert_eq!(new.len(), 4, "{new:?}");
        assert_eq!(usual.len(), 4, "{usual:?}");
    }

    let (former, started) = (mesh.agents()?, Instant::now());
    next.undo()?;
    mesh.await_gone(&former)?;
    let ended = load.await_more(200)?;
    println!(
        "the way back: {:.1} s; {}",
        started.elapsed().as_secs_f64(),
        load.difference(&upgraded, &ended)?
    );
    assert_eq!(programs(&mesh)?, usual);
    load.none_failed(&begun, &ended)
}
