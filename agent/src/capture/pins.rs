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
        let pins = Self { root: root(bpffs) };
        pins.make_directories()?;
        Ok(pins)
    }

    /// Creates the directories that are missing.
    pub(super) fn make_directories(&self) -> Result<(), CaptureError> {
        ["maps", "links", "pods"].iter().try_for_each(|kind| host::bpffs(&self.root.join(kind)))
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
    pub(super) fn pin_link(&self, link: FdLink, name: &str) -> Result<FdLink, CaptureError> {
        replace(link, &self.root.join("links"), name)
    }

    /// Whether there is such a pin.
    pub(super) fn has_link(&self, name: &str) -> bool {
        self.root.join("links").join(name).exists()
    }

    /// Such a link, by its pin; `None` where there is no such pin.
    pub(super) fn link(&self, name: &str) -> Option<FdLink> {
        open(&self.root.join("links").join(name))
    }

    /// Removes such a pin, if there is one; the program is detached.
    pub(super) fn unpin_link(&self, name: &str) -> io::Result<()> {
        gone_is_fine(fs::remove_file(self.root.join("links").join(name)))
    }

    /// Pins the link of a pod's steer program.
    pub(super) fn pin_pod(&self, link: FdLink, pod: &PodPin) -> Result<FdLink, CaptureError> {
        replace(link, &self.root.join("pods"), &pod.name())
    }

    /// Whether there is such a pin.
    pub(super) fn has_pod(&self, pod: &PodPin) -> bool {
        self.root.join("pods").join(pod.name()).exists()
    }

    /// Such a link, by its pin; `None` where there is no such pin.
    pub(super) fn pod(&self, pod: &PodPin) -> Option<FdLink> {
        open(&self.root.join("pods").join(pod.name()))
    }

    /// Removes a pod's pin; with the last reference to its link the program is detached.
    pub(super) fn unpin_pod(&self, pod: &PodPin) -> io::Result<()> {
        gone_is_fine(fs::remove_file(self.root.join("pods").join(pod.name())))
    }

    /// The pods that are enrolled, by this agent or a former one.
    pub(super) fn pods(&self) -> io::Result<Pinned> {
        let mut pinned = Pinned::default();
        for entry in fs::read_dir(self.root.join("pods"))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(NEW) {
                // Left by a crash between attaching and renaming: nothing knows it.
                gone_is_fine(fs::remove_file(entry.path()))?;
            } else if let Ok(pod) = name.parse() {
                pinned.pods.push(pod);
            } else {
                pinned.unread.push(name.into_owned());
            }
        }
        Ok(pinned)
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

/// The link that is pinned at `path`.
fn open(path: &Path) -> Option<FdLink> {
    PinnedLink::from_pin(path).ok().map(FdLink::from)
}

fn remove_files(directory: &Path) -> io::Result<()> {
    fs::read_dir(directory)?.try_for_each(|entry| fs::remove_file(entry?.path()))
}

/// The pins of this version of the maps' layout.
fn root(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{}", agent_common::ABI))
}

/// Puts `link` in the place of the pin called `name`, whose link is detached by that. Both
/// are attached for a moment, so there is none without a program. What is returned keeps `link`
/// attached even where somebody takes its pin away.
fn replace(link: FdLink, directory: &Path, name: &str) -> Result<FdLink, CaptureError> {
    let new = directory.join(format!("{name}{NEW}"));
    let pin = || -> Result<FdLink, Box<dyn std::error::Error>> {
        gone_is_fine(fs::remove_file(&new))?;
        let pinned = link.pin(&new)?;
        fs::rename(&new, directory.join(name))?;
        Ok(pinned.into())
    };
    let step = || format!("pin {}", directory.join(name).display());
    pin().map_err(|error| CaptureError::kernel(step(), &*error))
}

/// The suffix of a pin that is about to take another's place.
const NEW: &str = "_new";

/// What is pinned for pods.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    pub(super) pods: Vec<PodPin>,
    /// The names of pins that say more than this version can read: another version's, whose pods
    /// are captured by them. They are left alone.
    pub(super) unread: Vec<String>,
}

impl Pinned {
    /// The slots that pods have, those of pins that cannot be read as well.
    pub(super) fn slots(&self) -> Vec<u32> {
        let unread = self.unread.iter().filter_map(|name| name.split('_').nth(1)?.parse().ok());
        self.pods.iter().map(|pod| pod.slot).chain(unread).collect()
    }

