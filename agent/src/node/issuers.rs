//! Which issuers' keys this node's pods have a use for, and where they are.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    jwt::{Following, Resolve},
    mesh::SnapshotStore,
    proxy::Proxy,
};

/// Keeps the keys fresh that RequestAuthentications of this node's pods name.
pub(super) async fn follow(proxy: Arc<Proxy>) {
    let snapshots = proxy.snapshots.clone();
    let mut changes = snapshots.subscribe_policies();
    let resolve = Arc::new(Services(snapshots.clone()));
    let mut following = Following::new(proxy.issuers.clone(), resolve);
    loop {
        {
            let snapshot = snapshots.load();
            let all = snapshot.local().flat_map(|pod| pod.authentication.all());
            following.want(all.flat_map(|one| one.sources()));
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The mesh's Services by the names that pods know them by.
struct Services(Arc<SnapshotStore>);

impl Resolve for Services {
    fn service(&self, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = host.strip_suffix(".cluster.local").unwrap_or(host);
        let host = host.strip_suffix(".svc")?;
        let (name, namespace) = host.split_once('.')?;
        let snapshot = self.0.load();
        let service = snapshot.service_named(namespace, name)?;
        let port = service.port(port)?;
        let family = service.vips.first().copied().unwrap_or(IpAddr::from([0; 4]));
        // The one whose turn it is first.
        let first = service.pick(port, family).map(|endpoint| endpoint.address);
        let all = port.endpoints.taking.iter().map(|endpoint| endpoint.address);
        Some(first.into_iter().chain(all.filter(|other| Some(*other) != first)).collect())
    }
}
