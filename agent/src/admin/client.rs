//! The command line's end of the socket.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::generated::admin_client::AdminClient;
use super::generated::flows_reply::Reply;
use super::generated::tap_reply::Reply as TapAnswer;
use super::generated::{
    ExplainRequest, FlowsReply, FlowsRequest, GetRequest, StatusRequest, TapReply, TapRequest,
    UsageRequest,
};
use super::objects::{Kind, Object};
use super::socket::SOCKET;
use super::status::Status;
use super::usage::Usage;
use crate::flow::{Filter, FlowEvent, TapEvent, TapLoss, TapWish};
use crate::policy::{Explanation, RequestQuestion};

/// Objects of large clusters come in one answer.
const MESSAGE_LIMIT: usize = 256 << 20;

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("cannot reach the agent at {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It went away while it answered.
    #[error("the agent went away: {0}")]
    Gone(String),
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// Another version, most likely.
    #[error("the agent's answer was not understood, is it of another version? {0}")]
    Answer(#[from] serde_json::Error),
}

/// One item of [`Client::flows`].
#[derive(Clone, Debug, PartialEq)]
pub enum FlowLine {
    /// A record, and its JSON text as the agent sent it.
    Flow(Box<FlowEvent>, String),
    /// So many records, unfiltered, were lost because this side read too slowly.
    Missed(u64),
}

/// One item of [`Client::tap`].
#[derive(Clone, Debug, PartialEq)]
pub enum TapLine {
    /// A request, and its JSON text as the agent sent it.
    Request(Box<TapEvent>, String),
    /// Matching requests that are not shown.
    Lost(TapLoss),
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Client(AdminClient<Channel>);

/// The records that [`Client::flows`] asked for.
#[derive(Debug)]
pub struct FlowLines(tonic::Streaming<FlowsReply>);

/// The requests that [`Client::tap`] asked for.
#[derive(Debug)]
pub struct TapLines(tonic::Streaming<TapReply>);

impl Client {
    /// Connects to the agent whose run directory this is.
    pub async fn connect(run_dir: &Path) -> Result<Self, ClientError> {
        let path = run_dir.join(SOCKET);
        // First alone, for the system's own words: the channel would hide them.
        drop(
            UnixStream::connect(&path)
                .await
                .map_err(|source| ClientError::Unreachable {
                    path: path.clone(),
                    source,
                })?,
        );
        let dial = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is never used, but HTTP/2 wants an authority.
        let channel = Endpoint::from_static("http://agent")
            .connect_with_connector(dial)
            .await
            .map_err(|error| ClientError::Gone(error.to_string()))?;
        Ok(Self::of(channel))
    }

    /// Speaks to the agent at the other end of a byte stream, such as that of
    /// [`bridge`] on another node.
    pub async fn over<S>(stream: S) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut stream = Some(TokioIo::new(Box::pin(stream)));
        let dial = service_fn(move |_: Uri| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let channel = Endpoint::from_static("http://agent")
            .connect_with_connector(dial)
            .await
            .map_err(|error| ClientError::Gone(error.to_string()))?;
        Ok(Self::of(channel))
    }

    fn of(channel: Channel) -> Self {
        Self(AdminClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT))
    }

    /// How the agent is.
    pub async fn status(&mut self) -> Result<Status, ClientError> {
        let reply = self
            .0
            .status(StatusRequest {})
            .await
            .map_err(|status| refused(&status))?;
        parse(&reply.into_inner().json)
    }

    /// What each pod takes of the proxy.
    pub async fn usage(&mut self) -> Result<Usage, ClientError> {
        let reply = self
            .0
            .usage(UsageRequest {})
            .await
            .map_err(|status| refused(&status))?;
        parse(&reply.into_inner().json)
    }

    /// Objects as the agent sees them; an empty namespace means all.
    pub async fn get(&mut self, kind: Kind, namespace: &str) -> Result<Vec<Object>, ClientError> {
        let request = GetRequest {
            kind: kind.as_str().to_owned(),
            namespace: namespace.to_owned(),
        };
        let reply = self
            .0
            .get(request)
            .await
            .map_err(|status| refused(&status))?;
        parse(&reply.into_inner().json)
    }

    /// How the agent would decide about a connection, or a request on it; the destination is
    /// with its port.
    pub async fn explain(
        &mut self,
        source: &str,
        destination: &str,
        request: Option<&RequestQuestion>,
    ) -> Result<Explanation, ClientError> {
        let request = ExplainRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            request: request.map_or(Ok(String::new()), serde_json::to_string)?,
        };
        let reply = self
            .0
            .explain(request)
            .await
            .map_err(|status| refused(&status))?;
        parse(&reply.into_inner().json)
    }

    /// The records that match; with `follow` it does not end.
    pub async fn flows(&mut self, filter: &Filter, follow: bool) -> Result<FlowLines, ClientError> {
        let filter = serde_json::to_string(filter)?;
        let request = FlowsRequest { filter, follow };
        let reply = self
            .0
            .flows(request)
            .await
            .map_err(|status| refused(&status))?;
        Ok(FlowLines(reply.into_inner()))
    }

    /// Requests as they end, until what is returned is dropped.
    pub async fn tap(&mut self, wish: &TapWish) -> Result<TapLines, ClientError> {
        let wish = serde_json::to_string(wish)?;
        let reply = self
            .0
            .tap(TapRequest { wish })
            .await
            .map_err(|status| refused(&status))?;
        Ok(TapLines(reply.into_inner()))
    }
}

