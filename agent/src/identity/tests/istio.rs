//! A certificate authority as Istio publishes it, which refuses what istiod and istio-csr
//! refuse, and the agent before it. What each demands of a caller is in their sources
//! (`security/pkg/server/ca`, `pkg/server`); nothing of them is here.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream;
use prost_types::value::Kind;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::super::directory::new_root;
use super::super::generated::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use super::super::generated::{IstioCertificateRequest, IstioCertificateResponse};
use super::super::request::VerifiedRequest;
use super::super::trust::provider;
use super::super::{
    Authority, CaAddress, Clock as _, Identities, certificates_from_pem, certificates_to_pem,
    create, start,
};
use super::{TestClock, authority, config, id};
use crate::model::SpiffeId;

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsiaXN0aW8tY2EiXX0.c2ln";
const CLUSTER: &str = "cluster-1";
/// By its name alone, as a Service is reached.
const HOST: &str = "localhost";
/// istiod's `MAX_WORKLOAD_CERT_TTL`, beyond which it does not sign.
const LONGEST: Duration = Duration::from_hours(90 * 24);

/// Whose rules and whose form of answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kin {
    Istiod,
    IstioCsr,
}

/// The authority, and who may ask it for whom.
struct Rules {
    kin: Kin,
    authority: Authority,
    token: Mutex<String>,
    /// The identities of the pods on the caller's node.
    on_node: BTreeSet<String>,
}

impl Rules {
    fn new(kin: Kin, authority: Authority) -> Self {
        Self {
            kin,
            authority,
            token: Mutex::new(TOKEN.to_owned()),
            on_node: ["web", "cart"].map(|it| id(it).to_string()).into(),
        }
    }

    /// The caller's token and cluster.
    fn authenticate(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let failure = || Status::unauthenticated("request authenticate failure");
        let only = |name| {
            let mut all = metadata.get_all(name).iter();
            let first = all.next().and_then(|value| value.to_str().ok());
            first.filter(|_| all.next().is_none()).map(str::to_owned)
        };
        let bearer = only("authorization").ok_or_else(failure)?;
        let token = bearer.strip_prefix("Bearer ").ok_or_else(failure)?;
        if token != *self.token.lock().unwrap() {
            return Err(failure());
        }
        // Whose pods are to be looked at only the cluster tells; none is the CA's own where
        // nobody is impersonated.
        match only("clusterid").as_deref() {
            Some(CLUSTER) => Ok(()),
            None if self.kin == Kin::IstioCsr => Ok(()),
            _ => Err(failure()),
        }
    }

    /// The identity that is asked for: of a pod on the caller's node.
    fn impersonated(&self, request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
        let failure = || {
            Status::unauthenticated(match self.kin {
                Kin::Istiod => "request impersonation authentication failure",
                Kin::IstioCsr => "request authenticate failure",
            })
        };
        let fields = request.metadata.as_ref().map(|it| &it.fields);
        let value = fields.and_then(|fields| fields.get("ImpersonatedIdentity"));
        let Some(Kind::StringValue(wanted)) = value.and_then(|it| it.kind.as_ref()) else {
            return Err(failure());
        };
        if !self.on_node.contains(wanted) {
            return Err(failure());
        }
        wanted.parse().map_err(|_not_spiffe| failure())
    }

    fn sign(&self, request: &IstioCertificateRequest) -> Result<Vec<String>, Status> {
        let id = self.impersonated(request)?;
        if self.kin == Kin::IstioCsr {
            check_request(&request.csr, &id)?;
        }
        let verified = VerifiedRequest::from_pem(&request.csr);
        let verified = verified
            .map_err(|error| Status::invalid_argument(format!("CSR signing error ({error})")))?;
        let seconds = u64::try_from(request.validity_duration).unwrap_or(0);
        let ttl = Duration::from_secs(seconds);
        if ttl > LONGEST && self.kin == Kin::Istiod {
            return Err(Status::internal("CSR signing error (requested TTL)"));
        }
        let ttl = match self.kin {
            Kin::Istiod => ttl,
            Kin::IstioCsr => ttl.min(Duration::from_hours(1)),
        };
        let issued = self.authority.sign(&id, &verified, ttl).unwrap();
        let list = issued.to_pem_list();
        Ok(match self.kin {
            Kin::IstioCsr => list,
            // A text for each certificate, the roots too.
            Kin::Istiod => {
                let all = certificates_from_pem(&list.concat()).unwrap();
                let text = |der| certificates_to_pem(std::slice::from_ref(der)) + "\n";
                all.iter().map(text).collect()
            }
        })
    }

