//! Connections that could only lead back to where they come from.
//!
//! Capture hands over none of them: `steer` leaves alone what stays within a pod. Should one come all
//! the same, dialling what it dialled would have the agent dial itself, again and again.

use std::net::IpAddr;

use super::LocalPod;

/// Whether a connection that `pod` opened may go on to `dialled`: it is neither the pod's own, which
/// steers past the agent, nor an address that has no elsewhere.
pub(super) fn leads_out(pod: &LocalPod, dialled: IpAddr) -> bool {
    is_somewhere(dialled) && !pod.workload().ips.contains(&dialled)
}

/// Whether the address can be another host's or another namespace's. What a pod's own rules have
/// redirected to its loopback cannot be dialled as the client that it came from.
pub(super) fn is_somewhere(dialled: IpAddr) -> bool {
    !dialled.is_loopback() && !dialled.is_unspecified() && !dialled.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_only_be_here_is_not_dialled_as_somebody_else() {
        let is_somewhere = |ip: &str| is_somewhere(ip.parse().unwrap());
        for here in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "239.1.2.3", "ff02::1"] {
            assert!(!is_somewhere(here), "{here}");
        }
        for elsewhere in ["10.244.0.2", "169.254.169.254", "fd00::1", "fe80::1"] {
            assert!(is_somewhere(elsewhere), "{elsewhere}");
        }
    }
}
