//! `image`: the container images, as OCI archives, without a container daemon.
//!
//! Enters: the workspace. Leaves, in the target directory's folder `image`: an archive of each
//! image, its bill of materials, and in `bin` the programs. A program is linked statically with
//! the C library and is the only file of its image.

mod oci;
mod sbom;
mod tar;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

pub(crate) use self::oci::Digest;
use self::{oci::Image, sbom::Metadata};
use crate::cargo;

/// An image to make: its program and what that is.
struct Recipe {
    program: &'static str,
    /// Packages it is made of, its own first.
    packages: &'static [&'static str],
    title: &'static str,
    description: &'static str,
    user: &'static str,
}

const RECIPES: [Recipe; 3] = [
    Recipe {
        program: "sluice",
        packages: &["sluice", "sluice-agent-ebpf"],
        title: "Sluice",
        description: "The node agent of a sidecarless service mesh",
        // Without it a process has no capabilities, whatever its pod may grant.
        user: "0:0",
    },
    Recipe {
        program: "sluice-sample",
        packages: &["sluice-sample"],
        title: "Sluice's sample application",
        description: "Small HTTP programs that call one another",
        user: "65532:65532",
    },
    Recipe {
        program: "pause",
        packages: &["sluice-pause"],
        title: "pause",
        description: "Holds a pod's namespaces",
        user: "65532:65532",
    },
];

/// Makes all images and says what they are. Returns their folder.
pub(crate) fn make() -> anyhow::Result<PathBuf> {
    let folder = cargo::target_dir()?.join("image");
    let programs = folder.join("bin");
    fs::create_dir_all(&programs)
        .with_context(|| format!("could not make {}", programs.display()))?;
    let built = cargo::static_programs(&packages(), &[])?;
    let metadata = Metadata::read(&cargo::target())?;
    let source = Source::find();
    for recipe in &RECIPES {
        let from = built.join(recipe.program);
        let content =
            fs::read(&from).with_context(|| format!("could not read {}", from.display()))?;
        let program = programs.join(recipe.program);
        fs::copy(&from, &program)
            .with_context(|| format!("could not make {}", program.display()))?;
        recipe.write(&folder, env!("CARGO_PKG_VERSION"), content, &source, &metadata)?;
    }
    Ok(folder)
}

/// Makes the image of an agent with another eBPF object, tagged as a next version. Returns its
/// archive, which is not beside the others: they are what users get.
pub(crate) fn make_next() -> anyhow::Result<PathBuf> {
    let folder = cargo::target_dir()?.join("image-next");
    fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    let [agent, ..] = &RECIPES;
    // All of them, as for the usual images: what they depend on is compiled already, then.
    let built = cargo::static_programs(&packages(), &["sluice/next-version"])?.join(agent.program);
    let content = fs::read(&built);
    let content = content.with_context(|| format!("could not read {}", built.display()))?;
    let tag = concat!(env!("CARGO_PKG_VERSION"), "-next");
    agent.write(&folder, tag, content, &Source::find(), &Metadata::read(&cargo::target())?)
}

/// The packages of all programs.
fn packages() -> Vec<&'static str> {
    RECIPES.iter().map(|recipe| recipe.packages[0]).collect()
}

impl Recipe {
    /// Writes the archive, which is returned, and the bill of materials.
    fn write(
        &self,
        folder: &Path,
        version: &str,
        content: Vec<u8>,
        source: &Source,
        metadata: &Metadata,
    ) -> anyhow::Result<PathBuf> {
        let mut labels = BTreeMap::from([
            ("org.opencontainers.image.title", self.title.to_owned()),
            ("org.opencontainers.image.description", self.description.to_owned()),
            ("org.opencontainers.image.version", version.to_owned()),
            ("org.opencontainers.image.licenses", "Apache-2.0".to_owned()),
            ("org.opencontainers.image.created", source.created.clone()),
        ]);
        if let Some(revision) = &source.revision {
            labels.insert("org.opencontainers.image.revision", revision.clone());
        }
        let image = Image {
            // No registry has it: the top-level domain is reserved for tests (RFC 2606).
            name: format!("sluice.test/{}:{version}", self.program),
            program: self.program,
            content,
            user: self.user,
            created: source.created.clone(),
            labels,
        };
        let archive = image.archive();
        let file = folder.join(format!("{}-{version}.tar", self.program));
        write(&file, &archive.bytes)?;
        let bill = folder.join(format!("{}-{version}.cdx.json", self.program));
        write(&bill, format!("{:#}\n", metadata.bill(self.packages)?).as_bytes())?;
        println!("{} {}", image.name, archive.digest);
        for (number, size) in archive.layers.iter().enumerate() {
            println!("  layer {}: {:.1} MB", number + 1, *size as f64 / 1e6);
        }
        println!("  {}\n  {}", file.display(), bill.display());
        Ok(file)
    }
}

fn write(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    fs::write(file, content).with_context(|| format!("could not write {}", file.display()))
}

/// Which source the images are made of, as far as git knows.
struct Source {
    revision: Option<String>,
    /// The commit's time, so that the same source gives the same image.
    created: String,
}

impl Source {
    fn find() -> Self {
        let commit = git(&["rev-parse", "HEAD"]);
        let changed = git(&["status", "--porcelain"]).is_some_and(|files| !files.is_empty());
        let time = git(&["log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ"]);
        Self {
            revision: commit.map(|id| if changed { format!("{id}-modified") } else { id }),
            created: time.unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned()),
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    git.args(arguments).env("TZ", "UTC").current_dir(cargo::root());
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
