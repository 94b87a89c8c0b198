//! One request, from token to certificate.

use std::{
    future::Future,
    net::Ipv6Addr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use kube::Client;
use tokio::time::timeout;
use tonic::{Request, Response, Status, codegen::Service};

use super::{
    API_TIMEOUT,
    caller::{Caller, Reviewer},
    csr::SigningRequest,
    keeper::Keeper,
    metrics::Metrics,
    name::NamespacedName,
    node_pods::NodePods,
    permission::{Permission, Rules},
    refusal::Refusal,
};
use crate::{
    identity::istio::{CertificateRequest, CertificateResponse, impersonated},
    listen::Source,
    mesh::{Principal, TrustDomain},
};

/// The shortest certificate: one that is over before it is used helps nobody.
const SHORTEST: Duration = Duration::from_secs(10);

/// Answers `CreateCertificate`.
pub(super) struct Issuer {
    reviewer: Reviewer,
    pods: NodePods,
    keeper: Arc<Keeper>,
    rules: Rules,
    longest: Duration,
    metrics: Arc<Metrics>,
}

/// What is known of a request so far, for the log.
#[derive(Default)]
struct Known {
    caller: Option<Caller>,
    asked: Option<Principal>,
}

impl Issuer {
    pub(super) fn new(
        client: Client,
        keeper: Arc<Keeper>,
        trust_domain: TrustDomain,
        agent: NamespacedName,
        audience: String,
        longest: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let reviewer = Reviewer::new(client.clone(), audience);
        let rules = Rules { trust_domain, agent };
        Self { reviewer, pods: NodePods::new(client), keeper, rules, longest, metrics }
    }

    async fn answer(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        let mut known = Known::default();
        let issued = self.issue(request, &mut known).await;
        issued.map(Response::new).map_err(|refusal| {
            self.metrics.refused(&refusal);
            let Known { caller, asked } = known;
            tracing::warn!(
                caller = caller.map(tracing::field::display),
                principal = asked.map(tracing::field::display),
                reason = Refusal::REASONS[refusal.reason()], error = %refusal,
                "certificate refused"
            );
            refusal.into()
        })
    }

    async fn issue(
        &self,
        request: Request<CertificateRequest>,
        known: &mut Known,
    ) -> Result<CertificateResponse, Refusal> {
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|bearer| bearer.strip_prefix("Bearer "));
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        // Who is not known to come from anywhere waits with others of that kind.
        let source = request.extensions().get().copied();
        let source = source.unwrap_or_else(|| Source::of(Ipv6Addr::UNSPECIFIED.into()));
        let caller = self.reviewer.review(token.ok_or(Refusal::NoToken)?, source).await?;
        let caller = known.caller.insert(caller);

        let request = request.get_ref();
        let csr = SigningRequest::parse(&request.csr).map_err(Refusal::Request)?;
        let asked = known.asked.insert(self.asked(caller, request, &csr)?);
        if let Permission::IfOnNode(node) = self.rules.decide(caller, asked)? {
            let has = async {
                let has = self.pods.has(&node, asked).await;
                has.map_err(|error| Refusal::Api(error.to_string()))
            };
            if !within(has).await? {
                return Err(Refusal::NotOnNode { caller: caller.clone(), asked: asked.clone() });
            }
        }

        let authority =
            self.keeper.authority().ok_or_else(|| Refusal::Signing("no root yet".into()))?;
        let lifetime = self.lifetime(request.validity_duration);
        let (leaf, cert_chain) = authority
            .sign(&csr.key, asked, lifetime)
            .map_err(|error| Refusal::Signing(error.to_string()))?;
        self.metrics.issued();
        let serial = x509_parser::parse_x509_certificate(&leaf).map_or_else(
            |_| String::new(),
            |(_, leaf)| leaf.raw_serial_as_string().replace(':', ""),
        );
        tracing::info!(%caller, principal = %asked, serial, ?lifetime, "certificate issued");
        Ok(CertificateResponse { cert_chain })
    }

    /// Whom the certificate is to be for: the metadata says it in an agent's request, the
    /// request for signing in others', and otherwise it is the caller.
    fn asked(
        &self,
        caller: &Caller,
        request: &CertificateRequest,
        csr: &SigningRequest,
    ) -> Result<Principal, Refusal> {
        let asked = request.metadata.as_ref().and_then(impersonated);
        let asked = match (asked, &csr.uris[..]) {
            (Some(asked), _) => asked,
            (None, [uri]) => uri,
            (None, []) => return self.rules.own(caller),
            (None, uris) => {
                return Err(Refusal::Request(format!("it names {} identities", uris.len())));
            }
        };
        asked.parse().map_err(|error| Refusal::Request(format!("{error}")))
    }

    /// What was asked for, within bounds; the longest when nothing was.
    fn lifetime(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(seconds @ 1..) => {
                Duration::from_secs(seconds).clamp(SHORTEST.min(self.longest), self.longest)
            }
            _ => self.longest,
        }
    }
}

/// Gives the API server its time for one answer.
pub(super) async fn within<T>(
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    timeout(API_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(Refusal::Api(format!("no answer within {API_TIMEOUT:?}"))))
}

/// One call, as tonic wants it.
pub(super) struct Call(pub(super) Arc<Issuer>);

impl Service<Request<CertificateRequest>> for Call {
    type Response = Response<CertificateResponse>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let issuer = self.0.clone();
        Box::pin(async move { issuer.answer(request).await })
    }
}
