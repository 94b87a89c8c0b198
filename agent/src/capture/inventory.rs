//! What there is of capture in the kernel, for people.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::loaded_programs;

/// Names of programs begin like this.
const OURS: &str = "sluice_";

/// Every pin below `bpffs`, and every program of an agent that is loaded, pinned or not.
///
/// # Errors
/// When there are no pins, or the kernel does not tell of its programs.
pub fn inventory(bpffs: &Path) -> anyhow::Result<String> {
    let mut text = String::from("Pins\n");
    for pin in files(bpffs)? {
        writeln!(text, "  {}", pin.display())?;
    }
    text.push_str("Programs\n");
    for program in loaded_programs() {
        let program = program?;
        let Some(name) = program.name_as_str().filter(|name| name.starts_with(OURS)) else {
            continue;
        };
        writeln!(
            text,
            "  {} {name} tag {:016x}, {} bytes of instructions, {} kernel bytes locked",
            program.id(),
            program.tag(),
            program.size_translated().unwrap_or_default(),
            program.memory_locked().unwrap_or_default(),
        )?;
    }
    Ok(text)
}

/// The files below `folder`, in the order of their names.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            all.extend(files(&entry.path())?);
        } else {
            all.push(entry.path());
        }
    }
    all.sort();
    Ok(all)
}
