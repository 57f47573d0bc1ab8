//! Who is let in, in real handshakes in memory.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use tempfile::TempDir;

use super::super::certificate::Leaf;
use super::super::credentials::{Credentials, TlsSettings};
use super::super::trust::{Trust, provider};
use super::super::{Authority, PeerIdentity, handshake_error, peer_identity, server_name};
use super::{TestClock, agent, authority, id};
use crate::model::{SpiffeId, TrustDomain};

/// What the two ends of a handshake found.
#[derive(Debug)]
struct Ended {
    client: Result<PeerIdentity, String>,
    server: Result<PeerIdentity, String>,
    alpn: Option<Vec<u8>>,
    group: Option<rustls::NamedGroup>,
    resumed: bool,
}

fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ended {
    let mut client = ClientConnection::new(client, server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&mut server, &wire, &mut server_error);
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        feed(&mut client, &wire, &mut client_error);
    }
    let group = client
        .negotiated_key_exchange_group()
        .map(rustls::crypto::SupportedKxGroup::name);
    Ended {
        alpn: client.alpn_protocol().map(<[u8]>::to_vec),
        group,
        resumed: client.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        client: client_error.map_or_else(|| Ok(peer_identity(&client).unwrap()), Err),
        server: server_error.map_or_else(|| Ok(peer_identity(&server).unwrap()), Err),
    }
}

fn feed<Data>(
    connection: &mut rustls::ConnectionCommon<Data>,
    mut wire: &[u8],
    failed: &mut Option<String>,
) where
    Data: rustls::SideData,
{
    while !wire.is_empty() && failed.is_none() {
        let outcome = connection
            .read_tls(&mut wire)
            .and_then(|_| connection.process_new_packets().map_err(io::Error::other));
        *failed = outcome.err().map(|error| handshake_error(&error));
    }
}

/// A workload with a certificate of `authority`, which trusts the roots of `bundle`.
pub(crate) fn workload(
    authority: &Authority,
    bundle: &str,
    account: &str,
    clock: &TestClock,
) -> Credentials {
    let trust = Trust::nobody();
    trust.replace(crate::identity::certificates_from_pem(bundle).unwrap());
    let settings = TlsSettings {
        trust_domain: TrustDomain("cluster.local".into()),
        trust,
        clock: clock.shared(),
    };
    let issued = authority.issue(&id(account), Duration::from_hours(24));
    let issued = issued.unwrap();
    let chain = issued.issued.chain.clone();
    let leaf = Leaf::parse(&chain[0]).unwrap();
    Credentials::new(&settings, leaf, chain, &issued.key_der(), 1).unwrap()
}

/// Each of the two, as a client, is taken by the other, and takes it.
pub(crate) fn meet(one: &Credentials, other: &Credentials) -> Result<(), String> {
    for (client, server) in [(one, other), (other, one)] {
        let ended = handshake(client.client_config(server.id()), server.server_config());
        assert_eq!(ended.client?.id, *server.id());
        assert_eq!(ended.server?.id, *client.id());
    }
    Ok(())
}

/// The mesh that the tests attack.
struct Mesh {
    dir: TempDir,
    clock: TestClock,
    settings: TlsSettings,
}

