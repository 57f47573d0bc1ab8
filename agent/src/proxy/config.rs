//! What can be set about the data path. Made once, by `app`.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::NodeName;

/// Behaviour of the data path.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node that this agent serves.
    pub node: NodeName,
    /// The cluster's name, as peers read it in `baggage`.
    pub cluster: Arc<str>,
    /// Threads that carry connections; 0: those of the runtime that makes the data path.
    pub workers: usize,
    /// Connections that one pod may have open; further ones are reset. Kubelet's probes
    /// are taken all the same.
    pub connections_per_pod: usize,
    /// Requests that one pod may have in flight; further ones are refused.
    pub requests_per_pod: usize,
    /// Bytes that may wait in memory for one pod, beyond one read of each connection: the
    /// bodies that are kept so that they can be sent twice.
    pub held_bytes_per_pod: usize,
    /// How long the tasks of one pod have a thread while those of other pods wait for it.
    /// `None`: tasks are polled in the order in which they became ready, whose they may
    /// be, and nobody's time is counted.
    pub turn: Option<Duration>,
    /// How long a dial may take, to an application as well as to another node.
    pub connect_timeout: Duration,
    /// A connection that is open both ways and silent for this long is reset. `None`:
    /// never; a peer that is gone is found by keep-alive, not by this.
    pub idle_timeout: Option<Duration>,
    /// A connection of which one direction has ended and the other is silent for this
    /// long is reset. An application that shut down one direction and is gone since is
    /// found by keep-alive within [`Keepalive::idle`] and its probes; this is for the one
    /// that lives and never closes.
    pub half_open_timeout: Duration,
    /// Of every socket.
    pub keepalive: Keepalive,
    /// From these networks certificates are believed though the state does not say whose
    /// the address is: gateways, and peers that are no pods of this cluster.
    pub gateways: Vec<IpNet>,
    /// In these networks keys of tokens may be fetched from the node's own network, whosever
    /// the address is.
    pub jwks_networks: Vec<IpNet>,
    /// Between nodes.
    pub tunnel: TunnelConfig,
    /// Of what is HTTP.
    pub http: HttpConfig,
}

/// Behaviour of connections that carry HTTP.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Bytes of a request's head in HTTP/1.1; a longer one is answered with 431.
    pub head_bytes: usize,
    /// From the first byte of a head to its last; a client that is slower is cut off.
    pub head_timeout: Duration,
    /// A client that asks for nothing for this long, from its first connect or its last
    /// answer on, is let go.
    pub client_idle: Duration,
    /// A client that sends nothing of a body for this long, while it is waited for, is cut
    /// off (in HTTP/2 its stream, unless that is one which may be silent, as of gRPC); so is
    /// one that takes nothing of an answer for this long.
    pub body_idle: Duration,
    /// Bytes of headers in HTTP/2, as that counts them: a longer list is refused.
    pub header_list: u32,
    /// Requests that one client may have open on one connection of HTTP/2.
    pub max_concurrent_streams: u32,
    /// Requests on one connection of HTTP/2 that a client may give up before their answers,
    /// beyond those that it waits for: who gives up more only makes work (CVE-2023-44487).
    pub max_resets: u32,
    /// Of those, how many may come together before the first is looked at.
    pub pending_resets: usize,
    /// Bytes that a peer may send on one stream of HTTP/2 before they are taken.
    pub stream_window: u32,
    /// The same for all streams of a connection.
    pub connection_window: u32,
    /// Longest DATA frame taken, in bytes: one read, and one write on the next hop, where a
    /// peer makes use of it.
    pub frame_size: u32,
    /// Bytes of one stream of HTTP/2 that wait for the network.
    pub send_buffer: usize,
    /// An upstream connection without a request for this long is closed. Shorter than what
    /// most servers wait, so that it is seldom they who close.
    pub upstream_idle: Duration,
    /// Idle connections of HTTP/1.1 that are kept to one server by one client.
    pub idle_per_server: usize,
    /// An upstream connection of HTTP/2 whose server acknowledges nothing of what it was sent
    /// for this long is given up; where nothing is sent, [`Config::keepalive`] finds out.
    pub upstream_unacknowledged: Duration,
    /// Requests on one upstream connection of HTTP/2 before another is opened.
    pub streams_per_connection: usize,
    /// Bytes of a request's body that are kept, so that it can be sent again.
    pub replay_bytes: usize,
    /// Bytes that the copy for a mirror may be behind the request.
    pub mirror_bytes: usize,
}

/// When the kernel probes a silent peer.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub probes: u32,
}

