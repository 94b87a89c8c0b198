//! Debian's kernels, from its archive into a cache.
//!
//! apt does the work, with a state of its own for each kernel: the machine's own package lists
//! stay as they are, and apt checks every file against the index that Debian signed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::Context;

use super::kernel::{Kernel, Suites};
use crate::{
    needs::{self, ARCHIVE_KEYS},
    step::Step,
};

/// How old an index may be before it is asked for again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

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
    let apt = Apt::of(kernel)?;
    apt.refresh()?;
    let packages = apt.packages_of_kernel()?;
    let (first, version) = &packages[0];
    let release = first.trim_start_matches("linux-image-").trim_start_matches("linux-binary-");
    // Its last step is a rename, so a folder that is there is complete.
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

/// A name and a version.
type Package = (String, String);

/// apt with a state of its own, which knows one kernel's suites and nothing else.
struct Apt {
    kernel: Kernel,
    folder: PathBuf,
}

impl Apt {
    fn of(kernel: Kernel) -> anyhow::Result<Self> {
        let folder = needs::cache().join("vm/apt").join(kernel.name());
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("could not make {}", path.display()))?;
        }
        let apt = Self { kernel, folder };
        let sources = sources(kernel.suites())?;
        let path = apt.sources();
        fs::write(&path, sources).with_context(|| format!("could not write {}", path.display()))?;
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::State={folder}/state"),
            format!("Dir::State::status={folder}/state/status"),
            format!("Dir::Cache={folder}/cache"),
            format!("Dir::Etc::sourcelist={}", self.sources().display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // An old release is no longer renewed, and its index not signed anew.
            "Acquire::Check-Valid-Until=false".to_owned(),
            // The folder belongs to whoever runs this, not to apt's own user.
            "APT::Sandbox::User=".to_owned(),
            "Dpkg::Use-Pty=0".to_owned(),
        ] {
            command.arg("--option").arg(option);
        }
        command
    }

    /// Asks for the index again once a day. Where that fails, yesterday's does.
    fn refresh(&self) -> anyhow::Result<()> {
        let stamp = self.folder.join("refreshed");
        let age = fs::metadata(&stamp).and_then(|stamp| stamp.modified());
        let age = age.ok().and_then(|then| SystemTime::now().duration_since(then).ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        let step = Step::start(&format!("Looking for Debian's newest kernel {}", self.kernel));
        let status = self.folder.join("state/status");
        fs::write(&status, "").with_context(|| format!("could not write {}", status.display()))?;
        let mut update = self.command("apt-get");
        update.arg("update");
        // A mirror that is just being renewed answers with half an index; the next try has all.
        match step.run(&mut update).or_else(|_| step.run(&mut update)) {
            Err(error) if age.is_some() => {
                eprintln!("▲ going on with the kernels known since the last time: {error:#}");
                return Ok(());
            }
            done => done?,
        }
        fs::write(&stamp, "").with_context(|| format!("could not write {}", stamp.display()))?;
        step.done();
        Ok(())
    }

    /// What holds the kernel's image and its modules: one package, or since Debian 14 two.
    fn packages_of_kernel(&self) -> anyhow::Result<Vec<Package>> {
        let newest = self.show(&format!("linux-image-cloud-{}", debian_architecture()))?;
        let image = newest.depends_on("linux-image-").with_context(|| {
            format!("Debian's {} has no kernel image", self.kernel.suites().release)
        })?;
        let image = self.show(image)?;
        let parts = ["linux-binary-", "linux-modules-"].map(|part| image.depends_on(part));
        let [Some(binary), Some(modules)] = parts else { return Ok(vec![image.package]) };
        Ok(vec![self.show(binary)?.package, self.show(modules)?.package])
    }

    fn show(&self, package: &str) -> anyhow::Result<Shown> {
        let mut show = self.command("apt-cache");
        show.args(["show", "--no-all-versions", package]);
        let output = show.output().context("could not run apt-cache (hint: this takes Debian)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Shown::parse(&text).with_context(|| {
            format!("Debian's {} has no package {package}", self.kernel.suites().release)
        })
    }

    fn unpack(&self, packages: &[Package], to: &Path, step: &Step) -> anyhow::Result<()> {
        let archives = self.folder.join("cache/archives");
        let unfinished = to.with_extension("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished)
            .with_context(|| format!("could not make {}", unfinished.display()))?;
        let mut download = self.command("apt-get");
        download.arg("download").current_dir(&archives);
        download.args(packages.iter().map(|(name, version)| format!("{name}={version}")));
        step.run(&mut download)?;
        for file in fs::read_dir(&archives).context("could not list what was downloaded")? {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                let mut extract = Command::new("dpkg-deb");
                step.run(extract.arg("--extract").arg(&file).arg(&unfinished))?;
                fs::remove_file(&file)?;
            }
        }
        fs::rename(&unfinished, to).with_context(|| format!("could not make {}", to.display()))
    }
}

