//! apt with a state of its own: packages of other suites and architectures than this machine's.
//!
//! The machine's own package lists stay as they are, and apt checks every file against the index
//! that Debian signed. Nothing is installed: packages are unpacked into a cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::Context;

use crate::{arch::Arch, needs::ARCHIVE_KEYS, step::Step};

/// How old an index may be before it is asked for again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// A name and a version.
pub(crate) type Package = (String, String);

/// A release of Debian and its security updates.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Suites {
    pub(crate) release: String,
    pub(crate) security: Option<String>,
}

impl Suites {
    /// A release by its code name.
    pub(crate) fn of(release: &str) -> Self {
        // What is unstable has no updates but its next packages.
        let security = (release != "unstable").then(|| format!("{release}-security"));
        Self { release: release.to_owned(), security }
    }

    /// Those that this machine's own packages come from.
    pub(crate) fn here() -> anyhow::Result<Self> {
        Ok(Self::of(&Mirrors::find()?.codename))
    }
}

/// Packages that are unpacked below the cache, and looked for again once a day.
pub(crate) struct Unpacked {
    /// What they hold.
    pub(crate) folder: PathBuf,
    pub(crate) packages: Vec<Package>,
}

impl Unpacked {
    /// Those that `choose` finds, one at least; `name` makes of the first what their folder in
    /// `cache` is called, and `title` is what is fetched. `state` is where apt has its own.
    ///
    /// To ask apt takes seconds, so what it found is remembered for as long as its index is.
    pub(crate) fn find(
        title: &str,
        state: PathBuf,
        cache: &Path,
        suites: impl FnOnce() -> anyhow::Result<Suites>,
        choose: impl FnOnce(&Apt) -> anyhow::Result<Vec<Package>>,
        name: impl Fn(&Package) -> String,
    ) -> anyhow::Result<Self> {
        let record = state.join("chosen");
        if is_fresh(&record) {
            let lines = fs::read_to_string(&record).unwrap_or_default();
            let package = |line: &str| line.split_once(' ').map(|(n, v)| (n.into(), v.into()));
            let packages: Vec<_> = lines.lines().filter_map(package).collect();
            if let Some(folder) = packages.first().map(|first| cache.join(name(first)))
                && folder.is_dir()
            {
                return Ok(Self { folder, packages });
            }
        }
        let apt = Apt::new(state, suites()?, Arch::HERE)?;
        apt.refresh(&format!("Looking for {title}"))?;
        let packages = choose(&apt)?;
        let folder = cache.join(name(packages.first().context("no package was chosen")?));
        if !folder.is_dir() {
            let step = Step::start(&format!("Fetching {title}"));
            apt.unpack(&packages, &folder, &step)?;
            step.done();
        }
        let lines: String = packages.iter().map(|(n, v)| format!("{n} {v}\n")).collect();
        fs::write(&record, lines)
            .with_context(|| format!("could not write {}", record.display()))?;
        Ok(Self { folder, packages })
    }
}

/// Whether a file was written less than a day ago.
fn is_fresh(file: &Path) -> bool {
    let written = fs::metadata(file).and_then(|file| file.modified());
    let age = written.ok().and_then(|then| SystemTime::now().duration_since(then).ok());
    age.is_some_and(|age| age < FRESH)
}

/// apt that knows some suites for one architecture, and nothing else.
pub(crate) struct Apt {
    suites: Suites,
    arch: Arch,
    folder: PathBuf,
}

