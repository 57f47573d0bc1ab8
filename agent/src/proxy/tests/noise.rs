//! Bytes that mean nothing, or almost something: the same ones at each run.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::tunnels::tls;
use super::world::{World, soon, until};
use super::{echo, round_trip};

/// A source of noise.
pub(crate) struct Noise(StdRng);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Up to `longest` bytes of any value.
    pub(crate) fn bytes(&mut self, longest: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.0.random_range(0..=longest)];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// One of the choices.
    pub(crate) fn one_of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.0.random_range(0..choices.len())]
    }

    /// Changes, cuts, repeats or inserts a little.
    pub(crate) fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.0.random_range(1..=4) {
            if bytes.is_empty() {
                bytes.push(self.0.random());
            }
            let at = self.0.random_range(0..bytes.len());
            match self.0.random_range(0..6) {
                0 => bytes[at] = self.0.random(),
                1 => bytes[at] ^= 1 << self.0.random_range(0..8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.0.random()),
                4 => drop(bytes.remove(at)),
                _ => bytes.extend_from_within(at..),
            }
        }
    }
}

/// A CONNECT of HTTP/2: preface, SETTINGS, HEADERS with literal fields.
fn connect(to: SocketAddr) -> Vec<u8> {
    let mut headers = Vec::new();
    let authority = to.to_string();
    let fields = [
        (":method", "CONNECT"),
        (":authority", authority.as_str()),
        ("forwarded", "for=\"10.0.0.1:4242\";host=a.b.svc"),
        ("baggage", "k8s.namespace.name=shop,service.name=x"),
        (
            "traceparent",
            "00-123456789abcdef0123456789abcdef0-123456789abcdef1-00",
        ),
    ];
    for (name, value) in fields {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, u8::try_from(headers.len()).unwrap()]);
    bytes.extend_from_slice(&[1, 4, 0, 0, 0, 1]);
    bytes.extend_from_slice(&headers);
    bytes
}

/// Says it, and waits for the other end to have enough of it.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: Vec<u8>) {
    if stream.write_all(&bytes).await.is_ok() {
        let _shut = stream.shutdown().await;
        let _ended = soon(stream.read_to_end(&mut Vec::new())).await;
    }
}

#[tokio::test]
async fn noise_harms_nobody() {
    let mut world = World::with(|config| {
        config.tunnel.handshake_timeout = Duration::from_secs(3);
    });
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut noise = Noise::new(1);
    let proxy = world.nodes[1].proxy.clone();
    let idle = proxy.stats().tasks;
    for _ in 0..40 {
        let tunnel = SocketAddr::new(server.ip, 15008);
        let raw = TcpStream::connect(tunnel).await.unwrap();
        let any = noise.bytes(400);
        say(raw, any).await;
        // From a peer that has proven who it is.
        let proven = tls(&world, &client, &server).await;
        let mut bytes = connect(address);
        noise.spoil(&mut bytes);
        say(proven, bytes).await;
    }
    until("all of it is over", || proxy.stats().tasks <= idle).await;
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"hello").await;
}
