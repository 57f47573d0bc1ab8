//! Fetching the keys of an issuer.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::model::NamespacedName;
use crate::policy::{KeySet, NotAKeySet};
use crate::proxy::caller::Caller;
use crate::proxy::network::PodKey;

/// A larger answer is no set of keys.
const LARGEST: usize = 1 << 20;

/// For all of one attempt.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// Not within the limit.
    #[error("no answer within 5s")]
    TimedOut,
    /// Its host could not be reached.
    #[error("connecting: {0}")]
    Connect(#[source] io::Error),
    /// It does not prove to be the host.
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// The exchange broke off.
    #[error("HTTP: {0}")]
    Http(#[source] hyper::Error),
    /// Another answer than 200.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// More than 1 MiB, or an answer that broke off.
    #[error("its answer is too large, or broke off")]
    Body,
    /// What came is no set of keys.
    #[error("{0}")]
    Keys(#[source] NotAKeySet),
    /// The URI has no host.
    #[error("the URI can't be used")]
    Uri,
}

/// From where keys are fetched.
#[derive(Clone, Debug)]
pub(in crate::proxy) enum Via {
    /// From the node's own network, whichever pod asks first.
    Node(Caller),
    /// As a pod of this node calls a Service.
    Pod(Caller),
}

impl Via {
    /// The way to the host of a URI for a pod: through the mesh where the host is a Service.
    pub(super) fn to(&self, uri: &Uri) -> Self {
        match self {
            Self::Pod(caller) if service(caller, uri).is_some() => self.clone(),
            Self::Pod(caller) | Self::Node(caller) => Self::Node(caller.clone()),
        }
    }

    /// Whose view of the network it is.
    pub(super) fn owner(&self) -> Option<PodKey> {
        match self {
            Self::Node(_) => None,
            Self::Pod(caller) => Some(caller.key()),
        }
    }
}

/// The Service that a URI names: `name.namespace`, `name.namespace.svc` or its name in full.
fn service(caller: &Caller, uri: &Uri) -> Option<NamespacedName> {
    let host = uri.host()?.trim_end_matches('.');
    let short = host.strip_suffix(".cluster.local").unwrap_or(host);
    let (name, namespace) = short
        .strip_suffix(".svc")
        .unwrap_or(short)
        .split_once('.')?;
    let service = NamespacedName::new(namespace, name);
    caller.knows(&service).then_some(service)
}

/// Fetches a set of keys. Redirects are not followed.
pub(super) async fn fetch(uri: &Uri, via: &Via, tls: &Tls) -> Result<KeySet, FetchError> {
    let fetching = tokio::time::timeout(TIMEOUT, attempt(uri, via, tls));
    fetching.await.unwrap_or(Err(FetchError::TimedOut))
}

async fn attempt(uri: &Uri, via: &Via, tls: &Tls) -> Result<KeySet, FetchError> {
    let host = uri.host().ok_or(FetchError::Uri)?;
    let encrypted = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
    let text = match via {
        Via::Pod(caller) => {
            let service = service(caller, uri).ok_or(FetchError::Uri)?;
            let call = caller.dial((&service, port), &Method::GET, uri.path());
            let stream = call.await;
            let stream = stream.map_err(|error| FetchError::Connect(io::Error::other(error)))?;
            exchange(uri, tls.wrap(stream, host, encrypted).await?).await?
        }
        Via::Node(caller) => {
            let dialled = dial(host, port, caller).await;
            let stream = dialled.map_err(FetchError::Connect)?;
            exchange(uri, tls.wrap(stream, host, encrypted).await?).await?
        }
    };
    KeySet::parse(&text, true).map_err(FetchError::Keys)
}

/// Dials from the node's own network, the addresses of the host one after the other. Who
/// writes a policy may not reach by it what only the node can.
async fn dial(host: &str, port: u16, caller: &Caller) -> io::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut error = io::Error::other("the host has no address");
    for address in addresses {
        if let Some(why) = caller.out_of_bounds(address.ip()) {
            let message = format!("{} {why}", address.ip());
            error = io::Error::new(io::ErrorKind::PermissionDenied, message);
            continue;
        }
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

/// One request and its answer.
async fn exchange(uri: &Uri, stream: Wrapped) -> Result<Bytes, FetchError> {
    let (mut sender, connection) = http1::handshake(stream).await.map_err(FetchError::Http)?;
    let authority = uri.authority().ok_or(FetchError::Uri)?.as_str();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .body(Empty::<Bytes>::new())
        .map_err(|_invalid| FetchError::Uri)?;
    let answering = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(FetchError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        Ok(body.map_err(|_invalid| FetchError::Body)?.to_bytes())
    };
    tokio::pin!(answering);
    tokio::select! {
        biased;
        answer = &mut answering => answer,
        ended = connection => match ended {
            // The answer may have come with the end of the connection.
            Ok(()) => answering.await,
            Err(error) => Err(FetchError::Http(error)),
        },
    }
}

/// A connection, encrypted or not.
type Wrapped = TokioIo<Box<dyn Connection>>;

/// What HTTP can be spoken on.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// TLS to the servers of issuers, with the certificate authorities of the node.
#[derive(Debug, Default)]
pub(super) struct Tls(OnceLock<Result<Arc<ClientConfig>, String>>);

impl Tls {
    async fn wrap(
        &self,
        stream: impl Connection + 'static,
        host: &str,
        encrypted: bool,
    ) -> Result<Wrapped, FetchError> {
        if !encrypted {
            return Ok(TokioIo::new(Box::new(stream)));
        }
        let config = match self.0.get_or_init(node_roots) {
            Ok(config) => Arc::clone(config),
            Err(error) => return Err(FetchError::Tls(io::Error::other(error.clone()))),
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host).map_err(|_invalid| FetchError::Uri)?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        Ok(TokioIo::new(Box::new(stream.map_err(FetchError::Tls)?)))
    }
}

fn node_roots() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| error.to_string())?;
    let builder = builder
        .with_native_roots()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_no_client_auth()))
}
