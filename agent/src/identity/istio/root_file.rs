//! A file of root certificates that is replaced while the agent runs.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{config::watch::Watch, identity::Roots};

/// How long until a watch that the kernel took back is asked for again.
const RETRY: Duration = Duration::from_secs(10);

/// The roots of a PEM file as it is now. What cannot be read leaves the last ones in force.
pub(super) struct RootFile {
    path: PathBuf,
    roots: watch::Receiver<Roots>,
    _following: AbortOnDropHandle<()>,
}

impl RootFile {
    /// Reads `path` and follows it. A file that is not there yet may come.
    ///
    /// # Errors
    /// When the kernel grants no watch.
    pub(super) fn follow(path: PathBuf) -> io::Result<Self> {
        // The directory, since Kubernetes replaces files of a volume by a link in it.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let watch = Watch::new(directory.unwrap_or(Path::new(".")))?;
        watch.begin()?;
        let (sender, roots) = watch::channel(Roots::default());
        load(&path, &sender);
        let following = {
            let path = path.clone();
            async move {
                loop {
                    let changed = async {
                        watch.changed().await?;
                        watch.begin()
                    };
                    if let Err(error) = changed.await {
                        tracing::warn!(%error, path = %path.display(), "could not watch the roots");
                        sleep(RETRY).await;
                    }
                    load(&path, &sender);
                }
            }
        };
        Ok(Self { path, roots, _following: AbortOnDropHandle::new(tokio::spawn(following)) })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Roots> {
        self.roots.clone()
    }

    /// What a CA is verified by.
    ///
    /// # Errors
    /// In words, when there has been no root yet.
    pub(super) fn store(&self) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        for root in self.roots.borrow().iter() {
            store.add(root.clone()).map_err(|error| error.to_string())?;
        }
        if store.is_empty() {
            return Err(format!(
                "`{}` holds no root certificate yet (hint: --ca-root; has the CA published its \
                 roots?)",
                self.path.display()
            ));
        }
        Ok(store)
    }
}

/// Publishes what is in the file, if it is something else than before.
fn load(path: &Path, roots: &watch::Sender<Roots>) {
    match read(path) {
        Ok(read) => {
            let changed = roots.send_if_modified(|roots| {
                let changed = **roots != read;
                if changed {
                    *roots = Arc::new(read);
                }
                changed
            });
            if changed {
                let count = roots.borrow().len();
                tracing::info!(path = %path.display(), count, "root certificates read");
            }
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error, "root certificates not read");
        }
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    parse(&text)
}

/// Every certificate of `pem`, each once; at least one.
pub(super) fn parse(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots = Vec::new();
    for root in CertificateDer::pem_slice_iter(pem) {
        let root = root.map_err(|error| error.to_string())?;
        RootCertStore::empty().add(root.clone()).map_err(|error| error.to_string())?;
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    if roots.is_empty() {
        return Err("it holds no PEM certificate".into());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::{
        identity::{Root, RootOptions, pem},
        mesh::TrustDomain,
    };

    fn root() -> String {
        let options = RootOptions {
            name: "test",
            trust_domain: &TrustDomain::default(),
            lifetime: Duration::from_secs(3600),
        };
        let root = Root::new(rcgen::KeyPair::generate().unwrap(), &options).unwrap();
        pem(root.certificate())
    }

    /// Puts a file into a volume as the kubelet does.
    fn mount(volume: &Path, number: u32, text: &str) {
        let data = volume.join(format!("..{number}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("root-cert.pem"), text).unwrap();
        symlink(format!("..{number}"), volume.join("..tmp")).unwrap();
        fs::rename(volume.join("..tmp"), volume.join("..data")).unwrap();
    }

    async fn count(roots: &mut watch::Receiver<Roots>, wanted: usize) {
        let reached = roots.wait_for(|roots| roots.len() == wanted);
        tokio::time::timeout(Duration::from_secs(20), reached).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_volume_that_is_replaced_is_read_again_and_nonsense_is_not_believed() {
        let volume = TempDir::new().unwrap();
        let path = volume.path().join("root-cert.pem");
        let file = RootFile::follow(path.clone()).unwrap();
        let mut roots = file.subscribe();
        assert!(file.store().unwrap_err().contains("no root certificate yet"));

        let (old, new) = (root(), root());
        mount(volume.path(), 1, &old);
        symlink("..data/root-cert.pem", &path).unwrap();
        count(&mut roots, 1).await;
        mount(volume.path(), 2, "nonsense");
        mount(volume.path(), 3, &format!("{old}{new}{old}"));
        count(&mut roots, 2).await;
        assert_eq!(file.store().unwrap().len(), 2);
    }

    #[test]
    fn a_file_without_a_certificate_holds_no_roots() {
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
        {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
