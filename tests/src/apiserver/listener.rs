//! Where the server is reached.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::handler;
use super::shared::Shared;
use crate::port;

/// A place to listen at.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) address: SocketAddr,
    /// A network namespace by its path; none: this process's own.
    pub(super) netns: Option<PathBuf>,
}

/// An open listener; closed, with all its connections, when dropped.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) place: Place,
    task: JoinHandle<()>,
}

/// The server's certificate and who vouches for it.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) root_pem: String,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// An authority and a certificate of its for loopback and these names.
    pub(super) fn new(names: &[String]) -> Result<Self> {
        let root_key = KeyPair::generate()?;
        let mut root = CertificateParams::new(Vec::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_certificate = root.self_signed(&root_key)?;
        let issuer = Issuer::new(root, root_key);
        let key = KeyPair::generate()?;
        let mut sans = ["127.0.0.1", "::1", "localhost", "kubernetes.default.svc"]
            .map(str::to_owned)
            .to_vec();
        sans.extend(names.iter().cloned());
        let certificate = CertificateParams::new(sans)?.signed_by(&key, &issuer)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            root_pem: root_certificate.pem(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }
}

impl Listening {
    /// Listens and serves, on a runtime.
    pub(super) fn start(
        runtime: &Handle,
        mut place: Place,
        (shared, tls): (Arc<Shared>, Option<Tls>),
    ) -> Result<Self> {
        let listener = bind(&place).with_context(|| format!("cannot listen on {place:?}"))?;
        place.address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let _context = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let task = runtime.spawn(accept(listener, shared, tls));
        Ok(Self { place, task })
    }

    /// Closes it, and waits until the port is free.
    pub(super) fn stop(self) -> Place {
        self.task.abort();
        while !self.task.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.place.clone()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bind(place: &Place) -> Result<TcpListener> {
    let address = place.address;
    let bind = move || match address.port() {
        0 => port::listen(address.ip()),
        _ => TcpListener::bind(address),
    };
    let Some(path) = place.netns.clone() else {
        return Ok(bind()?);
    };
    // A thread is in one namespace, and this one ends at once.
    let bound = std::thread::spawn(move || -> io::Result<TcpListener> {
        let netns = File::open(path)?;
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&netns),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )?;
        bind()
    });
    let bound = bound.join();
    let bound = bound.map_err(|_panic| anyhow!("the thread panicked"))?;
    Ok(bound?)
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>, tls: Option<Tls>) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    connections.spawn(connection(stream, shared, tls));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, tls: Option<Tls>) {
    // Small events are to be sent at once; a socket without this option is only slower.
    drop(stream.set_nodelay(true));
    match tls {
        None => serve(stream, shared).await,
        Some(tls) => {
            let cancelled = shared.connection();
            let handshake = cancelled.run_until_cancelled(tls.acceptor.accept(stream));
            if let Some(Ok(stream)) = handshake.await {
                serve(stream, shared).await;
            }
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, shared: Arc<Shared>) {
    let ends = shared.connection();
    let of_requests = ends.clone();
    let service = service_fn(move |request| {
        handler::handle(Arc::clone(&shared), of_requests.clone(), request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let served = builder.serve_connection(TokioIo::new(stream), service);
    // A connection that ends badly is the client's business.
    drop(ends.run_until_cancelled(served).await);
}
