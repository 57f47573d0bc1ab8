//! Connections to a pod of this node that came from elsewhere, and the way into its
//! application.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::config::Config;
use super::dial;
use super::http::detect::{first_bytes, in_time, server_first_of_socket};
use super::http::{self, Inbound, Speaks};
use super::network::PodNetwork;
use super::outcome::Outcome;
use super::permit::{Admitted, Permit, Subject};
use super::pod::LocalPod;
use super::reach::Stream;
use super::record::{ConnectionId, Near, Record};
use super::relay::{NearSide, TcpFar, relay};
use super::shared::Shared;
use crate::flow::Direction;
use crate::model::{ClientAddr, canonical};
use crate::policy::AppProtocol;

/// Serves one plaintext connection to `server`, to its end. The kernel steered it here:
/// its local address is the pod's.
pub(super) async fn serve(
    shared: Arc<Shared>,
    server: Arc<LocalPod>,
    near: TcpStream,
    peer: SocketAddr,
) {
    let peer = canonical(peer);
    let mut record = shared.begin(Direction::Inbound, ConnectionId::random());
    let client = shared.table().pod_by_ip(peer.ip()).cloned();
    record.from(client.as_deref(), peer, None);
    record.served_by(&server.pod);
    let (config, network) = (Arc::clone(&shared.config), Arc::clone(&server.network));
    // Boxed, so that a relay's task is not as large as what comes before it.
    let opened = Box::pin(async {
        match connect(&shared, &server, &near, peer, &mut record).await {
            Ok((arrival, admitted)) => arrival.open(Stream::Tcp(near), admitted, &mut record).await,
            Err(outcome) => {
                dial::reset(near);
                Err(outcome)
            }
        }
    });
    let outcome = match opened.await {
        Ok(opened) => opened.relay(&*network, &mut record, &config).await,
        Err(outcome) => outcome,
    };
    record.end(outcome);
}

async fn connect(
    shared: &Arc<Shared>,
    server: &Arc<LocalPod>,
    near: &TcpStream,
    peer: SocketAddr,
    record: &mut Record,
) -> Result<(Arrival, (Admitted, Option<TcpStream>)), Outcome> {
    let address = canonical(near.local_addr()?);
    record.towards(address);
    if !server.has_ip(address.ip()) || server.is_own_port(address.port()) {
        return Err(Outcome::WrongAddress);
    }
    let probe = server.network.is_probe(near.as_fd())?;
    if probe {
        // The address is the node's, which pods of its network have too.
        record.from(None, peer, None);
        record.source.workload = Some("kubelet".into());
    }
    let subject = Subject {
        peer: None,
        client_ip: peer.ip(),
        port: address.port(),
        encrypted: false,
        probe,
    };
    let arrival = Arrival {
        shared: Arc::clone(shared),
        server: Arc::clone(server),
        subject,
        client: ClientAddr(peer),
        address,
    };
    let admitted = arrival.admit(record).await?;
    Ok((arrival, admitted))
}

/// A connection for an application of this node, from whoever it is proven to be.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) shared: Arc<Shared>,
    pub(super) server: Arc<LocalPod>,
    pub(super) subject: Subject,
    /// As the application is to see it.
    pub(super) client: ClientAddr,
    /// The application's.
    pub(super) address: SocketAddr,
}

impl Arrival {
    /// Asks the policy; and dials the application, unless that depends on what the
    /// connection carries.
    pub(super) async fn admit(
        &self,
        record: &mut Record,
    ) -> Result<(Admitted, Option<TcpStream>), Outcome> {
        let checked = Admitted::check(&self.server, self.subject.clone());
        let admitted = record.note_check(checked)?;
        let app = if admitted.may_be_opaque() {
            Some(self.dial().await?)
        } else {
            None
        };
        Ok((admitted, app))
    }

    /// Carries it to where it is opaque, or to its end.
    pub(super) async fn open(
        self,
        mut client: Stream,
        (mut admitted, app): (Admitted, Option<TcpStream>),
        record: &mut Record,
    ) -> Result<Opaque, Outcome> {
        record.connected(match client {
            Stream::Tcp(_) => Near::Client,
            Stream::Hbone(_) => Near::Server,
        });
        let table = self.shared.table();
        let protocol = table.pod_protocol(&self.server.pod, self.address.port());
        drop(table);
        let detects = protocol == AppProtocol::Detect;
        let looks = detects || protocol.is_http();
        let waits = app.is_none() || protocol.is_http();
        let first = async {
            if waits {
                in_time(&mut client, &self.shared.config.http).await
            } else {
                Some(first_bytes(&mut client).await)
            }
        };
        let spoken = tokio::select! {
            biased;
            outcome = admitted.revoked() => Err(outcome),
            speaks = first, if looks => Ok(speaks),
            () = spoke_first(app.as_ref()), if detects => Ok(Some(Speaks::Other)),
            () = std::future::ready(()), if !looks => Ok(Some(Speaks::Other)),
        };
        let opened = match spoken {
            Ok(None) => return Err(http::let_go(client).await),
            Ok(Some(Speaks::Other)) if protocol.is_http() => {
                return Err(http::not_http(client).await);
            }
            Ok(Some(Speaks::Other)) => self.connect(admitted, app, record).await,
            Ok(Some(speaks)) => {
                let leaving = self.server.leaving.clone();
                let network = Arc::clone(&self.server.network);
                let shared = Arc::clone(&self.shared);
                let inbound = Inbound::new(self, record.request_ends(), app);
                let client = http::Client {
                    stream: client,
                    speaks,
                    leaving: &leaving,
                    config: &shared.config,
                    network: &*network,
                };
                let revoked = admitted.http().revoked();
                return Err(http::serve(client, Arc::new(inbound), revoked, record).await);
            }
            Err(outcome) => Err(outcome),
        };
        match opened {
            Ok((app, permit)) => Ok(Opaque {
                client,
                app,
                permit,
            }),
            Err(outcome) => {
                client.reset();
                Err(outcome)
            }
        }
    }

    /// The application's end of what is opaque.
    async fn connect(
        &self,
        admitted: Admitted,
        app: Option<TcpStream>,
        record: &mut Record,
    ) -> Result<(TcpStream, Permit), Outcome> {
        let permit = record.note_opaque(admitted)?;
        let app = match app {
            Some(app) => app,
            None => self.dial().await?,
        };
        Ok((app, permit))
    }

    /// The application's end.
    async fn dial(&self) -> Result<TcpStream, Outcome> {
        let (network, config) = (&*self.server.network, &self.shared.config);
        Ok(dial::application(network, self.client, self.address, config).await?)
    }
}

/// A connection that nobody looks into: both its ends, and the proof that it may be.
#[derive(Debug)]
pub(super) struct Opaque {
    client: Stream,
    app: TcpStream,
    permit: Permit,
}

impl Opaque {
    /// Relays it to its end.
    pub(super) async fn relay(
        self,
        network: &dyn PodNetwork,
        record: &mut Record,
        config: &Config,
    ) -> Outcome {
        let Self {
            client,
            app,
            permit,
        } = self;
        let near = |stream, is| NearSide {
            stream,
            is,
            network,
        };
        match client {
            Stream::Tcp(client) => {
                let far = TcpFar::new(app, false);
                relay(near(client, Near::Client), far, permit, record, config).await
            }
            Stream::Hbone(client) => {
                relay(near(app, Near::Server), *client, permit, record, config).await
            }
        }
    }
}

/// The application has something to say before its client does.
async fn spoke_first(app: Option<&TcpStream>) {
    match app {
        Some(app) => server_first_of_socket(app).await,
        None => std::future::pending().await,
    }
}
