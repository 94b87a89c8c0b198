//! Keeps a pod's netns captured as it changes: interfaces and addresses that come later, routes that
//! go, and rules that somebody else removes.

use std::{
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
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
/// That, as a multiple of what the last look took: it is longer where there is more to see.
const RESTS: u32 = 20;
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
}

/// The holding of one pod, for as long as it lasts.
#[derive(Clone)]
pub(super) struct Held(Arc<Mutex<Option<Holding>>>);

impl Held {
    pub(super) fn new(holding: Holding) -> Self {
        Self(Arc::new(Mutex::new(Some(holding))))
    }

    /// Ends it: when this returns, nothing of it is made good any more, nor being made.
    pub(super) fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// As [`Holding::make_good`]; `None` when it is over.
    fn make_good(&self) -> Option<io::Result<bool>> {
        let mut holding = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holding.as_mut().map(Holding::make_good)
    }

    /// Makes it good whenever something there changes, for as long as what is returned lives and
    /// the agent is `in_charge`. `repaired` is told when something had been taken away.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn watch(
        &self,
        netns: &Netns,
        news: News,
        in_charge: watch::Receiver<bool>,
        repaired: impl Fn() + Send + 'static,
    ) -> AbortOnDropHandle<()> {
        let watcher = Watcher { held: self.clone(), pod: netns.path().to_owned(), news, in_charge };
        AbortOnDropHandle::new(tokio::spawn(watcher.follow(repaired)))
    }
}

struct Watcher {
    held: Held,
    /// Where its netns was found, for the log.
    pod: PathBuf,
    news: News,
    in_charge: watch::Receiver<bool>,
}

impl Watcher {
    async fn follow(mut self, repaired: impl Fn() + Send) {
        let mut again = false;
        let mut pause = PAUSE;
        loop {
            tokio::select! {
                news = self.news.come() => if let Err(error) = news {
                    tracing::warn!(netns = %self.pod.display(), %error, "no news of a pod's network");
                    sleep(AGAIN).await;
                },
                () = sleep(AGAIN), if again => {}
            }
            sleep(pause).await;
            // While another agent takes over it is that one's to do. The sender goes with capture.
            if self.in_charge.wait_for(|in_charge| *in_charge).await.is_err() {
                return;
            }
            let held = self.held.clone();
            let began = Instant::now();
            let made = spawn_blocking(move || held.make_good()).await;
            pause = pause_after(began.elapsed());
            let Ok(Some(made)) = made else { return };
            again = made.is_err();
            match made {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(netns = %self.pod.display(),
                        "somebody removed what keeps a pod captured; it is there again");
                    repaired();
                }
                Err(error) => tracing::warn!(netns = %self.pod.display(), %error,
                    "could not capture what changed in a pod's network"),
            }
        }
    }
}

/// How long nothing is looked at after a look that took so long.
fn pause_after(look: Duration) -> Duration {
    PAUSE.max(look * RESTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_there_is_to_see_most_of_the_time_nobody_looks() {
        assert_eq!(pause_after(Duration::ZERO), PAUSE);
        let long = Duration::from_millis(500);
        assert!(pause_after(long) > 10 * long);
    }
}