impl Mesh {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let clock = TestClock::new();
        let trust = Trust::nobody();
        trust.replace(authority(dir.path(), &clock).roots().to_vec());
        Self {
            settings: TlsSettings {
                trust_domain: TrustDomain("cluster.local".into()),
                trust,
                clock: clock.shared(),
            },
            dir,
            clock,
        }
    }

    fn authority(&self) -> Authority {
        authority(self.dir.path(), &self.clock)
    }

    /// Credentials signed by `authority`, used in this mesh.
    fn credentials(&self, authority: &Authority, id: &SpiffeId, ttl: Duration) -> Credentials {
        let issued = authority.issue(id, ttl).unwrap();
        let chain = issued.issued.chain.clone();
        let leaf = Leaf::parse(&chain[0]).unwrap();
        Credentials::new(&self.settings, leaf, chain, &issued.key_der(), 1).unwrap()
    }

    fn good(&self, account: &str) -> Credentials {
        self.credentials(&self.authority(), &id(account), Duration::from_hours(24))
    }

    /// Configurations of somebody who verifies nothing and shows `chain`.
    fn stranger(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .unwrap();
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        (Arc::new(client), Arc::new(server))
    }

    /// The peer is refused as a client and as a server, for a reason that contains `reason`.
    #[track_caller]
    fn refuses(&self, peer: (Arc<ClientConfig>, Arc<ServerConfig>), reason: &str) {
        let good = self.good("web");
        let as_client = handshake(peer.0, good.server_config()).server.unwrap_err();
        let as_server = handshake(good.client_config(&id("cart")), peer.1).client;
        let as_server = as_server.unwrap_err();
        assert!(as_client.contains(reason), "as a client: {as_client}");
        assert!(as_server.contains(reason), "as a server: {as_server}");
    }

    /// The same for a peer with these credentials.
    #[track_caller]
    fn refuses_credentials(&self, peer: &Credentials, reason: &str) {
        let configs = (peer.client_config(&id("web")), peer.server_config());
        self.refuses(configs, reason);
    }

    /// A certificate signed by this mesh's root with these names.
    fn signed(&self, names: Vec<SanType>) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let read = |name| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        let root_key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca-cert.pem"), root_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = self.params(names).signed_by(&key, &issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Self::stranger(vec![certificate.der().clone()], key)
    }

    fn params(&self, names: Vec<SanType>) -> CertificateParams {
        use super::super::Clock as _;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.not_before = self.clock.now().into();
        params.not_after = (self.clock.now() + Duration::from_hours(1)).into();
        params
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Takes any server, to see what the other side does.
#[derive(Debug)]
struct Gullible;

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[test]
fn workloads_meet_with_post_quantum_key_exchange() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.good("web"), mesh.good("cart"));
    let ended = handshake(web.client_config(&id("cart")), cart.server_config());
    assert_eq!(ended.client.unwrap().id, id("cart"));
    let client = ended.server.unwrap();
    assert_eq!(client.id, id("web"));
    assert_eq!(client.not_after, web.not_after());
    assert_eq!(ended.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(ended.group, Some(rustls::NamedGroup::X25519MLKEM768));
}

#[test]
fn sessions_are_not_resumed() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.good("web"), mesh.good("cart"));
    let client = web.client_config(&id("cart"));
    assert!(!handshake(Arc::clone(&client), cart.server_config()).resumed);
    assert!(!handshake(client, cart.server_config()).resumed);
}

#[test]
fn another_workload_of_the_mesh_is_refused_as_a_server() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.good("web"), mesh.good("cart"));
    let ended = handshake(web.client_config(&id("payments")), cart.server_config());
    let reason = ended.client.unwrap_err();
    assert!(
        reason.contains("expected spiffe://cluster.local/ns/shop/sa/payments"),
        "{reason}"
    );
    assert!(ended.server.is_err());
}

#[test]
fn refuses_another_root() {
    let mesh = Mesh::new();
    let other = TempDir::new().unwrap();
    let other = authority(other.path(), &mesh.clock);
    let peer = mesh.credentials(&other, &id("cart"), Duration::from_hours(1));
    mesh.refuses_credentials(&peer, "UnknownIssuer");
}

#[test]
fn refuses_an_expired_certificate() {
    let mesh = Mesh::new();
    let peer = mesh.credentials(&mesh.authority(), &id("cart"), Duration::from_hours(1));
    mesh.clock.forward(Duration::from_mins(59));
    let web = mesh.good("web");
    assert!(
        handshake(web.client_config(&id("cart")), peer.server_config())
            .client
            .is_ok()
    );
    mesh.clock.forward(Duration::from_mins(2));
    mesh.refuses_credentials(&peer, "expired");
}

#[test]
fn refuses_a_certificate_of_the_future() {
    let mesh = Mesh::new();
    let peer = mesh.good("cart");
    mesh.clock.backward(Duration::from_mins(6));
    mesh.refuses_credentials(&peer, "not valid yet");
}

#[test]
fn refuses_a_self_signed_certificate() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let params = mesh.params(vec![uri(&id("cart").to_string())]);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    mesh.refuses(Mesh::stranger(vec![certificate], key), "UnknownIssuer");
}

