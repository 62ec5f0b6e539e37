//! Where peers are, and how they are reached: HTTP over TCP or TLS, or the same HTTP over a stream of iroh.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::http::Uri;
use iroh::endpoint::presets;
pub use iroh::{Endpoint, SecretKey};
use iroh::{EndpointAddr, EndpointId, RelayMode, TransportAddr};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The protocol of hosts over iroh: every bidirectional stream is one connection of HTTP/1.1.
pub const ALPN: &[u8] = b"assay/hub/1";

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

/// The address of a peer: `http://…`, `https://…`, or `iroh:<node id>[@socket address,…]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Http { tls: Tls, host: String, port: u16, authority: String, base: String },
    Iroh { id: EndpointId, at: Vec<SocketAddr> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Tls {
    Without,
    With,
}

/// Text that is no address of a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a peer is http://…, https://… without user, query and fragment, or iroh:<node id>[@address:port,…], not {got:?}"
)]
pub struct PeerAddressError {
    got: String,
}

impl FromStr for PeerAddress {
    type Err = PeerAddressError;

    fn from_str(text: &str) -> Result<PeerAddress, PeerAddressError> {
        let wrong = || PeerAddressError { got: text.chars().take(200).collect() };
        if let Some(rest) = text.strip_prefix("iroh:") {
            let (id, at) = rest.split_once('@').map_or((rest, None), |(id, at)| (id, Some(at)));
            let id = id.parse().map_err(|_| wrong())?;
            let at =
                at.map(|at| at.split(',').map(|a| a.parse().map_err(|_| wrong())).collect()).transpose()?;
            return Ok(PeerAddress(Kind::Iroh { id, at: at.unwrap_or_default() }));
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (Tls::Without, 80),
            Some("https") => (Tls::With, 443),
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') || uri.query().is_some() || text.contains('#') {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(PeerAddress(Kind::Http {
            tls,
            host,
            port: authority.port_u16().unwrap_or(port),
            authority: authority.to_string(),
            base: uri.path().trim_end_matches('/').to_owned(),
        }))
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Http { tls: Tls::Without, authority, base, .. } => write!(f, "http://{authority}{base}"),
            Kind::Http { tls: Tls::With, authority, base, .. } => write!(f, "https://{authority}{base}"),
            Kind::Iroh { id, at } => {
                write!(f, "iroh:{id}")?;
                for (i, at) in at.iter().enumerate() {
                    write!(f, "{}{at}", if i == 0 { '@' } else { ',' })?;
                }
                Ok(())
            }
        }
    }
}

impl PeerAddress {
    /// The address of an iroh endpoint that is reached directly.
    pub fn iroh(id: EndpointId, at: Vec<SocketAddr>) -> PeerAddress {
        PeerAddress(Kind::Iroh { id, at })
    }

    /// Whether it is reached over iroh.
    pub fn is_iroh(&self) -> bool {
        matches!(self.0, Kind::Iroh { .. })
    }

    /// Whether it names no place but this machine.
    fn is_local(&self) -> bool {
        match &self.0 {
            Kind::Http { host, .. } => host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
            Kind::Iroh { at, .. } => !at.is_empty() && at.iter().all(|at| at.ip().is_loopback()),
        }
    }

    pub(crate) fn authority(&self) -> String {
        match &self.0 {
            Kind::Http { authority, .. } => authority.clone(),
            Kind::Iroh { id, .. } => id.to_string(),
        }
    }

    pub(crate) fn base(&self) -> &str {
        match &self.0 {
            Kind::Http { base, .. } => base,
            Kind::Iroh { .. } => "",
        }
    }
}

/// Whose relays help peers of iroh to find and reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relays {
    /// Nobody's: peers are reached at addresses that are known.
    None,
    /// The public relays and the address lookup of iroh's makers, who then learn addresses and when they are used.
    Public,
}

/// No endpoint of iroh.
#[derive(Debug, thiserror::Error)]
#[error("no endpoint of iroh at {bind}: {why}; name another address, or port 0 for any")]
pub struct EndpointError {
    bind: SocketAddr,
    why: String,
}

impl EndpointError {
    /// A stable name.
    pub fn code(&self) -> &'static str {
        "endpoint"
    }
}

fn builder(relays: Relays) -> iroh::endpoint::Builder {
    match relays {
        Relays::None => Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled),
        Relays::Public => Endpoint::builder(presets::N0),
    }
}

/// An endpoint of iroh that asks and is not asked, under a name that is drawn anew: for `peers`, on this machine's own addresses if they have no
/// others.
pub async fn calling_endpoint(peers: &[PeerAddress], relays: Relays) -> Result<Endpoint, EndpointError> {
    let local =
        relays == Relays::None && peers.iter().filter(|peer| peer.is_iroh()).all(PeerAddress::is_local);
    let bind = SocketAddr::from(if local { ([127, 0, 0, 1], 0) } else { ([0, 0, 0, 0], 0) });
    let failed = |why: String| EndpointError { bind, why };
    let builder = if local {
        builder(relays).clear_ip_transports().bind_addr(bind).map_err(|e| failed(e.to_string()))?
    } else {
        builder(relays)
    };
    builder.bind().await.map_err(|e| failed(e.to_string()))
}

