//! Where the roots are kept: keys and all in a Secret, what to trust in a ConfigMap.

use std::collections::BTreeMap;

use anyhow::Context;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{name::NamespacedName, roots::Roots};

/// The Secret's key.
const KEPT: &str = "roots.json";
/// The ConfigMap's key, which is the file's name where it is mounted; as Istio's.
const PUBLISHED: &str = "root-cert.pem";

/// The Secret of the roots.
pub(super) struct Shelf {
    secrets: Api<Secret>,
    secret: NamespacedName,
    config_maps: Api<ConfigMap>,
    config_map: NamespacedName,
}

/// Somebody else changed the object meanwhile: to be looked at again.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Written {
    Yes,
    Overtaken,
}

/// Roots as they were read, with what tells whether they have changed since.
pub(super) struct Kept {
    pub(super) roots: Roots,
    secret: Secret,
}

/// The ConfigMap as it was before the roots were read.
pub(super) struct Published(Option<ConfigMap>);

impl Published {
    /// The roots that agents were told to trust.
    pub(super) fn roots(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let data = self.0.as_ref().and_then(|map| map.data.as_ref());
        let Some(pem) = data.and_then(|data| data.get(PUBLISHED)) else { return Ok(Vec::new()) };
        let roots = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>();
        roots.map_err(|error| {
            anyhow::anyhow!(
                "`{PUBLISHED}` of the ConfigMap cannot be read: {error} (hint: delete the key \
                 when there is nothing in it to be trusted)"
            )
        })
    }
}

impl Shelf {
    pub(super) fn new(
        client: Client,
        secret: &NamespacedName,
        config_map: &NamespacedName,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &secret.namespace),
            secret: secret.clone(),
            config_maps: Api::namespaced(client, &config_map.namespace),
            config_map: config_map.clone(),
        }
    }

    /// The roots; `None` when there are none yet.
    pub(super) async fn kept(&self) -> anyhow::Result<Option<Kept>> {
        let Self { secrets, secret: name, .. } = self;
        let secret = secrets.get_opt(&name.name).await;
        let secret = secret.with_context(|| format!("could not read Secret {name}"))?;
        let Some(secret) = secret else { return Ok(None) };
        let kept = secret.data.as_ref().and_then(|data| data.get(KEPT)).with_context(|| {
            format!(
                "Secret {name} has no key `{KEPT}` (hint: delete it to start a new CA, or name \
                 another with --secret)"
            )
        })?;
        let roots = serde_json::from_slice(&kept.0)
            .with_context(|| format!("`{KEPT}` of Secret {name} cannot be read"))?;
        Ok(Some(Kept { roots, secret }))
    }

    /// Keeps the first roots there are.
    pub(super) async fn create(&self, roots: &Roots) -> anyhow::Result<Written> {
        let Self { secrets, secret: name, .. } = self;
        let secret = Secret {
            metadata: ObjectMeta { name: Some(name.name.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(KEPT.to_owned(), encoded(roots)?)])),
            type_: Some("Opaque".into()),
            ..Secret::default()
        };
        let created = secrets.create(&PostParams::default(), &secret).await;
        written(created).with_context(|| format!("could not create Secret {name}"))
    }

    /// Keeps `roots` in place of those that were read.
    pub(super) async fn replace(&self, kept: Kept, roots: &Roots) -> anyhow::Result<Written> {
        let Self { secrets, secret: name, .. } = self;
        let mut secret = kept.secret;
        secret.data.get_or_insert_default().insert(KEPT.to_owned(), encoded(roots)?);
        let replaced = secrets.replace(&name.name, &PostParams::default(), &secret).await;
        written(replaced).with_context(|| format!("could not write Secret {name}"))
    }

    /// What is published. To be read before the roots are: [`Self::publish`] then never puts
    /// an older bundle in the place of a newer one.
    pub(super) async fn published(&self) -> anyhow::Result<Published> {
        let Self { config_maps, config_map: name, .. } = self;
        let map = config_maps.get_opt(&name.name).await;
        map.map(Published).with_context(|| format!("could not read ConfigMap {name}"))
    }

    /// Publishes `bundle`, unless that is what is published.
    pub(super) async fn publish(&self, before: Published, bundle: &str) -> anyhow::Result<Written> {
        let Self { config_maps, config_map: name, .. } = self;
        let published = match before.0 {
            Some(mut map) => {
                let data = map.data.get_or_insert_default();
                if data.get(PUBLISHED).is_some_and(|published| published == bundle) {
                    return Ok(Written::Yes);
                }
                data.insert(PUBLISHED.to_owned(), bundle.to_owned());
                config_maps.replace(&name.name, &PostParams::default(), &map).await
            }
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta { name: Some(name.name.clone()), ..ObjectMeta::default() },
                    data: Some(BTreeMap::from([(PUBLISHED.to_owned(), bundle.to_owned())])),
                    ..ConfigMap::default()
                };
                config_maps.create(&PostParams::default(), &map).await
            }
        };
        written(published).with_context(|| format!("could not publish ConfigMap {name}"))
    }
}

fn encoded(roots: &Roots) -> anyhow::Result<ByteString> {
    Ok(ByteString(serde_json::to_vec(roots)?))
}

fn written<T>(result: Result<T, kube::Error>) -> anyhow::Result<Written> {
    match result {
        Ok(_) => Ok(Written::Yes),
        // AlreadyExists and Conflict.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Overtaken),
        Err(error) => Err(error.into()),
    }
}
