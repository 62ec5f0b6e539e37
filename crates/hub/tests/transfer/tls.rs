//! HTTPS with a certificate that the client was told of. `localhost` holds a self-signed certificate for that name, which expires in
//! 2120, and its key.

use std::sync::Arc;

use assay_hub::blob::TILE_BYTES;
use assay_hub::fetch::{FetchError, FetchOptions, fetch};
use assay_hub::peer::{Dialer, PeerAddress};
use assay_hub::server::ServerOptions;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::hosts::{connect, content, host, store_with};
use super::{assert_whole, fresh};

const CERTIFICATE: &[u8] = include_bytes!("localhost/certificate.der");
const KEY: &[u8] = include_bytes!("localhost/key.der");

/// What a proxy in front of a host does.
async fn with_tls(plain: PeerAddress) -> u16 {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(KEY));
    let certificates = vec![CertificateDer::from(CERTIFICATE)];
    let config = builder.expect("versions").with_no_client_auth().with_single_cert(certificates, key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("they belong together")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            tokio::spawn(async move {
                let mut tls = acceptor.accept(tcp).await?;
                tokio::io::copy_bidirectional(&mut tls, &mut connect(&plain).await).await
            });
        }
    });
    port
}

fn trusting(certificates: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates {
        roots.add(CertificateDer::from(certificate.to_vec())).expect("a certificate");
    }
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    Arc::new(builder.expect("versions").with_root_certificates(roots).with_no_client_auth())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_judged_by_the_configuration() {
    let bytes = content(200 * TILE_BYTES);
    let (_a, store, hash) = store_with(&bytes);
    let port = with_tls(host(store, ServerOptions::default()).await).await;
    let options = FetchOptions::default();
    for (name, roots) in [("localhost", &[][..]), ("127.0.0.1", &[CERTIFICATE])] {
        let (_c, into) = fresh();
        let peer: PeerAddress = format!("https://{name}:{port}").parse().expect("an address");
        let dialer = Dialer::new().with_tls(trusting(roots));
        let refused = fetch(&into, hash, None, &[peer], &dialer, &options, &mut |_| {}).await;
        let Err(FetchError::NoPeerLeft { peers, .. }) = refused else { panic!("{name}: {refused:?}") };
        assert_eq!(peers[0].fault.as_ref().map(|fault| fault.code()), Some("unreachable"), "{name}");
    }
    let (_c, into) = fresh();
    let peer: PeerAddress = format!("https://localhost:{port}").parse().expect("an address");
    let dialer = Dialer::new().with_tls(trusting(&[CERTIFICATE]));
    let fetched = fetch(&into, hash, None, &[peer], &dialer, &options, &mut |_| {}).await;
    assert_whole(&fetched.expect("it is trusted"), &bytes);
}
