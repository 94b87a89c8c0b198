//! What the agent leaves under bpffs, so that capture outlives it.
//!
//! ```text
//! <bpffs>/v<ABI>/maps/<NAME>      the maps
//! <bpffs>/v<ABI>/links/<NAME>     the links of the connect programs, and of the kubelet's
//! <bpffs>/v<ABI>/pods/<POD>       the link of each pod's steer program
//! ```
//!
//! A pod's pin carries in its name all that has to be known to undo its enrolment, so that
//! there is no second record that could disagree with the kernel or outlive a reboot.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use aya::programs::links::{FdLink, PinnedLink};

use super::{
    error::{CaptureError, gone_is_fine},
    host,
    settings::Settings,
};
use crate::mesh::PodUid;

/// The pins of a node's agents. Who may change them is a matter of
/// [`succession`](super::succession).
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Creates the directories that are missing.
    pub(super) fn open(bpffs: &Path) -> Result<Self, CaptureError> {
        let root = root(bpffs);
        for kind in ["maps", "links", "pods"] {
            host::bpffs(&root.join(kind))?;
        }
        Ok(Self { root })
    }

    /// The directory that all of them are in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Those at `root`, where tests have no BPF file system.
    #[cfg(test)]
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where the map `name` is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Pins the link of a program that is the same for every pod.
    pub(super) fn pin_link(&self, link: FdLink, name: &str) -> Result<(), CaptureError> {
        replace(link, &self.root.join("links"), name)
    }

    /// Removes such a pin, if there is one; the program is detached.
    pub(super) fn unpin_link(&self, name: &str) -> io::Result<()> {
        gone_is_fine(fs::remove_file(self.root.join("links").join(name)))
    }

    /// Pins the link of a pod's steer program.
    pub(super) fn pin_pod(&self, link: FdLink, pod: &PodPin) -> Result<(), CaptureError> {
        replace(link, &self.root.join("pods"), &pod.name())
    }

    /// Removes a pod's pin; with the last reference to its link the program is detached.
    pub(super) fn unpin_pod(&self, pod: &PodPin) -> io::Result<()> {
        gone_is_fine(fs::remove_file(self.root.join("pods").join(pod.name())))
    }

    /// The pods that are enrolled, by this agent or a former one.
    pub(super) fn pods(&self) -> io::Result<Vec<PodPin>> {
        let mut pods = Vec::new();
        for entry in fs::read_dir(self.root.join("pods"))? {
            let entry = entry?;
            match entry.file_name().to_str().map(PodPin::from_str) {
                Some(Ok(pod)) => pods.push(pod),
                // Left by a crash between attaching and renaming: nothing knows it.
                _ => fs::remove_file(entry.path())?,
            }
        }
        Ok(pods)
    }

    /// Detaches the programs that are the same for every pod: no connection is marked any more.
    pub(super) fn remove_links(&self) -> io::Result<()> {
        remove_files(&self.root.join("links"))
    }

    /// Removes what is left when there are no links: maps and directories.
    pub(super) fn remove_rest(self) -> io::Result<()> {
        remove_files(&self.root.join("maps"))?;
        for kind in ["links", "pods", "maps"] {
            fs::remove_dir(self.root.join(kind))?;
        }
        fs::remove_dir(&self.root)?;
        // The pins of another layout's agent may still be beside ours.
        let _ = self.root.parent().map(fs::remove_dir);
        Ok(())
    }
}

fn remove_files(directory: &Path) -> io::Result<()> {
    fs::read_dir(directory)?.try_for_each(|entry| fs::remove_file(entry?.path()))
}

/// The pins of this version of the maps' layout.
fn root(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{}", agent_common::ABI))
}

/// Puts `link` in the place of the pin called `name`, whose link is detached by that. Both
/// are attached for a moment, so there is none without a program.
fn replace(link: FdLink, directory: &Path, name: &str) -> Result<(), CaptureError> {
    let new = directory.join(format!("{name}{NEW}"));
    let pin = || -> Result<(), Box<dyn std::error::Error>> {
        gone_is_fine(fs::remove_file(&new))?;
        let _: PinnedLink = link.pin(&new)?;
        Ok(fs::rename(&new, directory.join(name))?)
    };
    let step = || format!("pin {}", directory.join(name).display());
    pin().map_err(|error| CaptureError::kernel(step(), &*error))
}

/// The suffix of a pin that is about to take another's place.
const NEW: &str = "_new";

/// One enrolled pod, as the name of its pin says. bpffs allows no dots in names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodPin {
    pub(super) uid: PodUid,
    /// The pod's slot in the maps.
    pub(super) slot: u32,
    /// The inode of its network namespace.
    pub(super) netns: u64,
    /// The namespace's settings before enrolment.
    pub(super) settings: Settings,
}

impl PodPin {
    fn name(&self) -> String {
        let Self { uid, slot, netns, settings: Settings(settings) } = self;
        format!("{uid}_{slot}_{netns}_{settings}")
    }
}

impl FromStr for PodPin {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let fields: Vec<_> = name.split('_').collect();
        let &[uid, slot, netns, settings] = fields.as_slice() else { return Err(()) };
        Ok(Self {
            uid: PodUid::new(uid).ok_or(())?,
            slot: slot.parse().map_err(|_| ())?,
            netns: netns.parse().map_err(|_| ())?,
            settings: Settings(settings.parse().map_err(|_| ())?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_s_pin_reads_back_as_it_was_named() {
        let pin = PodPin {
            uid: PodUid::new("0a1b-2c3d").unwrap(),
            slot: 17,
            netns: 4_026_532_999,
            settings: Settings(5),
        };
        assert_eq!(pin.name().parse(), Ok(pin));
    }

    #[test]
    fn a_pin_that_never_got_its_place_is_nobody_s() {
        let name = format!("0a1b_17_4026532999_0{NEW}");
        assert_eq!(name.parse::<PodPin>(), Err(()));
    }
}
