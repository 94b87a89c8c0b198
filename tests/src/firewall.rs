//! Firewall rules of a pod's namespace, whoever made them and by which tool.

use std::{fs, process::Command};

use crate::pod::Pod;

/// Every nftables rule set and legacy iptables table in the pod's namespace, line by line.
/// Tables of iptables' newer variant are nftables to the kernel, and among them.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn firewall_rules(pod: &Pod) -> anyhow::Result<Vec<String>> {
    let mut nft = Command::new("nft");
    nft.args(["list", "ruleset"]);
    let mut rules: Vec<String> = pod.run(nft)?.success()?.lines().map(str::to_owned).collect();
    rules.extend(pod.netns().run(|| {
        ["ip_tables_names", "ip6_tables_names"]
            .into_iter()
            .flat_map(|list| {
                // Not /proc/net: that is the main thread's namespace. No file, no such tables.
                let tables = fs::read_to_string(format!("/proc/thread-self/net/{list}"));
                let tables = tables.unwrap_or_default();
                tables.lines().map(|table| format!("{list}: {table}")).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    })?);
    Ok(rules)
}
