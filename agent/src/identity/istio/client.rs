//! The client of a CA elsewhere: `sluice ca`, istiod, cert-manager's istio-csr.

use std::{fs, io, path::PathBuf, time::Duration};

use http::uri::PathAndQuery;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use tokio::sync::watch;
use tonic::{Request, Status, body::Body, client::Grpc, metadata::AsciiMetadataValue};
use tonic_prost::ProstCodec;

use super::{
    CREATE_CERTIFICATE, CaAddress, CertificateRequest, CertificateResponse, impersonating,
    root_file::RootFile,
};
use crate::{
    identity::{
        BoxFuture, Certificate, CertificateSource, IdentityError, PROVIDER, Roots, certificate,
    },
    mesh::Principal,
};

/// How long a connection to the CA may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may take in all; the next attempt may meet another replica.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// What a CA is asked with.
#[derive(Debug)]
pub struct IstioCaOptions {
    /// Where it is.
    pub address: CaAddress,
    /// PEM file of the roots of the CA and of the mesh; followed as it changes.
    pub roots: PathBuf,
    /// File of the service-account token to show, read anew for every request: the kubelet
    /// replaces it long before it expires.
    pub token: PathBuf,
    /// The cluster's name, by which an istiod of several clusters finds whom to ask about the
    /// token.
    pub cluster: AsciiMetadataValue,
    /// How long certificates should live.
    pub lifetime: Duration,
}

/// A CA elsewhere.
pub struct IstioCa {
    address: CaAddress,
    roots: RootFile,
    token: PathBuf,
    cluster: AsciiMetadataValue,
    lifetime: Duration,
}

impl IstioCa {
    /// A CA that is asked when there is something to ask.
    ///
    /// # Errors
    /// When the kernel does not let the roots be watched.
    pub fn new(options: IstioCaOptions) -> io::Result<Self> {
        let IstioCaOptions { address, roots, token, cluster, lifetime } = options;
        Ok(Self { address, roots: RootFile::follow(roots)?, token, cluster, lifetime })
    }

    async fn ask(&self, principal: &Principal) -> Result<Certificate, String> {
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let csr = signing_request(principal, &key).map_err(|error| error.to_string())?;
        let mut request = Request::new(CertificateRequest {
            csr,
            validity_duration: self.lifetime.as_secs().try_into().unwrap_or(i64::MAX),
            metadata: Some(impersonating(principal)),
        });
        request.metadata_mut().insert("authorization", self.bearer()?);
        request.metadata_mut().insert("clusterid", self.cluster.clone());
        let store = self.roots.store()?;

        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.send(request, store)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|status| describe(&self.address, &status))?,
            Err(_) => {
                return Err(format!("{} did not answer within {REQUEST_TIMEOUT:?}", self.address));
            }
        };
        let (chain, roots) = split(&answer.cert_chain)
            .map_err(|cause| format!("{} sent a chain that is none: {cause}", self.address))?;
        Ok(Certificate { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), roots })
    }

    /// Sends `request` on a connection of its own. One a day and workload costs little, and
    /// finds a replica that is alive, behind whatever the name leads to now.
    async fn send(
        &self,
        request: Request<CertificateRequest>,
        roots: RootCertStore,
    ) -> Result<CertificateResponse, Status> {
        let client = connector(roots).map_err(|error| Status::internal(error.to_string()))?;
        let mut grpc = Grpc::with_origin(client, self.address.origin());
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        Ok(grpc.unary(request, path, codec).await?.into_inner())
    }

    fn bearer(&self) -> Result<AsciiMetadataValue, String> {
        let unusable = |cause: &dyn std::fmt::Display| {
            format!(
                "the token `{}` cannot be used: {cause} (hint: --ca-token names a projected \
                 service-account token)",
                self.token.display()
            )
        };
        let token = fs::read_to_string(&self.token).map_err(|error| unusable(&error))?;
        if token.trim().is_empty() {
            return Err(unusable(&"it is empty"));
        }
        let mut bearer: AsciiMetadataValue =
            format!("Bearer {}", token.trim()).parse().map_err(|_| unusable(&"it is no token"))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }
}