#[test]
fn refuses_names_that_are_no_identity() {
    let mesh = Mesh::new();
    let cart = id("cart").to_string();
    let dns = || SanType::DnsName("cart.shop.svc".try_into().unwrap());
    mesh.refuses(mesh.signed(vec![dns()]), "carries no URI");
    mesh.refuses(mesh.signed(vec![]), "carries no URI");
    mesh.refuses(
        mesh.signed(vec![uri("https://cart.shop.svc")]),
        "is not spiffe://",
    );
    mesh.refuses(
        mesh.signed(vec![uri("spiffe://cluster.local/cart")]),
        "is not spiffe://",
    );
    mesh.refuses(
        mesh.signed(vec![uri(&cart), uri(&id("web").to_string())]),
        "2 URIs",
    );
    mesh.refuses(mesh.signed(vec![uri(&cart), uri(&cart)]), "2 URIs");
    mesh.refuses(mesh.signed(vec![uri(&cart), uri("urn:x"), dns()]), "2 URIs");
}

#[test]
fn takes_a_dns_name_beside_the_identity() {
    let mesh = Mesh::new();
    let dns = SanType::DnsName("cart.shop.svc".try_into().unwrap());
    let (client, _) = mesh.signed(vec![uri(&id("cart").to_string()), dns]);
    let ended = handshake(client, mesh.good("web").server_config());
    assert_eq!(ended.server.unwrap().id, id("cart"));
}

#[test]
fn refuses_a_client_of_another_trust_domain() {
    let mesh = Mesh::new();
    let (client, _) = mesh.signed(vec![uri("spiffe://other/ns/shop/sa/cart")]);
    let ended = handshake(client, mesh.good("web").server_config());
    assert!(
        ended
            .server
            .unwrap_err()
            .contains("not of the trust domain cluster.local")
    );
}

#[test]
fn refuses_a_client_with_no_certificate() {
    let mesh = Mesh::new();
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    let ended = handshake(Arc::new(client), mesh.good("web").server_config());
    assert!(ended.server.unwrap_err().contains("no certificates"));
}

#[test]
fn refuses_tls_1_2() {
    let mesh = Mesh::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    let ended = handshake(Arc::new(client), mesh.good("web").server_config());
    assert!(ended.server.is_err());
}

#[test]
fn a_workload_certificate_signs_nobody() {
    let mesh = Mesh::new();
    let cart = mesh
        .authority()
        .issue(&id("cart"), Duration::from_hours(1))
        .unwrap();
    let issuer_key = KeyPair::from_pem(&cart.key_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&cart.issued.chain[0], issuer_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = mesh.params(vec![uri(&id("payments").to_string())]);
    let forged = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let chain = vec![forged, cart.issued.chain[0].clone()];
    mesh.refuses(Mesh::stranger(chain, key), "EndEntityUsedAsCa");
}

/// The bundle counts for configurations that were made before it changed.
#[test]
fn roots_change_under_configurations_in_use() {
    let mesh = Mesh::new();
    let other = TempDir::new().unwrap();
    let other = authority(other.path(), &mesh.clock);
    let peer = mesh.credentials(&other, &id("cart"), Duration::from_hours(1));
    let web = mesh.good("web");
    let client = web.client_config(&id("cart"));
    let meet = || handshake(Arc::clone(&client), peer.server_config());

    assert!(meet().client.is_err());
    let both = [mesh.authority().roots(), other.roots()].concat();
    assert!(mesh.settings.trust.replace(both));
    assert!(meet().client.is_ok());
    assert!(mesh.settings.trust.replace(other.roots().to_vec()));
    let ended = meet();
    assert!(ended.client.unwrap_err().contains("received fatal alert"));
    assert!(
        ended.server.unwrap_err().contains("UnknownIssuer"),
        "still trusted"
    );
    mesh.settings.trust.replace(Vec::new());
    assert!(meet().client.is_err(), "with no root nobody is trusted");
}

#[tokio::test(start_paused = true)]
async fn two_agents_with_one_authority_meet() {
    let (dir, clock) = (TempDir::new().unwrap(), TestClock::new());
    let (one, other) = (agent(dir.path(), &clock), agent(dir.path(), &clock));
    one.set_wanted(BTreeSet::from([id("web")]));
    other.set_wanted(BTreeSet::from([id("cart")]));
    let web = one.credentials(&id("web")).await.unwrap();
    let cart = other.credentials(&id("cart")).await.unwrap();
    let ended = handshake(web.client_config(&id("cart")), cart.server_config());
    assert_eq!(ended.client.unwrap().id, id("cart"));
    assert_eq!(ended.server.unwrap().id, id("web"));
}
