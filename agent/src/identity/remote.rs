//! The client of Istio's certificate service.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::client::{Ca, Change, SignFuture, Signed, read};
use super::clock::{Clock, TlsTime};
use super::credentials::handshake_error;
use super::directory::Stamp;
use super::error::{FetchError, StartError};
use super::fetch::TIMEOUT;
use super::generated::IstioCertificateRequest;
use super::generated::istio_certificate_service_client::IstioCertificateServiceClient;
use super::request::SignRequest;
use super::{certificate, trust};

/// TCP and TLS to the CA.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between pings, while an answer is waited for. gRPC servers in Go, such as istiod and
/// istio-csr, close a connection at the fourth ping on which they sent nothing since the
/// first.
const PING: Duration = Duration::from_secs(10);
const _: () = assert!(TIMEOUT.as_secs() / PING.as_secs() <= 3, "too many pings");
/// A chain with a large bundle of roots is some 20 KiB.
const MAX_ANSWER: usize = 1024 * 1024;

/// What the CA is reached and spoken to with.
#[derive(Debug)]
struct Settings {
    /// `https://host:port`.
    origin: Uri,
    /// Resolved at each connect.
    address: String,
    name: ServerName<'static>,
    token_file: PathBuf,
    root_file: PathBuf,
    cluster_id: MetadataValue<tonic::metadata::Ascii>,
    clock: Arc<dyn Clock>,
}

/// `--ca https://HOST:PORT`.
#[derive(Debug)]
pub(super) struct RemoteCa {
    settings: Arc<Settings>,
    /// One connection for the fetches that are under way; none between them.
    channel: Mutex<Option<Channel>>,
    /// Of the root file when it was last looked at.
    root_stamp: Mutex<Option<Stamp>>,
}

/// The files and names that go with a CA's URL.
#[derive(Clone, Debug)]
pub(super) struct RemoteConfig {
    pub(super) url: String,
    pub(super) token_file: PathBuf,
    pub(super) root_file: PathBuf,
    pub(super) cluster_id: String,
}

impl RemoteCa {
    pub(super) fn new(config: RemoteConfig, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let RemoteConfig {
            url,
            token_file,
            root_file,
            cluster_id,
        } = config;
        let wrong = |reason| StartError::Url {
            url: url.clone(),
            reason,
        };
        let uri =
            Uri::from_str(&url).map_err(|_unhelpful| wrong("not a URL; give https://HOST:PORT"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong(
                "give https://HOST:PORT: the CA is spoken to over TLS only",
            ));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("give https://HOST:PORT with no path"));
        }
        let authority = uri.authority().ok_or(wrong("it has no host"))?;
        let host = uri.host().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host.clone())
            .map_err(|_unhelpful| wrong("its host is neither a DNS name nor an address"))?;
        let port = authority.port_u16().unwrap_or(443);
        let address = match host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]:{port}"),
            Err(_) => format!("{host}:{port}"),
        };
        let cluster_id = cluster_id
            .parse()
            .map_err(|_unhelpful| wrong("the cluster id is not printable ASCII"))?;
        Ok(Self {
            root_stamp: Mutex::new(None),
            settings: Arc::new(Settings {
                origin: uri,
                address,
                name,
                token_file,
                root_file,
                cluster_id,
                clock,
            }),
            channel: Mutex::new(None),
        })
    }

    fn channel(&self) -> Channel {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel
            .get_or_insert_with(|| connect_lazily(&self.settings))
            .clone()
    }
}

impl Ca for RemoteCa {
    fn sign(&self, request: SignRequest) -> SignFuture {
        let channel = self.channel();
        let settings = Arc::clone(&self.settings);
        Box::pin(async move {
            let request = message(&settings, request)?;
            let mut client =
                IstioCertificateServiceClient::with_origin(channel, settings.origin.clone())
                    .max_decoding_message_size(MAX_ANSWER);
            let answer = client.create_certificate(request).await;
            let answer = answer.map_err(|status| classify(&settings, &status))?;
            Signed::from_pem_list(&answer.into_inner().cert_chain)
        })
    }

    fn look(&self) -> Change {
        let path = &self.settings.root_file;
        let stamp = Stamp::of(path);
        let mut known = self
            .root_stamp
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *known == stamp {
            return Change::Unchanged;
        }
        *known = stamp;
        self.idle();
        match roots(path) {
            Ok(roots) => Change::RootFile(roots),
            Err(error) => {
                tracing::error!(%error, "the CA's roots changed; those of before stay in force");
                Change::Unchanged
            }
        }
    }

    fn idle(&self) {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        *channel = None;
    }
}

