//! Debian's kernels, from its archive into a cache.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::kernel::Kernel;
use crate::{
    apt::{Apt, Package},
    arch::Arch,
    needs,
    step::Step,
};

/// A kernel on this machine's disk.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    pub(crate) kernel: Kernel,
    /// As `uname -r` will say.
    pub(crate) release: String,
    /// What QEMU boots.
    pub(crate) image: PathBuf,
    /// Its folder of modules, `…/lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
}

/// The newest `kernel`, from the cache or from Debian.
pub(crate) fn fetch(kernel: Kernel) -> anyhow::Result<Unpacked> {
    let folder = needs::cache().join("vm/apt").join(kernel.name());
    let apt = Apt::new(folder, kernel.suites(), Arch::HERE)?;
    apt.refresh(&format!("Looking for Debian's newest kernel {kernel}"))?;
    let packages = packages(&apt)?;
    let (first, version) = &packages[0];
    let release = first.trim_start_matches("linux-image-").trim_start_matches("linux-binary-");
    let folder = needs::cache().join("vm/kernels").join(format!("{release}_{version}"));
    if !folder.is_dir() {
        let step = Step::start(&format!("Fetching Debian's kernel {release}"));
        apt.unpack(&packages, &folder, &step)?;
        step.done();
    }
    Unpacked::find(kernel, release, &folder)
}

impl Unpacked {
    fn find(kernel: Kernel, release: &str, folder: &Path) -> anyhow::Result<Self> {
        let first = |places: [PathBuf; 2]| places.into_iter().find(|place| place.exists());
        // Newer packages follow the merged /usr, and keep the image beside the modules.
        let modules = first(["usr/lib", "lib"].map(|lib| folder.join(lib).join("modules")));
        let modules = modules.map(|modules| modules.join(release));
        let modules = modules.with_context(|| format!("no modules in {}", folder.display()))?;
        let boot = folder.join("boot").join(format!("vmlinuz-{release}"));
        let image = first([boot, modules.join("vmlinuz")]);
        let image = image.with_context(|| format!("no vmlinuz in {}", folder.display()))?;
        Ok(Self { kernel, release: release.to_owned(), image, modules })
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
