//! The server of requests: as little as an HTTP/1.1 and a gRPC server can do.
//!
//! The answer to any path is so many bytes as the header `bench-size` says.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

/// Says how long the answer is to be.
pub(super) const SIZE: &str = "bench-size";

/// The longest answer.
const LONGEST: usize = 1 << 20;

/// Windows of HTTP/2 that no answer fills.
pub(super) const WINDOW: u32 = 16 << 20;

/// Where to listen.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerOptions {
    /// For HTTP/1.1.
    http: SocketAddr,
    /// For gRPC.
    grpc: SocketAddr,
}

/// Serves until the process is ended.
pub(crate) fn serve(options: &ServerOptions) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let http = listen(options.http).await?;
        let grpc = listen(options.grpc).await?;
        let body = Bytes::from(vec![b'x'; LONGEST]);
        loop {
            let body = body.clone();
            tokio::select! {
                accepted = http.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    // A client that goes away is no concern of the others.
                    let _client = tokio::spawn(async move { drop(serve_http(stream, body).await) });
                }
                accepted = grpc.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    let _client = tokio::spawn(async move { drop(serve_grpc(stream, body).await) });
                }
            }
        }
    })
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}"))
}

async fn serve_http(stream: TcpStream, body: Bytes) -> hyper::Result<()> {
    let answer = service_fn(|request: Request<Incoming>| {
        let body = cut(&body, request.headers());
        async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

async fn serve_grpc(stream: TcpStream, body: Bytes) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(1024)
        .handshake(stream)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let answer = cut(&body, request.headers());
        // A call that was given up is no concern of the others.
        let _call = tokio::spawn(async move {
            let mut message = request.into_body();
            // Never longer than a window.
            while let Some(Ok(_piece)) = message.data().await {}
            drop(answer_grpc(respond, &answer));
        });
    }
    Ok(())
}

fn answer_grpc(mut respond: SendResponse<Bytes>, body: &Bytes) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    let _none = response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(message(body), false)?;
    let mut trailers = HeaderMap::new();
    let _none = trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

/// One gRPC message: not compressed, its length, itself.
pub(super) fn message(body: &[u8]) -> Bytes {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(5 + body.len());
    message.push(0);
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(body);
    message.into()
}

fn cut(body: &Bytes, headers: &HeaderMap) -> Bytes {
    let size = headers.get(SIZE).and_then(|size| size.to_str().ok());
    let size = size.and_then(|size| size.parse().ok()).unwrap_or(0);
    body.slice(..LONGEST.min(size))
}