/// The call, with what authenticates the node. The token is read anew: it is short-lived
/// where Kubernetes issues it.
fn message(
    settings: &Settings,
    request: SignRequest,
) -> Result<Request<IstioCertificateRequest>, FetchError> {
    let identity = Value {
        kind: Some(Kind::StringValue(request.id.to_string())),
    };
    let metadata = Struct {
        fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), identity)]),
    };
    let seconds = i64::try_from(request.ttl.as_secs()).unwrap_or(i64::MAX);
    let mut message = Request::new(IstioCertificateRequest {
        csr: request.csr,
        validity_duration: seconds,
        metadata: Some(metadata),
    });
    let token = read(&settings.token_file)?;
    let unusable = |reason: &str| FetchError::File {
        path: settings.token_file.clone(),
        reason: reason.to_owned(),
    };
    if token.trim().is_empty() {
        return Err(unusable("the token is empty"));
    }
    let mut bearer: MetadataValue<_> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_unhelpful| unusable("the token has characters that no token has"))?;
    bearer.set_sensitive(true);
    message.metadata_mut().insert("authorization", bearer);
    message
        .metadata_mut()
        .insert("clusterid", settings.cluster_id.clone());
    Ok(message)
}

/// A connection that is made at the first call, and again after it broke.
fn connect_lazily(settings: &Arc<Settings>) -> Channel {
    let settings = Arc::clone(settings);
    Endpoint::from(settings.origin.clone())
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let settings = Arc::clone(&settings);
            async move { connect(&settings).await.map(TokioIo::new) }
        }))
}

async fn connect(
    settings: &Settings,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, FetchError> {
    let unreachable = |reason: String| FetchError::Unreachable {
        address: settings.address.clone(),
        reason,
    };
    let tls = tls_config(settings)?;
    let handshake = async {
        let stream = TcpStream::connect(&settings.address).await?;
        let connector = TlsConnector::from(Arc::new(tls));
        connector.connect(settings.name.clone(), stream).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(result) => result.map_err(|error| unreachable(handshake_error(&error))),
        Err(_) => Err(unreachable(format!(
            "no connection within {}s",
            CONNECT_TIMEOUT.as_secs()
        ))),
    }
}

/// The certificates of the root file.
fn roots(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, FetchError> {
    let file = |reason: &str| FetchError::File {
        path: path.clone(),
        reason: reason.to_owned(),
    };
    if !path.exists() {
        return Err(file(
            "it is not there yet; it is read as soon as the CA's roots are published there",
        ));
    }
    certificate::from_pem(&read(path)?).ok_or_else(|| file("it has no PEM certificate"))
}

/// The CA's own certificate is verified against the root file, by the URL's host.
fn tls_config(settings: &Settings) -> Result<ClientConfig, FetchError> {
    let roots = roots(&settings.root_file)?;
    let time = Arc::new(TlsTime(Arc::clone(&settings.clock)));
    let mut config = ClientConfig::builder_with_details(trust::provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(FetchError::Chain)?
        .with_root_certificates(trust::store(&roots))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What a failed call means. What the connector said is at the end of tonic's chain.
fn classify(settings: &Settings, status: &Status) -> FetchError {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<FetchError>() {
            return match error {
                FetchError::File { path, reason } => FetchError::File {
                    path: path.clone(),
                    reason: reason.clone(),
                },
                other => FetchError::Unreachable {
                    address: settings.address.clone(),
                    reason: match other {
                        FetchError::Unreachable { reason, .. } => reason.clone(),
                        other => other.to_string(),
                    },
                },
            };
        }
        source = error.source();
    }
    if status.source().is_some() {
        return FetchError::Unreachable {
            address: settings.address.clone(),
            reason: status.message().to_owned(),
        };
    }
    FetchError::Refused {
        code: status.code(),
        message: status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::identity::SystemClock;

    fn open(url: &str) -> Result<RemoteCa, StartError> {
        let config = RemoteConfig {
            url: url.to_owned(),
            token_file: "token".into(),
            root_file: "root".into(),
            cluster_id: "Kubernetes".to_owned(),
        };
        RemoteCa::new(config, Arc::new(SystemClock))
    }

    #[track_caller]
    fn check(url: &str, address: &str, name: &ServerName<'_>) {
        let ca = open(url).unwrap();
        assert_eq!(ca.settings.address, address);
        assert_eq!(ca.settings.name, *name);
    }

    #[test]
    fn takes_urls_of_names_and_addresses() {
        let name = ServerName::try_from("istiod.istio-system.svc").unwrap();
        check(
            "https://istiod.istio-system.svc:15012",
            "istiod.istio-system.svc:15012",
            &name,
        );
        let v4: IpAddr = "10.1.0.1".parse().unwrap();
        check("https://10.1.0.1:15012/", "10.1.0.1:15012", &v4.into());
        let v6: IpAddr = "fd00::1".parse().unwrap();
        check("https://[fd00::1]:15012", "[fd00::1]:15012", &v6.into());
    }

    #[test]
    fn refuses_other_urls() {
        for url in [
            "",
            "istiod:15012",
            "http://istiod:15010",
            "https://",
            "https://a/b",
            "dir:x",
        ] {
            assert!(open(url).is_err(), "{url} was taken");
        }
    }
}
