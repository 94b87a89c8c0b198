//! Keeps the roots what the time asks for, together with the other replicas.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::{sleep, timeout};

use super::{
    API_TIMEOUT,
    authority::Authority,
    metrics::Metrics,
    roots::{Roots, Schedule},
    server::ServerName,
    shelf::{Published, Shelf, Written},
};
use crate::mesh::TrustDomain;

/// How often the roots are looked at: one small object, and how soon a rotation begins.
const EVERY: Duration = Duration::from_secs(5);
/// How often others may get ahead of one look, before it is given up until the next.
const ATTEMPTS: usize = 10;

/// The roots in force here. Any number of replicas keep them: each change is written on top of
/// what was read, or not at all, and each is right for whoever makes it.
pub(super) struct Keeper {
    shelf: Shelf,
    trust_domain: TrustDomain,
    schedule: Schedule,
    names: Vec<ServerName>,
    authority: ArcSwapOption<Authority>,
    metrics: Arc<Metrics>,
}

impl Keeper {
    pub(super) fn new(
        shelf: Shelf,
        trust_domain: TrustDomain,
        schedule: Schedule,
        names: Vec<ServerName>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let authority = ArcSwapOption::empty();
        Self { shelf, trust_domain, schedule, names, authority, metrics }
    }

    /// What signs now; `None` until roots have been read or made.
    pub(super) fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.load_full()
    }

    /// Looks after the roots for ever. `ready` is called after each time they were found in
    /// order; when the API server is away, what there is goes on.
    pub(super) async fn follow(&self, ready: impl Fn()) {
        loop {
            match timeout(API_TIMEOUT, self.look()).await {
                Ok(Ok(())) => ready(),
                Ok(Err(error)) => self.failed(&format!("{error:#}")),
                Err(_) => self.failed("the API server does not answer"),
            }
            sleep(EVERY).await;
        }
    }

    fn failed(&self, error: &str) {
        self.metrics.look_failed();
        tracing::warn!(error, "could not look after the roots");
    }

    /// Makes the first root if there is none, publishes, and takes every step that is due.
    async fn look(&self) -> anyhow::Result<()> {
        for _ in 0..ATTEMPTS {
            let published = self.shelf.published().await?;
            let now = SystemTime::now();
            let Some(kept) = self.shelf.kept().await? else {
                self.create(&published, now).await?;
                continue;
            };
            self.sign_with(&kept.roots, now)?;
            if self.shelf.publish(published, &kept.roots.bundle()).await? == Written::Overtaken {
                continue;
            }
            let Some(next) = kept.roots.advanced(&self.schedule, now)? else { return Ok(()) };
            if self.shelf.replace(kept, &next).await? == Written::Yes {
                tracing::info!(roots = next.describe(), "roots changed");
            }
        }
        bail!("other replicas were quicker {ATTEMPTS} times in a row")
    }

    async fn create(&self, published: &Published, now: SystemTime) -> anyhow::Result<()> {
        // A new root of which nobody has heard would cut every agent off at its next renewal. The
        // published ones outlive the Secret, and a restart of this replica too.
        if self.authority.load().is_some() || !published.roots()?.is_empty() {
            bail!(
                "the Secret is gone (hint: restore it; where there is no copy, `sluice ca new-root` \
                 starts a new CA)"
            );
        }
        let roots = Roots::first(&self.trust_domain, &self.schedule, now)?;
        if self.shelf.create(&roots).await? == Written::Yes {
            tracing::info!("first root made");
        }
        Ok(())
    }

    fn sign_with(&self, roots: &Roots, now: SystemTime) -> anyhow::Result<()> {
        let root = roots
            .signing(&self.trust_domain)
            .map_err(|cause| anyhow::anyhow!("the root in the Secret cannot be used: {cause}"))?;
        if self.authority.load().as_ref().is_none_or(|authority| !authority.serves(&root, now)) {
            let authority = Authority::new(root, &self.names, self.schedule.certificate_lifetime)?;
            tracing::info!(
                root_expires = %humantime::format_rfc3339_seconds(authority.expires()),
                "serving certificate issued"
            );
            self.authority.store(Some(Arc::new(authority)));
        }
        Ok(())
    }
}

/// The TLS side: the serving certificate of the moment.
impl ResolvesServerCert for Keeper {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.authority.load().as_ref()?.serving())
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// Starts anew without the former roots' keys, which are lost. What they signed is trusted until
/// it is over.
pub(super) async fn new_root(
    shelf: &Shelf,
    trust_domain: &TrustDomain,
    schedule: &Schedule,
) -> anyhow::Result<()> {
    let former = shelf.published().await?.roots()?;
    let roots = Roots::first(trust_domain, schedule, SystemTime::now())?;
    let (count, roots) = (former.len(), roots.succeeding(&former, schedule, SystemTime::now()));
    if shelf.create(&roots).await? == Written::Overtaken {
        bail!("there are roots, with their keys (hint: `sluice ca rotate` replaces them in order)");
    }
    println!(
        "A new CA has begun; roots of before that are trusted until what they signed is over: \
         {count}."
    );
    Ok(())
}

/// Adds a next root.
pub(super) async fn rotate(shelf: &Shelf) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let kept = shelf.kept().await?.context(
            "there are no roots yet (hint: is `sluice ca` running? does --secret name its Secret?)",
        )?;
        let next = kept.roots.rotating(SystemTime::now())?;
        if shelf.replace(kept, &next).await? == Written::Yes {
            println!("The next root has been made; {}.", next.describe());
            return Ok(());
        }
    }
    bail!("the roots keep changing (hint: try again)")
}
