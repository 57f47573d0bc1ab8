//! One certificate in force, with the TLS configurations made of it.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, CommonState, ServerConfig};

use super::authority::timestamp;
use super::certificate::{self, Leaf};
use super::clock::{Clock, TlsTime, unix_time};
use super::trust::{ExpectServer, RequireClient, Trust, provider};
use crate::model::{SpiffeId, TrustDomain};

/// ALPN of HBONE: HTTP/2.
const ALPN_HBONE: &[u8] = b"h2";

/// What every TLS configuration of the agent has in common.
#[derive(Clone, Debug)]
pub(super) struct TlsSettings {
    pub(super) trust_domain: TrustDomain,
    pub(super) trust: Trust,
    pub(super) clock: Arc<dyn Clock>,
}

/// One certificate of one workload, and ready-made TLS configurations with it.
///
/// The configurations keep working after the certificate was renewed; what ends them
/// is its expiry, or that its root is not trusted any more.
pub struct Credentials {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    generation: u64,
    trust: Trust,
    server: Arc<ServerConfig>,
    /// With a placeholder for its verifier, which knows the peer.
    client: ClientConfig,
}

impl Credentials {
    pub(super) fn new(
        settings: &TlsSettings,
        leaf: Leaf,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        generation: u64,
    ) -> Result<Self, rustls::Error> {
        let key = provider().key_provider.load_private_key(key.clone_key())?;
        let certified = CertifiedKey::new(chain.clone(), key);
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let trust = settings.trust.clone();
        let time: Arc<dyn TimeProvider> = Arc::new(TlsTime(Arc::clone(&settings.clock)));

        let clients = RequireClient {
            trust: trust.clone(),
            trust_domain: settings.trust_domain.clone(),
        };
        let mut server = ServerConfig::builder_with_details(provider(), Arc::clone(&time))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::<SingleCertAndKey>::clone(&resolver));
        server.alpn_protocols = vec![ALPN_HBONE.to_vec()];
        // A resumed session would carry an identity whose certificate may have expired,
        // or whose root may have been removed, since.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let nobody_yet = ExpectServer {
            trust: trust.clone(),
            expected: leaf.id.clone(),
        };
        let mut client = ClientConfig::builder_with_details(provider(), time)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(nobody_yet))
            .with_client_cert_resolver(resolver);
        client.alpn_protocols = vec![ALPN_HBONE.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;

        Ok(Self {
            leaf,
            chain,
            generation,
            trust,
            server: Arc::new(server),
            client,
        })
    }

    /// For accepting: TLS 1.3, a certificate of this trust domain is required.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For dialling `expected`: TLS 1.3, and whoever else answers is refused. Dial with
    /// [`server_name`]; no name is sent.
    pub fn client_config(&self, expected: &SpiffeId) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(ExpectServer {
                trust: self.trust.clone(),
                expected: expected.clone(),
            }));
        Arc::new(config)
    }

    /// Whose certificate it is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// Counts the certificates of the agent; a later one has a higher number.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A peer with the roots of this node would take it.
    pub(super) fn is_trusted(&self, now: SystemTime) -> bool {
        let (Some((leaf, chain)), now) = (self.chain.split_first(), unix_time(now)) else {
            return false;
        };
        self.trust.verify_client(leaf, chain, now).is_ok()
    }

    pub(super) fn leaf(&self) -> &Leaf {
        &self.leaf
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", &self.leaf.id)
            .field("serial", &self.leaf.serial)
            .field("not_after", &self.leaf.not_after)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The name to give to rustls when dialling with [`Credentials::client_config`]: the
/// unspecified address, which is neither sent nor checked.
pub fn server_name() -> rustls::pki_types::ServerName<'static> {
    std::net::IpAddr::from([0, 0, 0, 0]).into()
}

/// Why a handshake failed, in words for a flow record: as rustls says it, but for what
/// our own check of the peer's identity found, which rustls shows as a debug dump.
pub fn handshake_error(error: &(dyn Error + 'static)) -> String {
    let carried = error.downcast_ref().and_then(io::Error::get_ref);
    let tls = match carried {
        Some(inner) => inner.downcast_ref(),
        None => error.downcast_ref(),
    };
    let Some(tls) = tls else {
        return error.to_string();
    };
    tls_error(tls)
}

/// The same of what rustls says. A certificate that is not valid now is one whose signer
/// has another time than this node, as often as one that was not renewed.
pub(super) fn tls_error(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(invalid) = error else {
        return error.to_string();
    };
    let text = |time: UnixTime| timestamp(SystemTime::UNIX_EPOCH + since_epoch(time));
    match invalid {
        CertificateError::Other(other) => other.0.to_string(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the certificate is not valid yet, but from {} on, and this node's clock says {}: the \
             clock is slow by {} at least, or that of the signer is fast",
            text(*not_before),
            text(*time),
            apart(*time, *not_before),
        ),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the certificate expired at {}, and this node's clock says {}: it was not renewed, or \
             the clock is fast by {} at least",
            text(*not_after),
            text(*time),
            apart(*not_after, *time),
        ),
        _ => error.to_string(),
    }
}

fn since_epoch(time: UnixTime) -> Duration {
    Duration::from_secs(time.as_secs())
}

/// Such as `25h 3m` or `40s`.
fn apart(earlier: UnixTime, later: UnixTime) -> String {
    let seconds = later.as_secs().saturating_sub(earlier.as_secs());
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h {minutes}m"),
    }
}

/// Who is at the other end of a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The verified identity.
    pub id: SpiffeId,
    /// When the certificate that proves it expires.
    pub not_after: SystemTime,
}

/// The peer of a connection that was made with [`Credentials`]; `None` before the end of
/// the handshake.
pub fn peer_identity(connection: &CommonState) -> Option<PeerIdentity> {
    if connection.is_handshaking() {
        return None;
    }
    let leaf = connection.peer_certificates()?.first()?;
    let (id, not_after) = certificate::identity(leaf).ok()?;
    Some(PeerIdentity { id, not_after })
}
