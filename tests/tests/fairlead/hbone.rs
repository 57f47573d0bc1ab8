//! The tunnels' port: the protocol as published, and everything that it must refuse.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fairlead_tests::{Pod, PodSpec, Process, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Test;
use crate::mesh::{Mesh, SOON, TUNNEL, run_python, serve_python};
use crate::peer::{self, Answer, Certificate, Signer, Validity};

pub(crate) const TESTS: &[Test] = &[
    Test::node("hbone::another_peer_is_served", another_peer).with(&["python3"]),
    Test::node("hbone::bad_certificates_are_refused", bad_certificates).with(&["python3"]),
    Test::node("hbone::a_tunnel_to_elsewhere_is_refused", elsewhere).with(&["python3"]),
    Test::node("hbone::slow_peers_are_closed_and_harm_nobody", slow_peers).with(&["python3"]),
    Test::node("hbone::a_flood_of_tunnels_harms_nobody", flood).with(&["python3"]),
    Test::node("hbone::a_peer_that_never_reads_costs_little", never_reads).with(&["python3"]),
];

/// Echoes.
const ECHO: &str = include_str!("../../scripts/echo.py");
/// Dials in many ways.
const DIAL: &str = include_str!("../../scripts/dial.py");
/// Sends much.
const TRANSFER: &str = include_str!("../../scripts/transfer.py");
/// The identity that the state gives to the peer's address.
const PEER: &str = "spiffe://cluster.local/ns/guest/sa/peer";
/// That of another pod.
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// A mesh with an echo on the server, and the peer's pod, which is not meshed.
struct Scene {
    _echo: Process,
    mesh: Mesh,
    signer: Signer,
}

impl Scene {
    fn set() -> Result<Self> {
        let mesh = Mesh::up(&[
            PodSpec::new("a", "shop", "client"),
            PodSpec::new("b", "shop", "server"),
            PodSpec::new("b", "shop", "other"),
            PodSpec::new("a", "guest", "peer"),
        ])?;
        let echo = serve_python(mesh.pod("server"), ECHO, 7000, &[])?;
        let scene = Self {
            signer: Signer::of_the_mesh(&mesh.world.directory().join("ca"))?,
            _echo: echo,
            mesh,
        };
        // The server's own certificate is there once it has been used.
        scene.client_is_served()?;
        Ok(scene)
    }

    fn peer(&self) -> &Pod {
        self.mesh.pod("peer")
    }

    fn tunnel(&self) -> SocketAddr {
        SocketAddr::new(self.mesh.pod("server").ip4.into(), TUNNEL)
    }

    fn echo(&self) -> String {
        format!("{}:7000", self.mesh.pod("server").ip4)
    }

    fn certificate(&self) -> Result<Certificate> {
        self.signer.sign(PEER, Validity::Now)
    }

    /// The meshed client still gets through.
    fn client_is_served(&self) -> Result<()> {
        let address = self.mesh.pod("server").ip4.to_string();
        let output = run_python(self.mesh.pod("client"), DIAL, &["echo", &address, "7000"])?;
        ensure!(output.stdout.trim() == "right", "{output:?}");
        Ok(())
    }

    /// Memory that the agent of the server's node has in use, in KiB.
    fn agent_memory(&self) -> Result<u64> {
        let pid = self.mesh.agent("b").process.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = line.context("the agent's memory")?;
        Ok(words.trim().trim_end_matches(" kB").parse()?)
    }
}

fn another_peer() -> Result<()> {
    let scene = Scene::set()?;
    let (to, authority) = (scene.tunnel(), scene.echo());
    let certificate = scene.certificate()?;
    let seen = peer::inside(scene.peer(), || async move {
        let mut requests = peer::connect(to, Some(certificate)).await?;
        let mut seen = Vec::new();
        for _ in 0..3 {
            let Answer::Open(mut sender, mut body) =
                peer::tunnel(&mut requests, &authority).await?
            else {
                bail!("refused");
            };
            seen.push(peer::line(&mut body).await?);
            sender.send_data(Bytes::from_static(b"ping\n"), true)?;
            ensure!(peer::line(&mut body).await? == "ping\n", "no echo");
            while let Some(data) = body.data().await {
                ensure!(data?.is_empty(), "the end was to follow");
            }
        }
        Ok(seen)
    })?;
    let own = scene.peer().ip4.to_string();
    ensure!(
        seen.iter().all(|line| line.trim() == own),
        "{seen:?}, not {own}"
    );
    Ok(())
}

fn bad_certificates() -> Result<()> {
    let scene = Scene::set()?;
    let other = Signer::of_another_mesh()?;
    let cases = [
        ("none", None),
        (
            "another pod's",
            Some(scene.signer.sign(CLIENT, Validity::Now)?),
        ),
        ("self-signed", Some(peer::self_signed(PEER)?)),
        ("another root", Some(other.sign(PEER, Validity::Now)?)),
        ("expired", Some(scene.signer.sign(PEER, Validity::Expired)?)),
        (
            "another mesh's name",
            Some(
                scene
                    .signer
                    .sign("spiffe://elsewhere.example/ns/guest/sa/peer", Validity::Now)?,
            ),
        ),
        (
            "no identity",
            Some(
                scene
                    .signer
                    .sign("https://client.example/", Validity::Now)?,
            ),
        ),
    ];
    for (name, certificate) in cases {
        let (to, authority) = (scene.tunnel(), scene.echo());
        let opened = peer::inside(scene.peer(), || async move {
            let mut requests = peer::connect(to, certificate).await?;
            peer::tunnel(&mut requests, &authority).await
        });
        ensure!(
            !matches!(opened, Ok(Answer::Open(..))),
            "a tunnel was opened with this certificate: {name}"
        );
    }
    scene.client_is_served()
}

