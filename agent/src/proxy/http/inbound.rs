//! Requests to a pod of this node that came from elsewhere: whether they may be, and the
//! application's answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::request::Parts;
use http::{Method, Request, Version};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::Body;
use super::deadline::{Deadline, write_grpc_timeout};
use super::forward::falls_back;
use super::gate::Door;
use super::headers;
use super::io::Io;
use super::reason::{Reason, disown};
use super::record::Exchange;
use super::server::{Answer, Handler};
use super::session::{finish, refuse, unanswered};
use super::timed::in_time;
use super::upstream::{self, Dial, Exit, Upstreams};
use crate::flow::{RequestEnds, RequestFlow};
use crate::model::ClientAddr;
use crate::proxy::dial;
use crate::proxy::inbound::Arrival;
use crate::proxy::lock::lock;
use crate::proxy::outcome::Outcome;
use crate::proxy::permit::Subject;
use crate::proxy::pod::LocalPod;
use crate::proxy::reach::{Reached, Stream, Way};
use crate::proxy::shared::Shared;

/// One connection to a pod's application, and what its requests have in common.
#[derive(Debug)]
pub(in crate::proxy) struct Inbound {
    shared: Arc<Shared>,
    server: Arc<LocalPod>,
    subject: Subject,
    /// As the application is to see it.
    client: ClientAddr,
    /// The application's.
    address: SocketAddr,
    to: Reached,
    ends: Arc<RequestFlow>,
    /// Connections to the application, of this client alone.
    upstreams: Arc<Upstreams>,
    /// Opened before the client was known to speak HTTP.
    begun: Mutex<Option<TcpStream>>,
}

impl Inbound {
    pub(in crate::proxy) fn new(
        arrival: Arrival,
        common: RequestEnds,
        begun: Option<TcpStream>,
    ) -> Self {
        let Arrival {
            shared,
            server,
            subject,
            client,
            address,
        } = arrival;
        let ends = Arc::new(shared.flows.requests(common));
        let to = Way::Local(Arc::clone(&server)).reached(address);
        let upstreams = Upstreams::new(Arc::clone(&shared.config));
        Self {
            shared,
            server,
            subject,
            client,
            address,
            to,
            ends,
            upstreams,
            begun: Mutex::new(begun),
        }
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (mut parts, mut body) = request.into_parts();
        let upload = body.counted();
        let version = parts.version;
        let flows = &self.shared.flows;
        let mut exchange = Exchange::begin(Arc::clone(&self.ends), flows, &parts, upload);
        exchange.upstream = Some(self.address);
        let is_head = parts.method == Method::HEAD;
        // A pod with too much to do still has to say how it is.
        let placed = if self.subject.probe {
            Ok(())
        } else {
            exchange.occupy(&self.server.account)
        };
        let sent = match placed.and_then(|()| headers::receive(&mut parts)) {
            Ok(()) => {
                let until = exchange.deadline(&parts.headers);
                in_time(until, self.forward(parts, body, until, &mut exchange)).await
            }
            Err(reason) => Err(reason),
        };
        match sent {
            Ok(sent) => finish(sent, exchange, version),
            Err(reason) => refuse(&reason, exchange, is_head),
        }
    }

    async fn forward(
        &self,
        mut parts: Parts,
        mut body: Body,
        until: Option<Deadline>,
        exchange: &mut Exchange,
    ) -> Result<upstream::Sent, Reason> {
        use http_body::Body as _;
        let door = Door {
            shared: &self.shared,
            server: &self.server,
            subject: &self.subject,
            client: self.client.0,
            address: self.address,
        };
        let admitted = door.admit(&mut parts, &mut body, exchange).await?;
        let version = if parts.version >= Version::HTTP_2 {
            upstream::Version::Http2
        } else {
            upstream::Version::Http1
        };
        headers::send(&mut parts, version, body.is_end_stream())?;
        if let Some(until) = until {
            write_grpc_timeout(&mut parts.headers, until.left(Instant::now()));
        }
        let exit = Exit {
            upstreams: &self.upstreams,
            tasks: &self.shared.tasks,
            to: &self.to,
            version,
            falls_back: headers::is_extended(&parts.extensions) && self.falls_back(),
        };
        let request = Request::from_parts(parts, body);
        let sent = exit.send(request, self).await;
        let mut sent = sent.map_err(|failed| unanswered(&failed.why))?;
        let headers = sent.response.headers_mut();
        disown(headers);
        admitted.apply(headers);
        Ok(sent)
    }

    fn falls_back(&self) -> bool {
        let (table, port) = (self.shared.table(), self.address.port());
        falls_back(table.pod_protocol(&self.server.pod, port))
    }
}

impl Dial for Inbound {
    async fn dial(&self) -> Result<Io, Outcome> {
        let begun = lock(&self.begun).take();
        if let Some(app) = begun {
            return Ok(Io::new(Stream::Tcp(app)));
        }
        let (network, config) = (&*self.server.network, &self.shared.config);
        let app = dial::application(network, self.client, self.address, config).await?;
        Ok(Io::new(Stream::Tcp(app)))
    }
}

impl Handler for Inbound {
    async fn handle(&self, request: Request<Body>) -> Answer {
        self.answer(request).await
    }
}
