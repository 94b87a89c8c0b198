//! Images in the OCI format, as archives: the same input gives the same bytes.
//!
//! An archive also has what `docker save` adds, so that whatever loads either can load it.
//! Layers are not compressed: tools that push to a registry do that.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar::Tar;
use crate::arch::Arch;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What an image is made of.
pub(crate) struct Image {
    /// With its tag.
    pub(crate) name: String,
    /// The program, at the root of the file system and alone there.
    pub(crate) program: &'static str,
    pub(crate) content: Vec<u8>,
    /// As whom it runs, `UID:GID`.
    pub(crate) user: &'static str,
    /// When it was made, by RFC 3339.
    pub(crate) created: String,
    pub(crate) labels: BTreeMap<&'static str, String>,
}

/// A finished image.
pub(crate) struct Archive {
    pub(crate) bytes: Vec<u8>,
    /// The manifest's, by which registries know an image.
    pub(crate) digest: Digest,
    /// Of each layer, in bytes.
    pub(crate) layers: Vec<usize>,
}

impl Image {
    pub(crate) fn archive(&self) -> Archive {
        let mut layer = Tar::default();
        layer.file(self.program, 0o755, &self.content);
        let layer = Blob::new(LAYER, layer.finish());
        let config = Blob::json(CONFIG, &self.config(&layer.digest));
        let manifest = Blob::json(
            MANIFEST,
            &json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
                "annotations": self.labels,
            }),
        );
        let mut named = manifest.descriptor();
        named["platform"] = json!({"architecture": Arch::HERE.debian(), "os": "linux"});
        named["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [named],
        });
        let docker = json!([{
            "Config": config.path(),
            "RepoTags": [self.name],
            "Layers": [layer.path()],
        }]);

        let mut archive = Tar::default();
        let mut add = |path: &str, value: &Value| {
            archive.file(path, 0o644, value.to_string().as_bytes());
        };
        add("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}));
        add("index.json", &index);
        add("manifest.json", &docker);
        archive.folder("blobs/", 0o755);
        archive.folder("blobs/sha256/", 0o755);
        for blob in [&manifest, &config, &layer] {
            archive.file(&blob.path(), 0o644, &blob.bytes);
        }
        Archive {
            bytes: archive.finish(),
            digest: manifest.digest,
            layers: vec![layer.bytes.len()],
        }
    }

    fn config(&self, layer: &Digest) -> Value {
        json!({
            "architecture": Arch::HERE.debian(),
            "os": "linux",
            "created": self.created,
            "config": {
                "Entrypoint": [format!("/{}", self.program)],
                "User": self.user,
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
            "history": [{"created": self.created, "created_by": "cargo xtask image"}],
        })
    }
}

struct Blob {
    kind: &'static str,
    digest: Digest,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        Self { kind, digest: Digest::of(&bytes), bytes }
    }

    fn json(kind: &'static str, value: &Value) -> Self {
        Self::new(kind, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.kind,
            "digest": self.digest.to_string(),
            "size": self.bytes.len(),
        })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest.hex())
    }
}

/// A SHA-256 digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let hash = Sha256::digest(bytes);
        Self(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(crate) fn hex(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &[u8]) -> Image {
        Image {
            name: "sluice.test/hello:1".into(),
            program: "hello",
            content: content.into(),
            user: "65532:65532",
            created: "2026-01-01T00:00:00Z".into(),
            labels: BTreeMap::from([("org.opencontainers.image.title", "hello".to_owned())]),
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_and_another_another_digest() {
        let (one, again) = (image(b"a").archive(), image(b"a").archive());
        assert_eq!(one.bytes, again.bytes);
        assert_ne!(one.digest, image(b"b").archive().digest);
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), format!("sha256:{empty}"));
    }
}