    /// Whether a pod other than `pod` is captured in the same namespace.
    pub(super) fn shares(&self, pod: &PodPin) -> bool {
        self.pods.iter().any(|other| other.uid != pod.uid && other.cookie == pod.cookie)
    }
}

/// One enrolled pod, as the name of its pin says. bpffs allows no dots in names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodPin {
    pub(super) uid: PodUid,
    /// The pod's slot in the maps.
    pub(super) slot: u32,
    /// The inode of its network namespace, by which it is found. The kernel gives the number of
    /// a namespace that is gone to the next one.
    pub(super) netns: u64,
    /// The cookie of its network namespace, which no other one ever gets.
    pub(super) cookie: u64,
    /// The namespace's settings before enrolment.
    pub(super) settings: Settings,
    /// What later versions add, from the first `_` on: kept as it is.
    pub(super) more: String,
}

impl PodPin {
    fn name(&self) -> String {
        let Self { uid, slot, netns, cookie, settings: Settings(settings), more } = self;
        format!("{uid}_{slot}_{netns}_{cookie}_{settings}{more}")
    }
}

impl FromStr for PodPin {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let mut fields = name.splitn(6, '_');
        let mut next = || fields.next().ok_or(());
        Ok(Self {
            uid: PodUid::new(next()?).ok_or(())?,
            slot: next()?.parse().map_err(|_| ())?,
            netns: next()?.parse().map_err(|_| ())?,
            cookie: next()?.parse().map_err(|_| ())?,
            settings: Settings(next()?.parse().map_err(|_| ())?),
            more: next().map(|more| format!("_{more}")).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn pin(uid: &str, slot: u32) -> PodPin {
        PodPin {
            uid: PodUid::new(uid).unwrap(),
            slot,
            netns: 4_026_532_999,
            cookie: 4101,
            settings: Settings(5),
            more: String::new(),
        }
    }

    /// The files of `pods`, and what is read of them.
    fn read(names: &[&str]) -> (Pinned, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let pods = folder.path().join("pods");
        fs::create_dir(&pods).unwrap();
        for name in names {
            File::create(pods.join(name)).unwrap();
        }
        let pinned = Pins::at(folder.path().to_owned()).pods().unwrap();
        let left = fs::read_dir(pods).unwrap();
        let mut left: Vec<_> =
            left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        (pinned, left)
    }

    #[test]
    fn a_pod_s_pin_reads_back_as_it_was_named() {
        let plain = pin("0a1b-2c3d", 17);
        let more = PodPin { more: "_7_x".to_owned(), ..plain.clone() };
        for pin in [plain, more] {
            assert_eq!(pin.name().parse(), Ok(pin));
        }
    }

    #[test]
    fn what_a_later_version_adds_is_left_as_it_is() {
        let name = "0a1b_17_4026532999_4101_5_1500_yes";
        let (pinned, left) = read(&[name]);
        let expected = PodPin { more: "_1500_yes".to_owned(), ..pin("0a1b", 17) };
        assert_eq!((pinned.pods, left), (vec![expected], vec![name.to_owned()]));
    }

    #[test]
    fn a_pin_that_cannot_be_read_stays_and_its_slot_is_taken() {
        let names = ["0a1b_3_another_layout", "0a1b_1_4026532999_4101_5", "what is this"];
        let (pinned, left) = read(&names);
        assert_eq!(left.len(), 3, "{left:?}");
        assert_eq!(pinned.pods, [pin("0a1b", 1)]);
        let mut slots = pinned.slots();
        slots.sort();
        assert_eq!(slots, [1, 3]);
    }

    #[test]
    fn a_pin_that_never_got_its_place_is_removed() {
        let name = pin("0a1b", 17).name();
        let (pinned, left) = read(&[&format!("{name}{NEW}"), &format!("0a1b_x{NEW}")]);
        assert!(pinned.pods.is_empty() && pinned.unread.is_empty() && left.is_empty());
    }

    #[test]
    fn a_namespace_that_two_pods_have_in_turn_is_told_by_its_cookie() {
        let former = pin("0a1b", 1);
        let same = PodPin { slot: 2, ..pin("0a1c", 2) };
        let reused = PodPin { cookie: 5000, ..same.clone() };
        let shares = |other: PodPin| {
            Pinned { pods: vec![former.clone(), other], unread: Vec::new() }.shares(&former)
        };
        assert!(shares(same));
        assert!(!shares(reused), "the inode alone is another namespace's by now");
    }
}
