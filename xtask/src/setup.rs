//! `setup`: finds what the machine lacks and installs it.

use anyhow::{Context, bail};

use crate::{
    install,
    needs::{NEEDS, Need, Purpose, Source},
};

/// Installs what is missing of what `purposes` need. Prints nothing when nothing is.
pub(crate) fn run(purposes: &[Purpose]) -> anyhow::Result<()> {
    let missing: Vec<_> =
        NEEDS.iter().filter(|need| purposes.contains(&need.purpose) && !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|need| need.what).collect::<Vec<_>>().join(", ");
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "missing on this machine: {names}; installing it takes root (hint: sudo --preserve-env \
             cargo xtask setup, or `cargo xtask setup --check` to see what each is for)"
        );
    }
    println!("Missing on this machine: {names}");
    let packages: Vec<_> = missing.iter().flat_map(|need| packages(need)).copied().collect();
    if !packages.is_empty() {
        install::debian(&packages)?;
    }
    for need in &missing {
        match need.source {
            Source::Debian(_) => {}
            Source::BpfLinker => install::bpf_linker()?,
            Source::Rotel => install::rotel()?,
            Source::Envoy => install::envoy()?,
            Source::Go => install::go()?,
            Source::RustForArm64 => install::rust_for_arm64()?,
        }
    }
    verify(&missing)
}

fn packages(need: &Need) -> &'static [&'static str] {
    match need.source {
        Source::Debian(packages) => packages,
        Source::BpfLinker | Source::Rotel | Source::Envoy | Source::Go | Source::RustForArm64 => {
            &[]
        }
    }
}

/// Installed is not yet found: a PATH may lack the folder it went to.
fn verify(installed: &[&Need]) -> anyhow::Result<()> {
    for need in installed {
        (need.present)().then_some(()).with_context(|| {
            format!(
                "{} was installed but is not found (hint: does PATH hold /usr/sbin and cargo's \
                 bin folder?)",
                need.what
            )
        })?;
    }
    Ok(())
}

/// Says what is there and what is missing, with the reason it is needed.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut missing = 0;
    for need in NEEDS {
        let present = (need.present)();
        missing += usize::from(!present);
        println!("{} {:<28} {}", if present { "✔" } else { "✘" }, need.what, need.why);
    }
    match missing {
        0 => Ok(()),
        1 => bail!("one thing is missing (hint: cargo xtask setup)"),
        several => bail!("{several} things are missing (hint: cargo xtask setup)"),
    }
}