impl Apt {
    /// With its state in `folder`.
    pub(crate) fn new(folder: PathBuf, suites: Suites, arch: Arch) -> anyhow::Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("could not make {}", path.display()))?;
        }
        let apt = Self { suites, arch, folder };
        let path = apt.sources();
        fs::write(&path, Mirrors::find()?.sources(&apt.suites, arch))
            .with_context(|| format!("could not write {}", path.display()))?;
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        let arch = self.arch.debian();
        for option in [
            format!("APT::Architecture={arch}"),
            format!("APT::Architectures={arch}"),
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
    pub(crate) fn refresh(&self, title: &str) -> anyhow::Result<()> {
        let stamp = self.folder.join("refreshed");
        if is_fresh(&stamp) {
            return Ok(());
        }
        let step = Step::start(title);
        let status = self.folder.join("state/status");
        fs::write(&status, "").with_context(|| format!("could not write {}", status.display()))?;
        let mut update = self.command("apt-get");
        update.arg("update");
        // A mirror that is just being renewed answers with half an index; the next try has all.
        match step.run(&mut update).or_else(|_| step.run(&mut update)) {
            Err(error) if stamp.exists() => {
                eprintln!("▲ going on with the packages known since the last time: {error:#}");
                return Ok(());
            }
            done => done?,
        }
        fs::write(&stamp, "").with_context(|| format!("could not write {}", stamp.display()))?;
        step.done();
        Ok(())
    }

    /// What is known of the newest version of a package.
    pub(crate) fn show(&self, package: &str) -> anyhow::Result<Shown> {
        let mut show = self.command("apt-cache");
        show.args(["show", "--no-all-versions", package]);
        let output = show.output().context("could not run apt-cache (hint: this takes Debian)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Shown::parse(&text)
            .with_context(|| format!("Debian's {} has no package {package}", self.suites.release))
    }

    /// Makes the folder `to` of what `packages` hold. Its last step is a rename, so a folder that
    /// is there is complete.
    pub(crate) fn unpack(
        &self,
        packages: &[Package],
        to: &Path,
        step: &Step,
    ) -> anyhow::Result<()> {
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
pub(crate) struct Shown {
    pub(crate) package: Package,
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

    /// The first package it needs whose name begins so.
    pub(crate) fn depends_on(&self, prefix: &str) -> Option<&str> {
        self.depends.iter().find(|name| name.starts_with(prefix)).map(String::as_str)
    }
}

/// Where this machine itself gets Debian's packages.
#[derive(Debug, Eq, PartialEq)]
struct Mirrors {
    codename: String,
    release: String,
    security: Option<String>,
}

impl Mirrors {
    fn find() -> anyhow::Result<Self> {
        let mut query = Command::new("apt-get");
        query.args(["indextargets", "--format", "$(CREATED_BY) $(RELEASE) $(REPO_URI)"]);
        let output = query.output().context("could not run apt-get (hint: this takes Debian)")?;
        Self::parse(&String::from_utf8_lossy(&output.stdout)).context(
            "no mirror of Debian is among apt's sources (hint: /etc/apt/sources.list.d needs \
             Debian's `main` and its security updates)",
        )
    }

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
        let (codename, release) = *release?;
        Some(Self {
            codename: codename.to_owned(),
            release: release.to_owned(),
            security: security.map(|(_, mirror)| (*mirror).to_owned()),
        })
    }

    /// A sources.list for some suites.
    fn sources(&self, suites: &Suites, arch: Arch) -> String {
        let entry = |mirror: &str, suite: &str| {
            let arch = arch.debian();
            format!("deb [arch={arch} signed-by={ARCHIVE_KEYS}] {mirror} {suite} main\n")
        };
        let mut sources = entry(&self.release, &suites.release);
        if let (Some(mirror), Some(suite)) = (&self.security, &suites.security) {
            sources.push_str(&entry(mirror, suite));
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_and_what_it_needs_are_found_in_what_apt_shows() {
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
    fn packages_come_from_the_mirrors_the_machine_uses() {
        let targets = "Packages nodistro http://elsewhere/\n\
                       Packages bookworm http://mirror/debian/\n\
                       Translations bookworm http://mirror/debian/\n\
                       Packages bookworm-security http://mirror/security/\n";
        let found = Mirrors::parse(targets).unwrap();
        assert_eq!(found.codename, "bookworm");
        assert_eq!(found.release, "http://mirror/debian/");
        assert_eq!(found.security.as_deref(), Some("http://mirror/security/"));
        assert_eq!(Mirrors::parse("Translations bookworm http://mirror/\n"), None);
    }

    #[test]
    fn a_release_comes_with_its_security_updates() {
        let mirrors = Mirrors {
            codename: "bookworm".into(),
            release: "http://mirror/debian/".into(),
            security: Some("http://mirror/security/".into()),
        };
        let sources = mirrors.sources(&Suites::of("trixie"), Arch::Arm64);
        assert_eq!(sources.lines().count(), 2);
        assert!(sources.contains("http://mirror/security/ trixie-security main"), "{sources}");
        assert!(sources.lines().all(|line| line.contains("arch=arm64")), "{sources}");
        assert_eq!(mirrors.sources(&Suites::of("unstable"), Arch::Arm64).lines().count(), 1);
    }
}
