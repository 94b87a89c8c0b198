//! Debian's kernels, from its archive into a cache.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::kernel::Kernel;
use crate::{
    apt::{self, Apt, Package},
    arch::Arch,
    needs,
};

/// A kernel on this machine's disk.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    /// As `uname -r` will say.
    pub(crate) release: String,
    /// What QEMU boots.
    pub(crate) image: PathBuf,
    /// Its folder of modules, `…/lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
}

/// The newest `kernel`, from the cache or from Debian.
pub(crate) fn fetch(kernel: Kernel) -> anyhow::Result<Unpacked> {
    let found = apt::Unpacked::find(
        &format!("Debian's newest kernel {kernel}"),
        needs::cache().join("vm/apt").join(kernel.name()),
        &needs::cache().join("vm/kernels"),
        || Ok(kernel.suites()),
        packages,
        |first| format!("{}_{}", release(first), first.1),
    )?;
    Unpacked::find(release(&found.packages[0]), &found.folder)
}

/// As `uname -r` will say it of the kernel in a package.
fn release((name, _): &Package) -> &str {
    name.trim_start_matches("linux-image-").trim_start_matches("linux-binary-")
}

impl Unpacked {
    fn find(release: &str, folder: &Path) -> anyhow::Result<Self> {
        let first = |places: [PathBuf; 2]| places.into_iter().find(|place| place.exists());
        // Newer packages follow the merged /usr, and keep the image beside the modules.
        let modules = first(["usr/lib", "lib"].map(|lib| folder.join(lib).join("modules")));
        let modules = modules.map(|modules| modules.join(release));
        let modules = modules.with_context(|| format!("no modules in {}", folder.display()))?;
        let boot = folder.join("boot").join(format!("vmlinuz-{release}"));
        let image = first([boot, modules.join("vmlinuz")]);
        let image = image.with_context(|| format!("no vmlinuz in {}", folder.display()))?;
        Ok(Self { release: release.to_owned(), image, modules })
    }
}

/// What holds the newest kernel's image and its modules: one package, or since Debian 14 two.
fn packages(apt: &Apt) -> anyhow::Result<Vec<Package>> {
    let newest = apt.show(&format!("linux-image-cloud-{}", Arch::HERE.debian()))?;
    let image = newest
        .depends_on("linux-image-")
        .with_context(|| format!("{} of Debian names no kernel image", newest.package.0))?;
    let image = apt.show(image)?;
    let parts = ["linux-binary-", "linux-modules-"].map(|part| image.depends_on(part));
    let [Some(binary), Some(modules)] = parts else { return Ok(vec![image.package]) };
    Ok(vec![apt.show(binary)?.package, apt.show(modules)?.package])
}
