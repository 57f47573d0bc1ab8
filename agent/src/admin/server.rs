//! The gRPC side of the socket.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status as GrpcStatus};

use super::generated::admin_server::{Admin, AdminServer as GrpcServer};
use super::generated::flows_reply::Reply;
use super::generated::tap_reply::Reply as TapAnswer;
use super::generated::{
    ExplainRequest, FlowsReply, FlowsRequest, GetRequest, Json, StatusRequest, TapLoss as Loss,
    TapReply, TapRequest, UsageRequest,
};
use super::objects::{Kind, list};
use super::socket::SocketListener;
use super::view::View;
use crate::flow::{Filter, FlowEvent, Flows, Follower, Missed, Tap, TapEvent, TapLoss, TapWish};
use crate::policy::{ExplainError, RequestQuestion};

/// Answers on the unix socket.
#[derive(Clone, Debug)]
pub struct AdminServer {
    view: Arc<dyn View>,
    flows: Flows,
}

impl AdminServer {
    /// A server of what the view shows.
    pub fn new(view: Arc<dyn View>, flows: Flows) -> Self {
        Self { view, flows }
    }

    /// Serves until it is dropped, then removes the socket's file.
    pub async fn run(self, socket: SocketListener) -> Result<(), tonic::transport::Error> {
        let SocketListener { listener, file } = socket;
        let served = tonic::transport::Server::builder()
            .add_service(GrpcServer::new(self))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await;
        drop(file);
        served
    }
}

type FlowStream = Pin<Box<dyn Stream<Item = Result<FlowsReply, GrpcStatus>> + Send>>;
type TapStream = Pin<Box<dyn Stream<Item = Result<TapReply, GrpcStatus>> + Send>>;

#[tonic::async_trait]
impl Admin for AdminServer {
    type FlowsStream = FlowStream;
    type TapStream = TapStream;

    async fn flows(
        &self,
        request: Request<FlowsRequest>,
    ) -> Result<Response<FlowStream>, GrpcStatus> {
        let request = request.into_inner();
        let filter: Filter = match request.filter.as_str() {
            "" => Filter::default(),
            text => serde_json::from_str(text)
                .map_err(|error| GrpcStatus::invalid_argument(format!("the filter: {error}")))?,
        };
        let now = Timestamp::now();
        if !request.follow {
            let recent = stream::iter(self.flows.recent(&filter, now));
            return Ok(Response::new(Box::pin(recent.map(|it| flow_reply(&it)))));
        }
        let (recent, follower) = self.flows.follow(filter, now);
        let replies =
            stream::iter(recent)
                .map(Ok)
                .chain(following(follower))
                .map(|item| match item {
                    Ok(event) => flow_reply(&event),
                    Err(Missed(count)) => Ok(FlowsReply {
                        reply: Some(Reply::Missed(count)),
                    }),
                });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<TapStream>, GrpcStatus> {
        let request = request.into_inner();
        let wish: TapWish = match request.wish.as_str() {
            "" => TapWish::default(),
            text => serde_json::from_str(text)
                .map_err(|error| GrpcStatus::invalid_argument(format!("the wish: {error}")))?,
        };
        let tap = self.flows.taps().open(wish);
        let tap = tap.map_err(|error| GrpcStatus::failed_precondition(error.to_string()))?;
        let replies = tapped(tap).map(|item| {
            let reply = match item {
                Ok(event) => TapAnswer::Request(text(&*event)?),
                Err(lost) => TapAnswer::Lost(Loss {
                    slow_reader: lost.slow_reader,
                    over_rate: lost.over_rate,
                }),
            };
            Ok(TapReply { reply: Some(reply) })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<Json>, GrpcStatus> {
        json(&self.view.status())
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<Json>, GrpcStatus> {
        json(&self.view.usage())
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Json>, GrpcStatus> {
        let request = request.into_inner();
        let kind: Kind = request.kind.parse().map_err(GrpcStatus::invalid_argument)?;
        json(&list(kind, &request.namespace, &*self.view))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<Json>, GrpcStatus> {
        let request = request.into_inner();
        let (source, destination) = (&*request.source, &*request.destination);
        let table = self.view.table();
        let explanation = match &*request.request {
            "" => table.explain(source, destination),
            question => {
                let question: RequestQuestion =
                    serde_json::from_str(question).map_err(|error| {
                        GrpcStatus::invalid_argument(format!("the request: {error}"))
                    })?;
                table.explain_request(source, destination, &question)
            }
        };
        let explanation = explanation.map_err(|error| match error {
            ExplainError::BadRequest(_) => GrpcStatus::invalid_argument(error.to_string()),
            ExplainError::UnknownSource(_)
            | ExplainError::NoPort(_)
            | ExplainError::UnknownDestination(_) => GrpcStatus::not_found(error.to_string()),
        })?;
        json(&explanation)
    }
}

fn following(follower: Follower) -> impl Stream<Item = Result<Arc<FlowEvent>, Missed>> {
    stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    })
}

fn tapped(tap: Tap) -> impl Stream<Item = Result<Box<TapEvent>, TapLoss>> {
    stream::unfold(tap, |mut tap| async move {
        let item = tap.next().await?;
        Some((item, tap))
    })
}

fn flow_reply(event: &FlowEvent) -> Result<FlowsReply, GrpcStatus> {
    let flow = text(event)?;
    Ok(FlowsReply {
        reply: Some(Reply::Flow(flow)),
    })
}

fn json(value: &impl Serialize) -> Result<Response<Json>, GrpcStatus> {
    let json = text(value)?;
    Ok(Response::new(Json { json }))
}

fn text(value: &impl Serialize) -> Result<String, GrpcStatus> {
    serde_json::to_string(value).map_err(|error| GrpcStatus::internal(error.to_string()))
}
