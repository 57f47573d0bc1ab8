//! Kubelet's probes.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::paths::{allow, strict};
use super::world::{TestPod, World, app, fresh_ip};
use super::{check_flow, echo, expect_fin, expect_reset, round_trip};
use crate::flow::Verdict;

/// A server that takes mTLS only, and only that of `client`; where kubelet dials from.
fn guarded(world: &mut World) -> (TestPod, IpAddr) {
    let server = world.pod("server", 1);
    world.apply(strict("server"));
    world.apply(allow("server", "client"));
    let kubelet = fresh_ip();
    server.network.kubelet.lock().unwrap().push(kubelet);
    (server, kubelet)
}

#[tokio::test]
async fn probes_pass_where_plaintext_is_refused() {
    let mut world = World::new();
    let (server, kubelet) = guarded(&mut world);
    let serve = async |address| echo(app(address).0);
    let (mut stream, _) = world.plaintext(1, &server, kubelet, serve).await;
    round_trip(&mut stream, b"alive?").await;
    // A change of the policies is none of its business.
    world.apply(allow("server", "somebody-else"));
    round_trip(&mut stream, b"still?").await;
    stream.shutdown().await.unwrap();
    expect_fin(&mut stream).await;
    let flow = world.flow(1).await;
    check_flow(&flow, Verdict::Forwarded, "closed");
    assert_eq!(flow.policy.as_deref(), Some("kubelet_probe"));
    assert_eq!(flow.source.workload.as_deref(), Some("kubelet"));
    assert_eq!(flow.source.identity, None);

    let (mut other, _) = world.plaintext(1, &server, fresh_ip(), async |_| {}).await;
    expect_reset(&mut other).await;
    check_flow(&world.flow(1).await, Verdict::Denied, "mtls_required");
}

#[tokio::test]
async fn probes_end_with_their_pod() {
    let mut world = World::new();
    let (server, kubelet) = guarded(&mut world);
    let serve = async |address| echo(app(address).0);
    let (mut stream, _) = world.plaintext(1, &server, kubelet, serve).await;
    round_trip(&mut stream, b"alive?").await;
    let proxy = world.nodes[1].proxy.clone();
    proxy.remove_pod(&server.key(), Duration::ZERO);
    expect_reset(&mut stream).await;
    check_flow(&world.flow(1).await, Verdict::Forwarded, "pod_removed");
}