/// Where an endpoint is reached, as far as it knows: its name, and the addresses that it is bound to or, if that is every address of the
/// machine, those that it has found.
pub fn address_of(endpoint: &Endpoint) -> PeerAddress {
    let bound = endpoint.bound_sockets();
    if bound.iter().all(|at| !at.ip().is_unspecified()) {
        return PeerAddress::iroh(endpoint.id(), bound);
    }
    PeerAddress::iroh(endpoint.id(), endpoint.addr().ip_addrs().copied().collect())
}

/// An endpoint of iroh for a host and for its fetches. Its name is the public key of `secret`.
pub async fn endpoint(
    secret: SecretKey,
    bind: SocketAddr,
    relays: Relays,
) -> Result<Endpoint, EndpointError> {
    let failed = |why: String| EndpointError { bind, why };
    let builder = builder(relays).clear_ip_transports().bind_addr(bind).map_err(|e| failed(e.to_string()))?;
    let bound = builder.secret_key(secret).alpns(vec![ALPN.to_vec()]).bind().await;
    bound.map_err(|e| failed(e.to_string()))
}

/// Opens connections to peers. Peers of iroh need an endpoint; without one they cannot be reached.
#[derive(Clone, Default)]
pub struct Dialer {
    endpoint: Option<Endpoint>,
    tls: Option<Arc<rustls::ClientConfig>>,
    links: Arc<Mutex<HashMap<EndpointId, Link>>>,
}

/// The connection to a peer of iroh, if there is one; held while it is made, so that it is made once.
type Link = Arc<tokio::sync::Mutex<Option<iroh::endpoint::Connection>>>;

impl Dialer {
    /// Reaches HTTP and HTTPS; certificates are judged by the platform.
    pub fn new() -> Dialer {
        Dialer::default()
    }

    /// Reaches peers of iroh too, over this endpoint.
    pub fn with_iroh(mut self, endpoint: Endpoint) -> Dialer {
        self.endpoint = Some(endpoint);
        self
    }

    /// Reaches all of `peers`: over an endpoint of iroh that is made for it ([`calling_endpoint`]), if any of them needs one.
    pub async fn reaching(peers: &[PeerAddress], relays: Relays) -> Result<Dialer, EndpointError> {
        if peers.iter().any(PeerAddress::is_iroh) {
            Ok(Dialer::new().with_iroh(calling_endpoint(peers, relays).await?))
        } else {
            Ok(Dialer::new())
        }
    }

    /// Judges certificates by this configuration.
    pub fn with_tls(mut self, tls: Arc<rustls::ClientConfig>) -> Dialer {
        self.tls = Some(tls);
        self
    }

    pub(crate) async fn dial(&self, address: &PeerAddress) -> Result<Box<dyn Io>, String> {
        match &address.0 {
            Kind::Http { tls, host, port, .. } => {
                let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| e.to_string())?;
                tcp.set_nodelay(true).map_err(|e| e.to_string())?;
                if *tls == Tls::Without {
                    return Ok(Box::new(tcp));
                }
                let config = match &self.tls {
                    Some(config) => config.clone(),
                    None => platform_tls()?.clone(),
                };
                let name =
                    rustls::pki_types::ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
                let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await;
                Ok(Box::new(tls.map_err(|e| e.to_string())?))
            }
            Kind::Iroh { id, at } => {
                let endpoint =
                    self.endpoint.as_ref().ok_or("this side has no iroh endpoint to reach it from")?;
                let link = {
                    let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
                    links.entry(*id).or_default().clone()
                };
                let mut made = link.lock().await;
                let link = match made.as_ref().filter(|link| link.close_reason().is_none()) {
                    Some(link) => link.clone(),
                    None => {
                        let at = at.iter().copied().map(TransportAddr::Ip);
                        let address = EndpointAddr::from_parts(*id, at);
                        let link = endpoint.connect(address, ALPN).await.map_err(|e| e.to_string())?;
                        made.insert(link).clone()
                    }
                };
                drop(made);
                let (send, receive) = link.open_bi().await.map_err(|e| e.to_string())?;
                Ok(Box::new(tokio::io::join(receive, send)))
            }
        }
    }
}

/// What the platform trusts, read once.
fn platform_tls() -> Result<&'static Arc<rustls::ClientConfig>, String> {
    static READ: OnceLock<Result<Arc<rustls::ClientConfig>, String>> = OnceLock::new();
    let read = READ.get_or_init(|| {
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
        let builder = builder.and_then(|b| b.with_platform_verifier()).map_err(|e| e.to_string())?;
        Ok(Arc::new(builder.with_no_client_auth()))
    });
    read.as_ref().map_err(Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let id = iroh::SecretKey::from_bytes(&[7; 32]).public();
        let iroh = format!("iroh:{id}@127.0.0.1:4433,[::1]:4434");
        for text in ["http://localhost:8080", "https://models.example/mirror", "http://[::1]:80", &iroh] {
            assert_eq!(text.parse::<PeerAddress>().expect(text).to_string(), text);
        }
        assert!(format!("iroh:{id}").parse::<PeerAddress>().is_ok());
        for text in
            ["", "ftp://x", "http://u:p@x", "http://x/?q=1", "http://x/#f", "iroh:", "iroh:00@x", "//x"]
        {
            assert!(text.parse::<PeerAddress>().is_err(), "{text}");
        }
    }
}
