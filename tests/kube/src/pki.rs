//! The cluster's certificate authority and what it signs. Its own key is kept nowhere.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::place::CONTROL;

/// Signs the certificates of one bed.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn create() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = name("sluice-kube", None);
        let key = KeyPair::generate().context("could not make a key")?;
        let issuer = CertifiedIssuer::self_signed(params, key);
        Ok(Self(issuer.context("could not sign the cluster's root certificate")?))
    }

    /// Writes the root certificate, `ca.crt`.
    pub(crate) fn publish(&self, folder: &Path) -> anyhow::Result<()> {
        write(&folder.join("ca.crt"), &self.0.pem())
    }

    /// Writes `NAME.crt` and `NAME.key` for a server with these names and addresses.
    pub(crate) fn server(
        &self,
        folder: &Path,
        name: &str,
        names: &[&str],
        addresses: &[IpAddr],
    ) -> anyhow::Result<()> {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).context("a name is not a DNS name")?;
        let addresses = addresses.iter().map(|address| SanType::IpAddress(*address));
        params.subject_alt_names.extend(addresses);
        params.distinguished_name = self::name(name, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(folder, name, params)
    }

    /// Writes `NAME.crt`, `NAME.key` and `NAME.kubeconfig` for a user of the API server.
    /// Kubernetes takes the user from the subject's common name and its group from the
    /// organization.
    pub(crate) fn user(
        &self,
        folder: &Path,
        name: &str,
        user: &str,
        group: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name = self::name(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(folder, name, params)?;
        // Paths are relative to the file's own.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bed", "cluster": {
                "server": format!("https://{CONTROL}:6443"),
                "certificate-authority": "ca.crt",
            }}],
            "users": [{"name": name, "user": {
                "client-certificate": format!("{name}.crt"),
                "client-key": format!("{name}.key"),
            }}],
            "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": name}}],
            "current-context": "bed",
        });
        write(&folder.join(format!("{name}.kubeconfig")), &format!("{kubeconfig:#}\n"))
    }

    fn sign(&self, folder: &Path, name: &str, params: CertificateParams) -> anyhow::Result<()> {
        let key = KeyPair::generate().context("could not make a key")?;
        let certificate = params.signed_by(&key, &self.0);
        let certificate = certificate.with_context(|| format!("could not sign for {name}"))?;
        write(&folder.join(format!("{name}.crt")), &certificate.pem())?;
        write(&folder.join(format!("{name}.key")), &key.serialize_pem())
    }
}

/// Writes the key that signs the tokens of service accounts, and its public half.
pub(crate) fn service_account_key(folder: &Path) -> anyhow::Result<()> {
    let key = KeyPair::generate().context("could not make a key")?;
    write(&folder.join("service-accounts.key"), &key.serialize_pem())?;
    write(&folder.join("service-accounts.pub"), &key.public_key_pem())
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}