    fn answer(
        &self,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        self.authenticate(request.metadata())?;
        let cert_chain = self.sign(request.get_ref())?;
        Ok(IstioCertificateResponse { cert_chain })
    }
}

/// istio-csr hands the request on to an issuer: it asks for the identity and nothing else.
fn check_request(csr: &str, id: &SpiffeId) -> Result<(), Status> {
    let failure = || Status::unauthenticated("request authenticate failure");
    let pem = pem::parse(csr).map_err(|_no_pem| failure())?;
    let (_, parsed) =
        X509CertificationRequest::from_der(pem.contents()).map_err(|_no_request| failure())?;
    let info = &parsed.certification_request_info;
    let mut uris = Vec::new();
    for extension in parsed.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                        _ => return Err(failure()),
                    }
                }
            }
            ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
            _ => return Err(failure()),
        }
    }
    let named = info.subject.iter_common_name().next().is_some();
    if named || uris != [id.to_string()] {
        return Err(failure());
    }
    Ok(())
}

/// The service, as tonic has it.
struct Service(Arc<Rules>);

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.0.answer(&request).map(Response::new)
    }
}

/// Connections after their handshakes, of clients that asked for [`HOST`] by `h2`.
async fn accept(listener: TcpListener, tls: ServerConfig, ready: mpsc::Sender<DuplexStream>) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(mut stream) = acceptor.accept(stream).await else {
            continue;
        };
        let connection = stream.get_ref().1;
        assert_eq!(connection.server_name(), Some(HOST));
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        let (near, mut far) = duplex(64 * 1024);
        if ready.send(near).await.is_err() {
            return;
        }
        let copying = async move { copy_bidirectional(&mut stream, &mut far).await };
        drop(tokio::spawn(copying));
    }
}

/// A running CA, with the files that an agent is given.
struct Ca {
    dir: TempDir,
    rules: Arc<Rules>,
    clock: TestClock,
    url: String,
}

impl Ca {
    async fn new(kin: Kin) -> Self {
        let (clock, dir) = (TestClock::new(), TempDir::new().unwrap());
        let first = authority(&dir.path().join("ca"), &clock);
        // While the root is replaced there are two.
        let other = new_root(clock.now()).unwrap().certificate;
        let mut roots = first.roots().to_vec();
        roots.extend(certificates_from_pem(&other).unwrap());
        let authority = first.with_roots(roots);
        let server = authority.issue_server(&[HOST.to_owned()], &[], Duration::from_hours(1));
        let server = server.unwrap();
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(server.issued.chain.clone(), server.key_der())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{HOST}:{}", listener.local_addr().unwrap().port());
        // As the ConfigMap istio-ca-root-cert brings it to every namespace.
        fs::write(dir.path().join("root-cert.pem"), authority.roots_pem()).unwrap();
        fs::write(dir.path().join("token"), TOKEN).unwrap();
        let rules = Arc::new(Rules::new(kin, authority));
        let (sender, receiver) = mpsc::channel(8);
        let incoming = stream::unfold(receiver, |mut receiver| async move {
            let next: DuplexStream = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(next), receiver))
        });
        let service = IstioCertificateServiceServer::new(Service(Arc::clone(&rules)));
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(Box::pin(incoming));
        drop(tokio::spawn(serving));
        drop(tokio::spawn(accept(listener, tls, sender)));
        Self {
            dir,
            rules,
            clock,
            url,
        }
    }

    fn agent(&self) -> Identities {
        let address = CaAddress::Url(self.url.clone());
        let mut config = config(address, self.clock.shared());
        config.token_file = Some(self.dir.path().join("token"));
        config.ca_root = Some(self.dir.path().join("root-cert.pem"));
        CLUSTER.clone_into(&mut config.cluster_id);
        let (identities, manager) = start(config).unwrap();
        drop(tokio::spawn(manager));
        identities
    }
}