/// Behaviour of the connections between nodes.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// The port of every enrolled pod at which its node's agent takes tunnels.
    pub port: u16,
    /// TLS and HTTP/2 set-up together, and the wait for a new peer's first request.
    pub handshake_timeout: Duration,
    /// Set-ups in progress that one pod's tunnel listener serves; further ones wait.
    pub handshakes_per_pod: usize,
    /// The same of one address, so that one peer can't keep the others out.
    pub handshakes_per_source: usize,
    /// Set-ups that wait for that; further ones are reset.
    pub handshakes_waiting: usize,
    /// The same of one address.
    pub handshakes_waiting_per_source: usize,
    /// How long a request of a peer at an address that the state does not know waits for
    /// the state to tell of it.
    pub unknown_peer_patience: Duration,
    /// Requests that wait so at one pod; further ones are refused at once.
    pub unknown_peers_waiting: usize,
    /// Streams that this agent opens on one connection before it opens another.
    pub streams_per_connection: usize,
    /// Streams that a peer may open on one connection.
    pub max_concurrent_streams: u32,
    /// A pooled connection with no stream for this long is closed.
    pub idle_release: Duration,
    /// A peer's connection with no stream for this long is closed; longer than peers'
    /// own release, so that it is they who close.
    pub server_idle: Duration,
    /// Bytes that a peer may send on one stream before they are taken by the application.
    pub stream_window: u32,
    /// The same for all streams of a connection; four of the former, so that a stream
    /// which nobody reads does not stop the others.
    pub connection_window: u32,
    /// Longest DATA frame taken.
    pub frame_size: u32,
    /// Bytes of one stream that wait for the network.
    pub send_buffer: usize,
    /// Bytes of a request's headers.
    pub header_list: u32,
    /// Between PINGs.
    pub ping_interval: Duration,
    /// For the answer to one; a peer that misses it is gone.
    pub ping_timeout: Duration,
}

impl Config {
    /// What an agent uses unless told otherwise.
    pub fn recommended(node: NodeName) -> Self {
        Self {
            node,
            cluster: "Kubernetes".into(),
            workers: 0,
            connections_per_pod: 32_768,
            requests_per_pod: 32_768,
            held_bytes_per_pod: 64 << 20,
            turn: Some(Duration::from_micros(200)),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: None,
            half_open_timeout: Duration::from_hours(1),
            keepalive: Keepalive {
                idle: Duration::from_mins(1),
                interval: Duration::from_secs(15),
                probes: 4,
            },
            gateways: Vec::new(),
            jwks_networks: Vec::new(),
            tunnel: TunnelConfig {
                port: 15008,
                handshake_timeout: Duration::from_secs(10),
                handshakes_per_pod: 256,
                handshakes_per_source: 64,
                handshakes_waiting: 4096,
                handshakes_waiting_per_source: 1024,
                unknown_peer_patience: Duration::from_secs(3),
                unknown_peers_waiting: 256,
                streams_per_connection: 100,
                max_concurrent_streams: 200,
                idle_release: Duration::from_mins(5),
                server_idle: Duration::from_mins(10),
                stream_window: 4 << 20,
                connection_window: 16 << 20,
                frame_size: 1 << 20,
                send_buffer: 512 << 10,
                header_list: 16 << 10,
                ping_interval: Duration::from_secs(10),
                ping_timeout: Duration::from_secs(20),
            },
            http: HttpConfig {
                head_bytes: 64 << 10,
                head_timeout: Duration::from_secs(30),
                client_idle: Duration::from_hours(1),
                body_idle: Duration::from_mins(5),
                header_list: 64 << 10,
                max_concurrent_streams: 256,
                max_resets: 200,
                pending_resets: 20,
                stream_window: 1 << 20,
                connection_window: 4 << 20,
                frame_size: 64 << 10,
                send_buffer: 256 << 10,
                upstream_idle: Duration::from_secs(30),
                idle_per_server: 128,
                upstream_unacknowledged: Duration::from_secs(30),
                streams_per_connection: 100,
                replay_bytes: 64 << 10,
                mirror_bytes: 256 << 10,
            },
        }
    }
}

/// What small frames may cost that wait on one connection of HTTP/2, beyond their bytes: each
/// takes some memory of the library, which counts 256 bytes for it. By its own measure, an
/// eighth of this, one stream of short messages that nobody takes yet ends its connection
/// with all the others; by this one windows are full before, of messages of some 50 bytes.
pub(super) fn frame_budget(connection_window: u32) -> usize {
    usize::try_from(connection_window).map_or(usize::MAX, |window| window.saturating_mul(4))
}

/// Streams of one connection of HTTP/2 that were reset here less than a second ago, and of
/// which it is known that what still comes of them was on its way. Of further ones each frame
/// counts among [`PEER_ERRORS`].
pub(super) const KNOWN_RESETS: usize = 1024;

/// Frames of a peer that are answered with a reset before its connection ends with all its
/// streams, so that it can't have any number of answers wait. The library's own measure, 1024
/// in a connection's life, is soon reached by peers who have done nothing wrong: whose
/// requests are answered before they have sent all of them, or who send what was cancelled.
pub(super) const PEER_ERRORS: usize = 1 << 16;
