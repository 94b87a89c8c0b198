//! Taking capture off a node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    enrol::cookie,
    error::{CaptureError, Step},
    host,
    maps::DialMaps,
    netns::Netns,
    pins::{Pins, PodPin},
    routing,
    settings::Settings,
    succession,
};

/// Removes everything an agent pinned at `bpffs` and undoes the routing in pods' namespaces.
///
/// # Errors
/// When an agent still runs there, or the kernel refuses a step.
pub fn uninstall(bpffs: &Path) -> Result<(), CaptureError> {
    host::need_root()?;
    let pins = Pins::open(bpffs)?;
    let _alone = succession::alone(&pins)?;
    let pinned = pins.pods().step("read the pins of enrolled pods")?;
    if let Some(name) = pinned.unread.first() {
        return Err(CaptureError::UnreadPin { path: pins.root().join("pods").join(name) });
    }
    // Before the programs are gone that know the cookies of namespaces.
    let pods: Vec<_> = match DialMaps::open(&pins) {
        Ok(mut dials) => {
            let found = |pod: PodPin| (find_netns(&pod, &mut dials), pod);
            pinned.pods.into_iter().map(found).collect()
        }
        // Maps that were never made, or taken away by hand: no pod has its routing from here.
        Err(_) if pinned.pods.is_empty() => Vec::new(),
        Err(error) => return Err(error),
    };
    pins.remove_links().step("remove the pins of links")?;
    let mut undone = Ok(());
    for (netns, pod) in pods {
        // A namespace that cannot be found is gone with its pod.
        let routing = netns
            .map_or(Ok(()), |netns| netns.run(|| give_back(pod.settings)))
            .step(format!("undo the routing of pod {}", pod.uid));
        // The pin is all that is known about the pod; it goes last, and only then.
        let pod = routing.and_then(|()| pins.unpin_pod(&pod).step("remove the pin of a pod"));
        undone = undone.and(pod);
    }
    undone?;
    pins.remove_rest().step("remove the pins")
}

/// Leaves the calling thread's netns as it was before enrolment.
pub(super) fn give_back(settings: Settings) -> io::Result<()> {
    routing::remove()?;
    settings.restore().map(drop)
}

/// The living network namespace of a pod, by its name or by a process inside it. One with the same
/// inode and another cookie came after it. Where the programs do not see this process, which has
/// the cookie told, the inode has to do.
pub(super) fn find_netns(pin: &PodPin, dials: &mut DialMaps) -> Option<Netns> {
    let named = entries("/run/netns").into_iter();
    let of_processes = entries("/proc").into_iter().filter(|path| is_process(path));
    let found = named
        .chain(of_processes.map(|path| path.join("ns/net")))
        .filter_map(|path| Netns::open(&path).ok())
        .find(|netns| netns.inode() == pin.netns)?;
    match cookie(&found, dials) {
        Ok(Some(cookie)) if cookie != pin.cookie => None,
        Ok(_) => Some(found),
        Err(error) => {
            tracing::warn!(pod = %pin.uid, %error, "not known whose network namespace it is");
            None
        }
    }
}

fn entries(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

fn is_process(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}