/// Passes bytes between this process's input and output and the agent of this node, until
/// either has no more.
pub async fn bridge(run_dir: &Path) -> Result<(), ClientError> {
    let path = run_dir.join(SOCKET);
    let socket = UnixStream::connect(&path)
        .await
        .map_err(|source| ClientError::Unreachable { path, source })?;
    let (mut from_agent, mut to_agent) = socket.into_split();
    let (mut input, mut output) = (tokio::io::stdin(), tokio::io::stdout());
    let ended = tokio::select! {
        ended = tokio::io::copy(&mut input, &mut to_agent) => ended,
        ended = pass_at_once(&mut from_agent, &mut output) => ended,
    };
    ended
        .map(drop)
        .map_err(|error| ClientError::Gone(error.to_string()))
}

/// Standard output keeps what is not flushed.
async fn pass_at_once(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0;
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(passed);
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        passed += length as u64;
    }
}

impl FlowLines {
    /// The next one; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<FlowLine>, ClientError> {
        let Some(reply) = self.0.message().await.map_err(|status| refused(&status))? else {
            return Ok(None);
        };
        match reply.reply {
            Some(Reply::Flow(text)) => {
                let event = parse(&text)?;
                Ok(Some(FlowLine::Flow(Box::new(event), text)))
            }
            Some(Reply::Missed(count)) => Ok(Some(FlowLine::Missed(count))),
            None => Err(ClientError::Gone("an empty reply".to_owned())),
        }
    }
}

impl TapLines {
    /// The next one; `None` where the agent stops. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<TapLine>, ClientError> {
        let Some(reply) = self.0.message().await.map_err(|status| refused(&status))? else {
            return Ok(None);
        };
        match reply.reply {
            Some(TapAnswer::Request(text)) => {
                let event = parse(&text)?;
                Ok(Some(TapLine::Request(Box::new(event), text)))
            }
            Some(TapAnswer::Lost(lost)) => Ok(Some(TapLine::Lost(TapLoss {
                slow_reader: lost.slow_reader,
                over_rate: lost.over_rate,
            }))),
            None => Err(ClientError::Gone("an empty reply".to_owned())),
        }
    }
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, ClientError> {
    Ok(serde_json::from_str(json)?)
}

fn refused(status: &tonic::Status) -> ClientError {
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition => {
            ClientError::Refused(status.message().to_owned())
        }
        // Whatever else gRPC knows means that the exchange broke.
        code => ClientError::Gone(format!("{code}: {}", status.message())),
    }
}