/// A request as an agent makes it, to be changed.
fn request() -> Request<IstioCertificateRequest> {
    let key = KeyPair::generate().unwrap();
    let identity = prost_types::Value {
        kind: Some(Kind::StringValue(id("web").to_string())),
    };
    let mut request = Request::new(IstioCertificateRequest {
        csr: create(&id("web"), &key).unwrap(),
        validity_duration: 86_400,
        metadata: Some(prost_types::Struct {
            fields: [("ImpersonatedIdentity".to_owned(), identity)].into(),
        }),
    });
    let bearer = format!("Bearer {TOKEN}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let cluster = CLUSTER.parse().unwrap();
    request.metadata_mut().insert("clusterid", cluster);
    request
}

/// A signing request that asks for more.
fn asking(change: impl FnOnce(&mut CertificateParams)) -> String {
    let uri = id("web").to_string().try_into().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri)];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

#[test]
fn the_ca_of_these_tests_refuses_what_istio_s_refuse() {
    let dir = TempDir::new().unwrap();
    let clock = TestClock::new();
    for kin in [Kin::Istiod, Kin::IstioCsr] {
        let rules = Rules::new(kin, authority(dir.path(), &clock));
        let answer = |change: &dyn Fn(&mut Request<IstioCertificateRequest>)| {
            let mut request = request();
            change(&mut request);
            rules.answer(&request).map_err(|status| status.code())
        };
        answer(&|_| {}).unwrap();
        let unauthenticated = Err(Code::Unauthenticated);
        for (name, value) in [
            ("authorization", format!("bearer {TOKEN}")),
            ("authorization", TOKEN.to_owned()),
            ("authorization", "Bearer of-somebody-else".to_owned()),
            ("clusterid", "Kubernetes".to_owned()),
        ] {
            let changed = answer(&|request| {
                let value = value.parse().unwrap();
                drop(request.metadata_mut().insert(name, value));
            });
            assert_eq!(changed, unauthenticated, "{kin:?} {name}: {value}");
        }
        let none = answer(&|request| drop(request.metadata_mut().remove("authorization")));
        assert_eq!(none, unauthenticated);
        let nobody = answer(&|request| request.get_mut().metadata = None);
        assert_eq!(nobody, unauthenticated);
        let csr = |csr: String| answer(&|request| request.get_mut().csr.clone_from(&csr));
        assert!(csr("nonsense".to_owned()).is_err());
        if kin == Kin::IstioCsr {
            let named = asking(|it| it.distinguished_name.push(DnType::CommonName, "web"));
            assert_eq!(csr(named), unauthenticated);
            let dns = SanType::DnsName("web".try_into().unwrap());
            let dns = asking(|it| it.subject_alt_names.push(dns));
            assert_eq!(csr(dns), unauthenticated);
            let usage = asking(|it| {
                it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            });
            csr(usage).unwrap();
        } else {
            let life = |seconds| answer(&|it| it.get_mut().validity_duration = seconds);
            assert_eq!(life(91 * 86_400), Err(Code::Internal));
        }
    }
}

#[tokio::test]
async fn istiod_and_istio_csr_sign_what_an_agent_asks_for() {
    for kin in [Kin::Istiod, Kin::IstioCsr] {
        let ca = Ca::new(kin).await;
        let agent = ca.agent();
        agent.set_wanted([id("web"), id("cart")].into());
        for account in ["web", "cart"] {
            let credentials = agent.credentials(&id(account)).await.unwrap();
            assert_eq!(*credentials.id(), id(account));
        }
    }
}

#[tokio::test]
async fn a_token_that_is_replaced_counts_for_the_next_request() {
    let ca = Ca::new(Kin::Istiod).await;
    "the next".clone_into(&mut ca.rules.token.lock().unwrap());
    let agent = ca.agent();
    agent.set_wanted([id("web")].into());
    let error = agent.credentials(&id("web")).await.unwrap_err().to_string();
    assert!(error.contains("(istio-ca)"), "{error}");
    fs::write(ca.dir.path().join("token"), "the next\n").unwrap();
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        while agent.in_force(&id("web")).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    found.await.unwrap();
}

#[tokio::test]
async fn an_identity_of_another_node_is_refused_with_what_to_do() {
    let ca = Ca::new(Kin::Istiod).await;
    let agent = ca.agent();
    agent.set_wanted([id("elsewhere")].into());
    let error = agent.credentials(&id("elsewhere")).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("CA_TRUSTED_NODE_ACCOUNTS"), "{error}");
}