impl CertificateSource for IstioCa {
    fn issue<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> BoxFuture<'a, Result<Certificate, IdentityError>> {
        Box::pin(async move {
            let asked = self.ask(principal).await;
            asked.map_err(|cause| IdentityError::NotIssued { principal: principal.clone(), cause })
        })
    }

    fn roots(&self) -> Option<watch::Receiver<Roots>> {
        Some(self.roots.subscribe())
    }
}

/// PEM of a request for `principal`, in the form Istio's CAs expect.
fn signing_request(principal: &Principal, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(principal.to_string().try_into()?)];
    params.serialize_request(key)?.pem()
}

fn connector(
    roots: RootCertStore,
) -> Result<Client<HttpsConnector<HttpConnector>, Body>, rustls::Error> {
    let config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);
    let tls = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http2()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new()).http2_only(true).build(tls))
}

/// The certificates to present, and the roots that came with them: the last of the answer, and
/// whichever else vouches for itself.
fn split(
    answer: &[String],
) -> Result<(Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>), String> {
    let mut chain = Vec::new();
    for certificate in answer.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()))
    {
        chain.push(certificate.map_err(|error| error.to_string())?);
    }
    let mut roots = Vec::new();
    if chain.len() > 1 {
        roots.extend(chain.pop());
    }
    let mut own = Vec::new();
    for certificate in chain {
        let is_root = !own.is_empty()
            && certificate::is_self_issued(&certificate).map_err(|error| error.to_string())?;
        if is_root { roots.push(certificate) } else { own.push(certificate) }
    }
    if own.is_empty() {
        return Err("it is empty".into());
    }
    Ok((own, roots))
}

/// A failure in the CA's own words where it has some, with every cause where it has not.
fn describe(address: &CaAddress, status: &Status) -> String {
    let mut text = match status.code() {
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => {
            format!("{address} refused: {}", status.message())
        }
        code => format!("{address} failed ({code:?}): {}", status.message()),
    };
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = error.source();
    }
    // It goes to logs and the terminal, which must not be told to do something.
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Root, RootOptions, pem},
        mesh::TrustDomain,
    };

    fn root(name: &str) -> Root {
        let options = RootOptions {
            name,
            trust_domain: &TrustDomain::default(),
            lifetime: Duration::from_secs(3600),
        };
        Root::new(KeyPair::generate().unwrap(), &options).unwrap()
    }

    #[test]
    fn an_answer_is_a_chain_and_the_roots_behind_it() {
        let (old, new) = (root("old"), root("new"));
        let principal = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = new.sign_workload(&key, &principal, Duration::from_secs(60)).unwrap();
        let answer = [pem(&leaf), pem(old.certificate()), pem(new.certificate())];
        let (chain, roots) = split(&answer).unwrap();
        assert_eq!(chain, std::slice::from_ref(&leaf));
        assert_eq!(roots, [new.certificate().clone(), old.certificate().clone()]);
        // All in one text, as some CAs send it.
        assert_eq!(split(&[answer.concat()]).unwrap(), (chain, roots));
        // The root may be known from the file alone.
        assert_eq!(split(&answer[..1]).unwrap(), (vec![leaf], Vec::new()));
        assert!(split(&[]).is_err());
    }

    #[test]
    fn a_failure_is_told_in_the_words_of_the_ca_and_cannot_forge_a_line() {
        let address = "ca:15012".parse().unwrap();
        let status = Status::permission_denied("not on\nyour node");
        assert_eq!(describe(&address, &status), "https://ca:15012 refused: not on your node");
        let status = Status::unavailable("later");
        assert_eq!(describe(&address, &status), "https://ca:15012 failed (Unavailable): later");
    }
}
