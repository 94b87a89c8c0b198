//! Keeps a pod's netns captured as it changes: interfaces and addresses that come later, routes that
//! go, and rules that somebody else removes.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch::{self, error::RecvError},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    maps::OwnMaps,
    netlink::News,
    netns::Netns,
    network::Network,
    routing::{Made, Plan},
    settings::Settings,
};

/// The least time between two looks: whoever changes something without end in a pod of theirs must
/// not keep the agent busy with it.
const PAUSE: Duration = Duration::from_millis(50);
/// How soon something that failed is tried again that may not be news again.
const AGAIN: Duration = Duration::from_secs(1);

/// What capture holds in one pod's netns.
pub(super) struct Holding {
    pub(super) slot: u32,
    pub(super) netns: Arc<Netns>,
    /// What others know the pod by.
    pub(super) ips: Vec<IpAddr>,
    pub(super) maps: OwnMaps,
}

impl Holding {
    /// Makes rules, routes, settings and maps what they should be. Whether a rule or a setting was
    /// missing, which only somebody else can have taken where it had been there before.
    pub(super) fn make_good(&mut self) -> io::Result<bool> {
        let Self { slot, netns, ips, maps } = self;
        let (network, Made { closed, ruled }, settings) = netns.run(|| {
            let network = Network::read()?;
            let made = Plan::of(&network, ips).carry_out(&network)?;
            Ok((network, made, Settings::ON.restore()?))
        })?;
        // Those that others know it by first, should there be too many.
        let known = ips.iter().copied().filter(|ip| network.addresses().any(|own| own == *ip));
        let others = network.addresses().filter(|own| !ips.contains(own));
        let set = maps.set(*slot, known.chain(others), closed.into_iter());
        set.map_err(io::Error::other)?;
        Ok(ruled || settings)
    }

    /// Does so whenever something there changes, for as long as what is returned lives and the
    /// agent is `in_charge`. `repaired` is told when something had been taken away.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn watch(
        self,
        mut news: News,
        mut in_charge: watch::Receiver<bool>,
        repaired: impl Fn() + Send + Sync + 'static,
    ) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move {
            // The sender goes with the capture.
            let _: RecvError = self.follow(&mut news, &mut in_charge, &repaired).await;
        }))
    }

    async fn follow(
        mut self,
        news: &mut News,
        in_charge: &mut watch::Receiver<bool>,
        repaired: &(impl Fn() + Sync),
    ) -> RecvError {
        loop {
            if let Err(error) = news.come().await {
                tracing::warn!(netns = %self.netns.path().display(), %error, "no news of a pod's network");
                sleep(AGAIN).await;
            }
            sleep(PAUSE).await;
            // While another agent takes over it is that one's to do.
            if let Err(over) = in_charge.wait_for(|in_charge| *in_charge).await {
                return over;
            }
            while let Err(error) = self.make_good().map(|missing| {
                if missing {
                    tracing::warn!(netns = %self.netns.path().display(),
                        "somebody removed what keeps a pod captured; it is there again");
                    repaired();
                }
            }) {
                tracing::warn!(netns = %self.netns.path().display(), %error,
                    "could not capture what changed in a pod's network");
                sleep(AGAIN).await;
            }
        }
    }
}
