//! A peer of the tunnels' protocol that is not Fairlead, and not always honest.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use fairlead_tests::Pod;
use h2::client::SendRequest;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a step of the protocol may take.
const STEP: Duration = Duration::from_secs(20);

/// Runs a future on a thread of its own inside a pod's network namespace. The thread
/// ends with it, so that nothing else ever runs there.
pub(crate) fn inside<T, F>(pod: &Pod, work: impl FnOnce() -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    let namespace = File::open(pod.netns())?;
    let enter = || -> Result<T> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        // One more thread drives connections while this one looks at something else.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        runtime.block_on(async { tokio::time::timeout(6 * STEP, work()).await? })
    };
    let ended = std::thread::scope(|scope| scope.spawn(enter).join());
    ended.map_err(|_panic| anyhow!("the peer panicked"))?
}

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// The chain and the key, for programs that want files.
    pub(crate) fn pem(&self) -> (String, String) {
        let block = |label: &str, der: &[u8]| {
            let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
            pem::encode_config(&pem::Pem::new(label, der), config)
        };
        let chain = self.chain.iter().map(|der| block("CERTIFICATE", der));
        (chain.collect(), block("PRIVATE KEY", self.key.secret_der()))
    }
}

impl Clone for Certificate {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// When a certificate is valid, from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Validity {
    Now,
    Expired,
}

/// Signs certificates for whatever it is asked to.
#[derive(Debug)]
pub(crate) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Signer {
    /// With the key of the mesh, as one has who broke into the authority.
    pub(crate) fn of_the_mesh(directory: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(directory.join(name));
        let certificate = read("ca-cert.pem").context("the authority's certificate")?;
        let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
        let der = <CertificateDer<'static> as rustls::pki_types::pem::PemObject>::from_pem_slice(
            certificate.as_bytes(),
        );
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&certificate, key)?,
            certificate: der.map_err(|error| anyhow!("{error:?}"))?,
        })
    }

    /// With a root of its own.
    pub(crate) fn of_another_mesh() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key)?.der().clone();
        Ok(Self {
            issuer: Issuer::new(parameters, key),
            certificate,
        })
    }

    /// A certificate for a URI.
    pub(crate) fn sign(&self, uri: &str, validity: Validity) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let parameters = parameters(uri, validity)?;
        let leaf = parameters.signed_by(&key, &self.issuer)?.der().clone();
        Ok(certificate(vec![leaf, self.certificate.clone()], &key))
    }
}

/// A certificate for a URI that vouches for itself.
pub(crate) fn self_signed(uri: &str) -> Result<Certificate> {
    let key = KeyPair::generate()?;
    let leaf = parameters(uri, Validity::Now)?
        .self_signed(&key)?
        .der()
        .clone();
    Ok(certificate(vec![leaf], &key))
}

fn certificate(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Certificate {
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Certificate {
        chain,
        key: key.into(),
    }
}

fn parameters(uri: &str, validity: Validity) -> Result<CertificateParams> {
    let hour = time::Duration::hours(1);
    let now = time::OffsetDateTime::now_utc();
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    (parameters.not_before, parameters.not_after) = match validity {
        Validity::Now => (now - hour, now + hour),
        Validity::Expired => (now - 2 * hour, now - hour),
    };
    Ok(parameters)
}

/// A TLS connection to the tunnel's port, which trusts whatever answers.
pub(crate) async fn handshake(
    to: SocketAddr,
    certificate: Option<Certificate>,
) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match certificate {
        Some(certificate) => builder.with_client_auth_cert(certificate.chain, certificate.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let stream = tokio::time::timeout(STEP, TcpStream::connect(to)).await??;
    let name = ServerName::from(std::net::IpAddr::from([0, 0, 0, 0]));
    let connector = TlsConnector::from(Arc::new(config));
    Ok(tokio::time::timeout(STEP, connector.connect(name, stream)).await??)
}

/// A connection of the tunnels' protocol, ready for requests.
pub(crate) async fn connect(
    to: SocketAddr,
    certificate: Option<Certificate>,
) -> Result<SendRequest<bytes::Bytes>> {
    let stream = handshake(to, certificate).await?;
    let opened = tokio::time::timeout(STEP, h2::client::handshake(stream)).await?;
    let (requests, connection) = opened?;
    // It ends with the runtime of the thread that it is on.
    drop(tokio::spawn(connection));
    Ok(requests.ready().await?)
}

/// A tunnel that was opened, or the status that refused it.
#[derive(Debug)]
pub(crate) enum Answer {
    Open(h2::SendStream<bytes::Bytes>, h2::RecvStream),
    Refused(u16),
}

/// Asks for a tunnel.
pub(crate) async fn tunnel(
    requests: &mut SendRequest<bytes::Bytes>,
    authority: &str,
) -> Result<Answer> {
    let request = http::Request::builder()
        .method(http::Method::CONNECT)
        .uri(authority)
        .header("baggage", "k8s.namespace.name=shop,k8s.pod.name=client")
        .body(())?;
    let (response, sender) = requests.send_request(request, false)?;
    let response = tokio::time::timeout(STEP, response).await??;
    if response.status() != http::StatusCode::OK {
        return Ok(Answer::Refused(response.status().as_u16()));
    }
    Ok(Answer::Open(sender, response.into_body()))
}

/// Reads from a tunnel until a line has ended.
pub(crate) async fn line(body: &mut h2::RecvStream) -> Result<String> {
    let mut text = Vec::new();
    while !text.contains(&b'\n') {
        let Some(data) = tokio::time::timeout(STEP, body.data()).await? else {
            bail!(
                "the tunnel ended after {:?}",
                String::from_utf8_lossy(&text)
            );
        };
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        text.extend_from_slice(&data);
    }
    Ok(String::from_utf8(text)?)
}

/// Takes every certificate: what the server checks is what is tested.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
