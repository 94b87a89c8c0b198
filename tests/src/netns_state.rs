//! All that capture could change in a pod's network namespace, to compare before and after.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, process::Command};

use anyhow::Context;

use crate::{Pod, bpftool, eventually, firewall_rules};

/// Rules, routes, addresses, settings, programs, listeners and firewall rules of a pod's
/// namespace, line by line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetnsState(Vec<String>);

/// What is asked, all of one shell: starting programs is what takes long.
const QUESTIONS: &str = "set -e
echo '# IPv4'; ip rule; ip route show table all
echo '# IPv6'; ip -6 rule; ip -6 route show table all
echo '# both'; ip -oneline address
echo '# eBPF'; bpftool net show
# Without Recv-Q and Send-Q, which are traffic.
echo '# TCP'; ss --no-header --listening --numeric --tcp | awk '{print $4}' | sort";

impl NetnsState {
    /// Looks at it now.
    ///
    /// # Errors
    /// When a tool that looks fails.
    pub fn of(pod: &Pod) -> anyhow::Result<Self> {
        let mut lines = firewall_rules(pod)?;
        let mut shell = Command::new("sh");
        shell.args(["-c", QUESTIONS]);
        lines.extend(pod.run(shell)?.success()?.lines().map(str::to_owned));
        lines.extend(pod.netns().run(settings)??);
        lines.extend(attached(pod)?);
        Ok(Self(lines))
    }

    /// Waits until the namespace is exactly like this again.
    ///
    /// # Errors
    /// When it is not in time, with what differs.
    pub async fn is_back(&self, pod: &Pod) -> anyhow::Result<()> {
        let same = || async { Ok((Self::of(pod)? == *self).then_some(())) };
        eventually("the namespace is as before", same).await.with_context(|| {
            Self::of(pod).map_or_else(|error| error.to_string(), |now| self.difference(&now))
        })
    }

    fn difference(&self, now: &Self) -> String {
        let only = |these: &Self, those: &Self, sign: &str| -> String {
            let lines = these.0.iter().filter(|line| !those.0.contains(line));
            lines.map(|line| format!("{sign} {line}\n")).collect()
        };
        only(self, now, "-") + &only(now, self, "+")
    }
}

/// Every setting of the network namespace this runs in that can be read.
fn settings() -> anyhow::Result<Vec<String>> {
    let mut settings = Vec::new();
    let mut folders = vec![PathBuf::from("/proc/sys/net/ipv4"), "/proc/sys/net/ipv6".into()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Ok(value) = fs::read_to_string(entry.path()) {
                settings.push(format!("{} = {}", entry.path().display(), value.trim_end()));
            }
        }
    }
    settings.sort();
    Ok(settings)
}

/// The links of BPF programs that are attached to the namespace.
fn attached(pod: &Pod) -> anyhow::Result<Vec<String>> {
    let inode = fs::metadata(pod.netns_path())?.ino();
    let links = bpftool::list(&["link", "show"])?.into_iter();
    let ours = links.filter(|link| link["netns_ino"].as_u64() == Some(inode));
    Ok(ours.map(|link| format!("link: {link}")).collect())
}