/// What matters of `apt-cache show`.
#[derive(Debug, Eq, PartialEq)]
struct Shown {
    package: Package,
    depends: Vec<String>,
}

impl Shown {
    fn parse(text: &str) -> Option<Self> {
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let depends = field("Depends").unwrap_or_default().split(", ");
        let name_of = |dependency: &str| dependency.split(' ').next().map(str::to_owned);
        Some(Self {
            package: (field("Package")?.to_owned(), field("Version")?.to_owned()),
            depends: depends.filter_map(name_of).collect(),
        })
    }

    fn depends_on(&self, prefix: &str) -> Option<&str> {
        self.depends.iter().find(|name| name.starts_with(prefix)).map(String::as_str)
    }
}

/// A sources.list for a kernel's suites, from the mirrors this machine itself uses.
fn sources(suites: Suites) -> anyhow::Result<String> {
    let mut query = Command::new("apt-get");
    query.args(["indextargets", "--format", "$(CREATED_BY) $(RELEASE) $(REPO_URI)"]);
    let output = query.output().context("could not run apt-get (hint: this takes Debian)")?;
    let targets = String::from_utf8_lossy(&output.stdout);
    let Mirrors { release, security } = Mirrors::parse(&targets).context(
        "no mirror of Debian is among apt's sources (hint: /etc/apt/sources.list.d needs \
         Debian's `main` and its security updates)",
    )?;
    let entry = |mirror: &str, suite: &str| {
        let architecture = debian_architecture();
        format!("deb [arch={architecture} signed-by={ARCHIVE_KEYS}] {mirror} {suite} main\n")
    };
    let mut sources = entry(&release, suites.release);
    if let (Some(mirror), Some(suite)) = (security, suites.security) {
        sources.push_str(&entry(&mirror, suite));
    }
    Ok(sources)
}

#[derive(Debug, Eq, PartialEq)]
struct Mirrors {
    release: String,
    security: Option<String>,
}

impl Mirrors {
    /// From `apt-get indextargets`: the release's own mirror is the one that also has its
    /// updates, as `CODENAME` and `CODENAME-updates`, or at least the first.
    fn parse(targets: &str) -> Option<Self> {
        let mut entries = Vec::new();
        for line in targets.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            if let ["Packages", suite, mirror] = fields[..] {
                entries.push((suite, mirror));
            }
        }
        let security = entries.iter().find(|(suite, _)| suite.ends_with("-security"));
        let codename = security.map(|(suite, _)| suite.trim_end_matches("-security"));
        let release = entries.iter().find(|(suite, _)| codename.is_none_or(|name| name == *suite));
        Some(Self {
            release: release?.1.to_owned(),
            security: security.map(|(_, mirror)| (*mirror).to_owned()),
        })
    }
}

/// Debian's word for this machine's architecture.
fn debian_architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_packages_are_found_in_what_apt_shows() {
        let shown = Shown::parse(
            "Package: linux-image-7.2.13+deb14-cloud-amd64\nVersion: 7.2.13-1\n\
             Depends: dracut | linux-initramfs-tool, linux-binary-7.2.13+deb14-cloud-amd64 \
             (= 7.2.13-1), linux-modules-7.2.13+deb14-cloud-amd64 (= 7.2.13-1)\n",
        )
        .unwrap();
        assert_eq!(shown.package.1, "7.2.13-1");
        assert_eq!(
            shown.depends_on("linux-binary-"),
            Some("linux-binary-7.2.13+deb14-cloud-amd64")
        );
        assert_eq!(shown.depends_on("linux-headers-"), None);
        assert_eq!(Shown::parse(""), None);
    }

    #[test]
    fn kernels_come_from_the_mirrors_the_machine_uses() {
        let targets = "Packages nodistro http://elsewhere/\n\
                       Packages bookworm http://mirror/debian/\n\
                       Translations bookworm http://mirror/debian/\n\
                       Packages bookworm-security http://mirror/security/\n";
        let found = Mirrors::parse(targets).unwrap();
        assert_eq!(found.release, "http://mirror/debian/");
        assert_eq!(found.security.as_deref(), Some("http://mirror/security/"));
        assert_eq!(Mirrors::parse("Translations bookworm http://mirror/\n"), None);
    }
}
