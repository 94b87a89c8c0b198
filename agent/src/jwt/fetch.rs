//! Asks servers for keys, outside the threads that carry traffic.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::{AbortHandle, spawn_blocking},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{KeySet, RemoteSource};
use crate::causes::causes;

/// The most bytes that an answer may have.
const LONGEST_ANSWER: usize = 1 << 20;
/// How often a server may name another place.
const MOST_REDIRECTS: usize = 5;
/// Where an issuer says where its keys are (OpenID Connect Discovery 1.0 §4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Knows where hosts are that the mesh knows.
pub trait Resolve: Send + Sync {
    /// Who serves `port` of the Service called `host`; `None` where that is none.
    fn service(&self, host: &str, port: u16) -> Option<Vec<SocketAddr>>;
}

/// Whom to ask, and how.
pub(super) struct Client {
    pub(super) resolve: Arc<dyn Resolve>,
    /// Those who sign servers' certificates; the system's where there are none.
    pub(super) roots: Option<RootCertStore>,
    /// Tests have their servers on this machine.
    pub(super) allows_loopback: bool,
}

impl Client {
    /// The keys that `source` has.
    pub(super) async fn keys(&self, source: &RemoteSource) -> Result<KeySet, String> {
        let uri = match source.discovers {
            false => source.uri.to_string(),
            true => {
                let issuer = source.uri.trim_end_matches('/');
                let about = self.get(&format!("{issuer}{DISCOVERY}"), source.timeout).await?;
                let about: Value = serde_json::from_slice(&about).map_err(|error| {
                    format!("what the issuer says of itself is no JSON: {error}")
                })?;
                let uri = about["jwks_uri"].as_str();
                uri.ok_or("the issuer does not say where its keys are (jwks_uri)")?.to_owned()
            }
        };
        let text = self.get(&uri, source.timeout).await?;
        KeySet::parse(&text).map_err(|why| format!("{uri} has no JSON Web Key Set: {why}"))
    }

    /// What `uri` has, within `patience`.
    async fn get(&self, uri: &str, patience: Duration) -> Result<Bytes, String> {
        let exchange = async {
            let mut uri: Uri = uri.parse().map_err(|_| "it is no URL".to_owned())?;
            for _ in 0..=MOST_REDIRECTS {
                let (response, _driving) = self.ask(&uri).await?;
                if response.status().is_redirection()
                    && let Some(to) = response.headers().get(header::LOCATION)
                {
                    uri = redirected(&uri, to.to_str().unwrap_or_default())?;
                    continue;
                }
                if !response.status().is_success() {
                    return Err(format!("the answer is {}", response.status()));
                }
                let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
                return Ok(body.map_err(|error| error.to_string())?.to_bytes());
            }
            Err(format!("it leads on more than {MOST_REDIRECTS} times"))
        };
        let answer = timeout(patience, exchange).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {patience:?}")));
        answer.map_err(|why| format!("could not fetch {uri}: {why}"))
    }

    async fn ask(&self, uri: &Uri) -> Result<(Response<Incoming>, Driving), String> {
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err("it is no URL of HTTP".into()),
        };
        let authority = uri.authority().ok_or("it names no server")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = self.connect(host, port).await?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let request = Request::get(target)
            .header(header::HOST, authority.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        if !is_tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(self.tls().await?));
        let stream = connector.connect(name, stream).await.map_err(|error| causes(&error))?;
        exchange(stream, request).await
    }

    /// To the first of the server's addresses that accepts.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses = match self.resolve.service(host, port) {
            Some(addresses) => addresses,
            None => {
                let found = tokio::net::lookup_host((host, port)).await;
                found.map_err(|error| format!("no address of {host}: {error}"))?.collect()
            }
        };
        let mut why = format!("{host} has no address for port {port}");
        for address in addresses {
            if !self.may_dial(address.ip()) {
                why = format!("{} is not for keys", address.ip());
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => why = format!("{address}: {error}"),
            }
        }
        Err(why)
    }

    /// What is dialled is said by whoever may write policies of a namespace: neither this node's own
    /// servers are for them, nor those by which clouds tell machines who they are.
    fn may_dial(&self, ip: IpAddr) -> bool {
        const METADATA: [IpAddr; 3] = [
            IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
            IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
        ];
        let ip = ip.to_canonical();
        let is_link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        (self.allows_loopback || !ip.is_loopback())
            && !is_link_local
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !METADATA.contains(&ip)
    }

    /// With the system's roots as they are now: it is asked for seldom, and they change.
    async fn tls(&self) -> Result<ClientConfig, String> {
        let roots = match &self.roots {
            Some(roots) => roots.clone(),
            None => spawn_blocking(system_roots).await.map_err(|error| error.to_string())??,
        };
        let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into());
        let config = config.with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let (added, _) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match added {
        0 => Err("no trusted certificates on this system (hint: SSL_CERT_FILE names a file of \
                  them, SSL_CERT_DIR a directory)"
            .into()),
        _ => Ok(roots),
    }
}

/// Ends with whoever waits for the answer.
struct Driving(AbortHandle);

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The head of the answer; its body ends with the connection.
async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<(Response<Incoming>, Driving), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let told = |error: hyper::Error| causes(&error);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(told)?;
    let driving = tokio::spawn(async move {
        let _ = connection.await;
    });
    let driving = Driving(driving.abort_handle());
    let response = sender.send_request(request).await.map_err(told)?;
    Ok((response, driving))
}

/// Where an answer from `from` leads; never from TLS to plaintext.
fn redirected(from: &Uri, to: &str) -> Result<Uri, String> {
    let fails = |why: &dyn Display| format!("it leads to `{}`: {why}", to.escape_debug());
    let parsed: Uri = to.parse().map_err(|error| fails(&error))?;
    let mut parts = parsed.into_parts();
    if parts.authority.is_none() {
        if !to.starts_with('/') {
            return Err(fails(&"a path that is relative is not followed"));
        }
        parts.authority = from.authority().cloned();
        parts.scheme = from.scheme().cloned();
    }
    let to = Uri::from_parts(parts).map_err(|error| fails(&error))?;
    if from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS) {
        return Err(fails(&"out of TLS"));
    }
    Ok(to)
}

#[cfg(test)]
mod tests;
