//! The roots over time: one signs, the next one waits until everybody trusts it, and those
//! before are trusted until nothing they signed is valid.

use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use crate::{
    identity::{self, Root, RootOptions},
    mesh::TrustDomain,
};

/// How much longer than the longest certificate a root is trusted after its time: replicas
/// learn of a change one after another, and clocks differ.
const SLACK: Duration = Duration::from_secs(600);
const NAME: &str = "sluice CA";

/// When roots change.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How long a root is valid.
    pub root_lifetime: Duration,
    /// The age at which a root gets a successor.
    pub rotate_after: Duration,
    /// How long a root is published before it signs: as long as agents may take to read it.
    pub overlap: Duration,
    /// The longest life of a certificate.
    pub certificate_lifetime: Duration,
}

/// What is kept in the Secret. No `Debug`: there are keys in it.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Roots {
    signing: KeyedRoot,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Next>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyedRoot {
    /// PEM.
    certificate: String,
    /// PEM.
    key: String,
    #[serde(with = "rfc3339")]
    made: SystemTime,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Next {
    root: KeyedRoot,
    /// `None` until it is known to be in the ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    published: Option<SystemTime>,
}

/// Its key is gone: nothing can be signed with it again.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Retired {
    /// PEM.
    certificate: String,
    #[serde(with = "rfc3339")]
    trusted_until: SystemTime,
}

/// A rotation was asked for while one is under way.
#[derive(Debug, thiserror::Error)]
#[error(
    "a rotation is under way: the next root {} (hint: it signs after --rotation-overlap)",
    match .0 {
        Some(at) => format!("has been published since {}", humantime::format_rfc3339_seconds(*at)),
        None => "is about to be published".to_owned(),
    }
)]
pub(super) struct UnderWay(Option<SystemTime>);

impl Roots {
    /// The first root of a cluster.
    pub(super) fn first(
        trust_domain: &TrustDomain,
        schedule: &Schedule,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        let signing = KeyedRoot::make(trust_domain, schedule.root_lifetime, now)?;
        Ok(Self { signing, next: None, retired: Vec::new() })
    }

    /// The same after `former` roots, whose keys are lost.
    pub(super) fn succeeding(
        mut self,
        former: &[CertificateDer<'_>],
        schedule: &Schedule,
        now: SystemTime,
    ) -> Self {
        let trusted_until = now + schedule.certificate_lifetime + SLACK;
        self.retired.extend(
            former.iter().map(|root| Retired { certificate: identity::pem(root), trusted_until }),
        );
        self
    }

    /// The root that signs now.
    ///
    /// # Errors
    /// In words, when it is none of `trust_domain` that is valid now.
    pub(super) fn signing(&self, trust_domain: &TrustDomain) -> Result<Root, String> {
        let key = KeyPair::from_pem(&self.signing.key).map_err(|error| error.to_string())?;
        Root::read(&self.signing.certificate, key, trust_domain)
    }

    /// PEM of every root to trust, the one that signs first.
    pub(super) fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| &next.root.certificate);
        let retired = self.retired.iter().map(|retired| &retired.certificate);
        std::iter::once(&self.signing.certificate).chain(next).chain(retired).cloned().collect()
    }

    /// With a next root, of which the rest follows by [`Self::advanced`].
    ///
    /// # Errors
    /// When there is a next root already, or no key can be made.
    pub(super) fn rotating(&self, now: SystemTime) -> anyhow::Result<Self> {
        if let Some(next) = &self.next {
            return Err(UnderWay(next.published).into());
        }
        let (trust_domain, lifetime) = self.signing.facts()?;
        let root = KeyedRoot::make(&trust_domain, lifetime, now)?;
        Ok(Self { next: Some(Next { root, published: None }), ..self.clone() })
    }

    /// What the time asks for, given that the bundle as it is now has been published; `None`
    /// when that is nothing.
    pub(super) fn advanced(
        &self,
        schedule: &Schedule,
        now: SystemTime,
    ) -> anyhow::Result<Option<Self>> {
        let mut roots = self.clone();
        roots.retired.retain(|retired| now < retired.trusted_until);
        let mut changed = roots.retired.len() < self.retired.len();
        match roots.next.take() {
            None if now >= self.signing.made + schedule.rotate_after => {
                return roots.rotating(now).map(Some);
            }
            None => {}
            Some(Next { root, published: None }) => {
                roots.next = Some(Next { root, published: Some(now) });
                changed = true;
            }
            Some(Next { root, published: Some(at) }) if now >= at + schedule.overlap => {
                let former = std::mem::replace(&mut roots.signing, root);
                roots.retired.push(Retired {
                    certificate: former.certificate,
                    trusted_until: now + schedule.certificate_lifetime + SLACK,
                });
                changed = true;
            }
            waiting => roots.next = waiting,
        }
        Ok(changed.then_some(roots))
    }

    /// What the log says of it.
    pub(super) fn describe(&self) -> String {
        let next = match &self.next {
            None => String::new(),
            Some(Next { published: None, .. }) => ", a new one to be published".into(),
            Some(Next { published: Some(at), .. }) => {
                format!(", the next one published {}", humantime::format_rfc3339_seconds(*at))
            }
        };
        format!("one signs{next}, {} retired", self.retired.len())
    }
}

