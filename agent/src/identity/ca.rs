//! The CA inside the agent: for one node, for the demo, for tests.
//!
//! Its key lets whoever holds it be anyone in the mesh. In a cluster the key must not lie on
//! the nodes; certificates come from a source elsewhere there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::{
    BoxFuture, Certificate, CertificateSource, IdentityError, certificate,
    root::{Root, RootOptions},
};
use crate::mesh::{Principal, TrustDomain};

const KEY_FILE: &str = "ca-key.pem";
const CERTIFICATE_FILE: &str = "ca-cert.pem";
/// Held while the two above are read or made, so that agents that start at once agree.
const LOCK_FILE: &str = ".lock";
/// A root outlives the machine it is on; there is nobody to roll it over.
const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A CA whose key is a file of this machine.
#[derive(Debug)]
pub struct SelfSignedCa {
    trust_domain: TrustDomain,
    lifetime: Duration,
    root: Root,
}

impl SelfSignedCa {
    /// The CA in `dir`, made there if there is none. Certificates will live for `lifetime`.
    ///
    /// # Errors
    /// When the files cannot be read or made, when others may read the key, and when they are
    /// no CA of `trust_domain` that is valid now.
    pub fn open(
        dir: &Path,
        trust_domain: TrustDomain,
        lifetime: Duration,
    ) -> Result<Self, IdentityError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create directory", dir))?;
        let lock = dir.join(LOCK_FILE);
        let lock_file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(failed("open", &lock))?;
        lock_file.lock().map_err(failed("lock", &lock))?;

        let key_path = dir.join(KEY_FILE);
        let certificate_path = dir.join(CERTIFICATE_FILE);
        let key = match read(&key_path)? {
            Some(pem) => read_key(&key_path, &certificate_path, &pem)?,
            None if certificate_path.exists() => {
                let cause = format!(
                    "its key `{}` is missing (hint: restore it, or delete the certificate to \
                     start a new CA; every agent that trusts the old one must then restart)",
                    key_path.display()
                );
                return Err(IdentityError::UnusableCa { path: certificate_path, cause });
            }
            None => make_key(dir, &key_path)?,
        };
        let root = match read(&certificate_path)? {
            Some(pem) => Root::read(&pem, key, &trust_domain)
                .map_err(|cause| unusable(&certificate_path, cause))?,
            None => make_root(dir, &certificate_path, key, &trust_domain)?,
        };
        Ok(Self { trust_domain, lifetime, root })
    }

    /// The root of every certificate issued here.
    #[cfg(test)]
    pub(super) fn root(&self) -> &Root {
        &self.root
    }
}

impl CertificateSource for SelfSignedCa {
    fn issue<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> BoxFuture<'a, Result<Certificate, IdentityError>> {
        // A P-256 key and signature take a fraction of a millisecond; no other thread needed.
        let issued = (|| {
            if principal.trust_domain() != &self.trust_domain {
                return Err(format!("this CA signs for trust domain `{}` only", self.trust_domain));
            }
            let key = KeyPair::generate().map_err(text)?;
            let leaf = self.root.sign_workload(&key, principal, self.lifetime).map_err(text)?;
            Ok(Certificate {
                chain: vec![leaf],
                key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
                roots: vec![self.root.certificate().clone()],
            })
        })();
        let issued = issued
            .map_err(|cause| IdentityError::NotIssued { principal: principal.clone(), cause });
        Box::pin(std::future::ready(issued))
    }
}

fn read_key(path: &Path, certificate: &Path, pem: &str) -> Result<KeyPair, IdentityError> {
    let mode = fs::metadata(path).map_err(failed("read", path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let (path, certificate) = (path.to_owned(), certificate.to_owned());
        return Err(IdentityError::ExposedKey { path, certificate, mode });
    }
    KeyPair::from_pem(pem).map_err(|error| unusable(path, error))
}

fn make_key(dir: &Path, path: &Path) -> Result<KeyPair, IdentityError> {
    let key = KeyPair::generate().map_err(|error| unusable(path, error))?;
    write(dir, path, &key.serialize_pem(), 0o600)?;
    Ok(key)
}

fn make_root(
    dir: &Path,
    path: &Path,
    key: KeyPair,
    trust_domain: &TrustDomain,
) -> Result<Root, IdentityError> {
    let options = RootOptions { name: "sluice built-in CA", trust_domain, lifetime: ROOT_LIFETIME };
    let root = Root::new(key, &options).map_err(|error| unusable(path, error))?;
    write(dir, path, &certificate::pem(root.certificate()), 0o644)?;
    Ok(root)
}

/// The file's text, or `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Puts a whole file in place, or none: nobody ever finds half a key.
fn write(dir: &Path, path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let draft = path.with_extension("pem.new");
    let put = || -> io::Result<()> {
        // Left by an agent that was stopped here; its mode may be another.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(dir)?.sync_all()
    };
    put().map_err(failed("write", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path: PathBuf = path.to_owned();
    move |error| IdentityError::CaFile { action, path, source: Arc::new(error) }
}

fn unusable(path: &Path, cause: impl ToString) -> IdentityError {
    IdentityError::UnusableCa { path: path.to_owned(), cause: cause.to_string() }
}

fn text(error: rcgen::Error) -> String {
    error.to_string()
}