fn elsewhere() -> Result<()> {
    let scene = Scene::set()?;
    let other = scene.mesh.pod("other").ip4;
    let server = scene.mesh.pod("server").ip4;
    let authorities = [
        format!("{other}:7000"),
        "127.0.0.1:7000".to_owned(),
        "172.20.0.2:15020".to_owned(),
        "server.shop:7000".to_owned(),
        "[::1]:7000".to_owned(),
        format!("{server}:{TUNNEL}"),
        format!("{server}:0"),
    ];
    for authority in authorities {
        let to = scene.tunnel();
        let certificate = scene.certificate()?;
        let name = authority.clone();
        let answer = peer::inside(scene.peer(), || async move {
            let mut requests = peer::connect(to, Some(certificate)).await?;
            peer::tunnel(&mut requests, &authority).await
        });
        ensure!(
            !matches!(answer, Ok(Answer::Open(..))),
            "a tunnel to {name} was opened"
        );
    }
    // One that is refused does not cost the connection its next one.
    let (to, good) = (scene.tunnel(), scene.echo());
    let certificate = scene.certificate()?;
    peer::inside(scene.peer(), || async move {
        let mut requests = peer::connect(to, Some(certificate)).await?;
        let refused = peer::tunnel(&mut requests, &format!("{other}:7000")).await?;
        ensure!(matches!(refused, Answer::Refused(400..=503)), "{refused:?}");
        let opened = peer::tunnel(&mut requests, &good).await?;
        ensure!(matches!(opened, Answer::Open(..)), "{opened:?}");
        Ok(())
    })
}

/// Connections that say nothing, say half of something, or stop after the handshake.
fn slow_peers() -> Result<()> {
    const MANY: usize = 200;
    let scene = Scene::set()?;
    let to = scene.tunnel();
    let client_served = || scene.client_is_served();
    peer::inside(scene.peer(), || async move {
        let mut silent = Vec::new();
        for number in 0..MANY {
            let mut stream = TcpStream::connect(to).await?;
            if number % 2 == 0 {
                // The head of a record whose body never comes.
                stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).await?;
            }
            silent.push(stream);
        }
        client_served()?;
        // A peer without identity may not hold on to anything for long.
        for mut stream in silent {
            let mut rest = Vec::new();
            let closed =
                tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut rest));
            ensure!(closed.await.is_ok(), "a silent peer is still connected");
        }
        Ok(())
    })?;
    scene.client_is_served()
}

fn flood() -> Result<()> {
    let scene = Scene::set()?;
    let (to, authority) = (scene.tunnel(), scene.echo());
    let certificate = scene.certificate()?;
    let before = scene.agent_memory()?;
    let client_served = || scene.client_is_served();
    peer::inside(scene.peer(), || async move {
        let mut kept = Vec::new();
        for _ in 0..4 {
            let requests = peer::connect(to, Some(certificate.clone())).await?;
            // More than the server permits at once: the library queues what is over.
            for _ in 0..500 {
                let request = http::Request::builder()
                    .method(http::Method::CONNECT)
                    .uri(&authority)
                    .body(())?;
                let Ok(ready) =
                    tokio::time::timeout(Duration::from_millis(50), requests.clone().ready()).await
                else {
                    break;
                };
                let (response, sender) = ready?.send_request(request, false)?;
                kept.push((response, sender));
            }
        }
        client_served()
    })?;
    scene.client_is_served()?;
    let after = scene.agent_memory()?;
    ensure!(
        after < before + 200 * 1024,
        "{before} KiB grew to {after} KiB"
    );
    Ok(())
}

fn never_reads() -> Result<()> {
    let scene = Scene::set()?;
    let _sender = serve_python(scene.mesh.pod("server"), TRANSFER, 9000, &[])?;
    let to = scene.tunnel();
    let authority = format!("{}:9000", scene.mesh.pod("server").ip4);
    let certificate = scene.certificate()?;
    let before = scene.agent_memory()?;
    let (client_served, memory) = (|| scene.client_is_served(), || scene.agent_memory());
    peer::inside(scene.peer(), || async move {
        let mut kept = Vec::new();
        let mut requests = peer::connect(to, Some(certificate)).await?;
        for _ in 0..8 {
            let Answer::Open(mut sender, body) = peer::tunnel(&mut requests, &authority).await?
            else {
                bail!("refused");
            };
            sender.send_data(Bytes::from_static(b"receive 256\n"), false)?;
            kept.push((sender, body));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        client_served()?;
        let after = memory()?;
        ensure!(
            after < before + 100 * 1024,
            "{before} KiB grew to {after} KiB"
        );
        Ok(())
    })?;
    until("the client is served", SOON, || {
        scene.client_is_served().ok()
    })
}