impl KeyedRoot {
    fn make(
        trust_domain: &TrustDomain,
        lifetime: Duration,
        made: SystemTime,
    ) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let root = Root::new(key, &RootOptions { name: NAME, trust_domain, lifetime })?;
        Ok(Self { certificate: identity::pem(root.certificate()), key: root.key_pem(), made })
    }

    /// Whose root it is, and how long it lives.
    fn facts(&self) -> anyhow::Result<(TrustDomain, Duration)> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)?;
        let organisation = parsed.subject().iter_organization().next();
        let trust_domain = organisation
            .and_then(|name| name.as_str().ok()?.parse().ok())
            .ok_or_else(|| anyhow::anyhow!("the root names no trust domain"))?;
        let expires = identity::system_time(parsed.validity().not_after);
        Ok((trust_domain, expires.duration_since(self.made).unwrap_or_default()))
    }
}

/// Times as people read them.
mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }

    pub(super) mod option {
        use super::*;

        pub(in super::super) fn serialize<S: Serializer>(
            time: &Option<SystemTime>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => super::serialize(time, to),
                None => to.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            super::deserialize(from).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SCHEDULE: Schedule = Schedule {
        root_lifetime: Duration::from_secs(3600 * 24 * 3650),
        rotate_after: Duration::from_secs(3600 * 24 * 365),
        overlap: HOUR,
        certificate_lifetime: Duration::from_secs(3600 * 24),
    };

    fn first(now: SystemTime) -> Roots {
        Roots::first(&TrustDomain::default(), &SCHEDULE, now).unwrap()
    }

    fn advanced(roots: &Roots, now: SystemTime) -> Option<Roots> {
        roots.advanced(&SCHEDULE, now).unwrap()
    }

    fn count(roots: &Roots) -> usize {
        roots.bundle().matches("BEGIN CERTIFICATE").count()
    }

    fn signer(roots: &Roots) -> CertificateDer<'static> {
        roots.signing(&TrustDomain::default()).unwrap().certificate().clone()
    }

    #[test]
    fn the_first_root_signs_until_it_is_old() {
        let now = SystemTime::now();
        let roots = first(now);
        assert_eq!(count(&roots), 1);
        assert!(advanced(&roots, now + 24 * 364 * HOUR).is_none());
        assert!(advanced(&roots, now + 24 * 365 * HOUR).is_some());
    }

    #[test]
    fn a_new_root_is_published_then_signs_then_the_old_one_goes() {
        let now = SystemTime::now();
        let old = first(now);
        let rotating = old.rotating(now).unwrap();
        assert_eq!((count(&rotating), signer(&rotating)), (2, signer(&old)));

        // However late it is: the overlap begins when the root has been published.
        let published = advanced(&rotating, now + 9 * HOUR).unwrap();
        assert_eq!(signer(&published), signer(&old));
        let now = now + 9 * HOUR;
        assert!(advanced(&published, now + HOUR - Duration::from_secs(1)).is_none());

        let new = advanced(&published, now + HOUR).unwrap();
        assert_ne!(signer(&new), signer(&old));
        assert_eq!(count(&new), 2);
        let kept = serde_json::to_string(&new).unwrap();
        assert_eq!(kept.matches("PRIVATE KEY").count(), 2, "one key, with its two ends");

        // The last leaf of the old root may have been signed just before.
        let now = now + HOUR;
        assert!(advanced(&new, now + 24 * HOUR).is_none());
        let alone = advanced(&new, now + 25 * HOUR).unwrap();
        assert_eq!((count(&alone), signer(&alone)), (1, signer(&new)));
    }

    #[test]
    fn who_starts_anew_trusts_what_the_lost_roots_signed_until_it_is_over() {
        let now = SystemTime::now();
        let lost = [signer(&first(now)), signer(&first(now))];
        let new = first(now).succeeding(&lost, &SCHEDULE, now);
        let bundle: Vec<_> =
            CertificateDer::pem_slice_iter(new.bundle().as_bytes()).map(Result::unwrap).collect();
        assert_eq!(bundle[1..], lost);
        assert!(advanced(&new, now + 24 * HOUR).is_none());
        assert_eq!(count(&advanced(&new, now + 25 * HOUR).unwrap()), 1);
    }

    #[test]
    fn a_root_is_valid_where_the_clock_is_an_hour_behind() {
        let roots = first(SystemTime::now());
        let der = signer(&roots);
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let from = identity::system_time(parsed.validity().not_before);
        assert!(from <= SystemTime::now() - HOUR);
    }

    #[test]
    fn two_rotations_do_not_overlap() {
        let now = SystemTime::now();
        let rotating = first(now).rotating(now).unwrap();
        let error = rotating.rotating(now).err().unwrap();
        assert!(error.to_string().contains("is about to be published"), "{error}");
        let published = advanced(&rotating, now).unwrap();
        let error = published.rotating(now).err().unwrap();
        assert!(error.to_string().contains("has been published since"), "{error}");
    }

    #[test]
    fn a_successor_is_of_the_same_trust_domain_and_lives_as_long() {
        let now = SystemTime::now();
        let domain: TrustDomain = "example.org".parse().unwrap();
        let roots = Roots::first(&domain, &SCHEDULE, now).unwrap().rotating(now).unwrap();
        let (of, lifetime) = roots.next.unwrap().root.facts().unwrap();
        assert_eq!(of, domain);
        assert!(SCHEDULE.root_lifetime - lifetime < HOUR, "{lifetime:?}");
    }

    #[test]
    fn what_is_kept_reads_back() {
        let now = SystemTime::now();
        let roots = first(now).rotating(now).unwrap();
        for roots in [advanced(&roots, now).unwrap(), roots] {
            let kept = serde_json::to_string(&roots).unwrap();
            let read: Roots = serde_json::from_str(&kept).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), kept);
            assert_eq!(read.bundle(), roots.bundle());
        }
    }
}
