//! What applications dial.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::Pod;
use serde_json::{Value, json};

use super::{DIAL, Node, SERVE, python};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("redirect::every_way_to_connect", every_way).with(&["python3"]),
    Test::node("redirect::loopback_udp_and_own_ports", untouched).with(&["python3"]),
    Test::node("redirect::excluded_outbound_bypasses", excluded).with(&["python3"]),
    Test::node("redirect::hops_inside_pods_are_not_paced", unpaced).with(&["python3"]),
    Test::node("redirect::destinations_under_load", under_load).with(&["python3"]),
    Test::node("redirect::few_ephemeral_ports_suffice", few_ports).with(&["python3"]),
];

const CONNECTS: &str = include_str!("../../../scripts/redirect/connects.py");
const UNTOUCHED: &str = include_str!("../../../scripts/redirect/untouched.py");
const MANY: &str = include_str!("../../../scripts/redirect/many.py");

/// Answers datagrams.
const UDP_ECHO: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 5353)); print('ready')
while True:
    data, peer = s.recvfrom(99); s.sendto(data, peer)";

/// The ways of `connects.py`, with the address that each one dials and the name by
/// which the socket's own family shows it.
const WAYS: &[(&str, &str, &str)] = &[
    ("blocking", "192.0.2.1:80", "192.0.2.1 80"),
    ("blocking v6", "[2001:db8::1]:80", "2001:db8::1 80"),
    ("mapped", "192.0.2.1:80", "::ffff:192.0.2.1 80"),
    ("nonblocking", "192.0.2.1:80", "192.0.2.1 80"),
    ("nonblocking v6", "[2001:db8::1]:80", "2001:db8::1 80"),
    ("bound", "192.0.2.1:80", "192.0.2.1 80"),
    ("bound to port", "192.0.2.1:80", "192.0.2.1 80"),
    ("bound v6", "[2001:db8::1]:80", "2001:db8::1 80"),
    ("bound to device", "192.0.2.1:80", "192.0.2.1 80"),
    ("bound to device v6", "[2001:db8::1]:80", "2001:db8::1 80"),
    ("fast open connect", "192.0.2.1:80", "192.0.2.1 80"),
    ("fast open message", "192.0.2.1:80", "192.0.2.1 80"),
    ("fast open message v6", "[2001:db8::1]:80", "2001:db8::1 80"),
    ("reused", "192.0.2.1:82", "192.0.2.1 82"),
    ("io_uring", "192.0.2.1:80", "192.0.2.1 80"),
    ("multipath", "192.0.2.1:80", ""),
];

fn every_way() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("client")?;
    let (ip4, ip6) = (pod.ip4.to_string(), pod.ip6.to_string());
    let results = python(&pod, CONNECTS, &[&ip4, &ip6])?;
    for (way, destination, peer) in WAYS {
        let seen = &results[*way];
        if let Some(reason) = seen["skipped"].as_str() {
            writeln!(std::io::stderr(), "{way}: skipped: {reason}")?;
            continue;
        }
        dialled(seen, &pod, destination).with_context(|| format!("{way}: {seen}"))?;
        // A multipath socket has the agent's address: the hook sees its subflow.
        ensure!(
            peer.is_empty() || seen["peer"] == *peer,
            "{way}: getpeername: {seen}"
        );
    }
    dialled(&results["own address"], &pod, &format!("{ip4}:80"))?;
    dialled(&results["own address v6"], &pod, &format!("[{ip6}]:80"))?;
    let again = &results["reused for loopback"];
    ensure!(again["peer_is_server"] == true, "{again}");
    ensure!(node.tell("strays", &Value::Null)? == 0);
    Ok(())
}

/// The agent was asked for `destination` by the pod's own address, which
/// getsockname shows as well.
fn dialled(seen: &Value, pod: &Pod, destination: &str) -> Result<()> {
    let banner = seen["banner"].as_str().context("no banner")?;
    let (asked, client) = banner.split_once(' ').context("a short banner")?;
    ensure!(asked == destination, "the agent was asked for {asked}");
    let client: SocketAddr = client.parse()?;
    let own = [IpAddr::from(pod.ip4), IpAddr::from(pod.ip6)];
    ensure!(own.contains(&client.ip()), "the agent saw {client}");
    let local: IpAddr = seen["local"].as_str().context("no local")?.parse()?;
    ensure!(own.contains(&local.to_canonical()), "getsockname: {local}");
    Ok(())
}

/// Loopback, UDP and the agent's own ports.
fn untouched() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("client")?;
    let outsider = node.outsider()?;
    let status = node.tell("status", &Value::Null)?;
    let ports = status["pods"][0]["agent_ports"].to_string();
    let udp = outsider.spawn("udp", &["python3", "-uc", UDP_ECHO])?;
    let mut udp = udp;
    udp.wait_for("ready", super::SOON)?;
    let results = python(&pod, UNTOUCHED, &[&ports, &outsider.ip4.to_string()])?;
    ensure!(results["loopback"] == "ok", "{results}");
    ensure!(results["loopback v6"] == "ok", "{results}");
    ensure!(results["udp"] == "ok", "{results}");
    let own = results["own ports"].as_array().context("own ports")?;
    ensure!(own.len() == 18, "{results}");
    ensure!(own.iter().all(|code| code == "EPERM"), "{results}");
    ensure!(node.count("own_port")? == 18);
    ensure!(node.count("redirected")? == 0);
    ensure!(node.tell("strays", &Value::Null)? == 0);
    let events = node.tell("events", &Value::Null)?.to_string();
    ensure!(events.contains("Refused"), "{events}");
    Ok(())
}

/// Bypass lists: ports and blocks.
fn excluded() -> Result<()> {
    let node = Node::up()?;
    let pod = node.pod("client")?;
    let outsider = node.outsider()?;
    let far = outsider.ip4.to_string();
    let far6 = outsider.ip6.to_string();
    let dial = |address: &str, port: u16| python(&pod, DIAL, &[address, &port.to_string()]);
    drop(node.enrol(&pod, &json!({"exclude_outbound_ports": [9001]}))?);
    let mut serving = outsider.spawn("9001", &["python3", "-uc", SERVE, "::", "9001"])?;
    serving.wait_for("listening", super::SOON)?;
    let (port, other) = (dial(&far, 9001)?, dial(&far, 9002)?);
    ensure!(port["echo"] == "ping", "{port}");
    ensure!(node.count("excluded_outbound")? == 1);
    ensure!(is_redirected(&other), "{other}");
    // From a port to blocks of either family.
    let blocks = json!([format!("{far}/24"), format!("{far6}/64")]);
    let changed = json!({"exclude_outbound_cidrs": blocks});
    let updated = node.tell("update", &super::described(&pod, &changed))?;
    ensure!(updated == true);
    for address in [&far, &far6] {
        let seen = dial(address, 9001)?;
        ensure!(seen["echo"] == "ping" && !is_redirected(&seen), "{seen}");
    }
    ensure!(node.count("excluded_outbound")? == 3);
    let elsewhere = dial("192.0.2.1", 9001)?;
    ensure!(is_redirected(&elsewhere), "{elsewhere}");
    // And to none.
    drop(node.tell("update", &super::described(&pod, &json!({})))?);
    let seen = dial(&far, 9001)?;
    ensure!(is_redirected(&seen), "{seen}");
    let events = node.tell("events", &Value::Null)?.to_string();
    ensure!(events.contains("Bypassed"), "{events}");
    ensure!(events.contains("test/client"), "{events}");
    Ok(())
}

/// The tiny agent answered: with the destination first.
fn is_redirected(seen: &Value) -> bool {
    let banner = seen["banner"].as_str().unwrap_or_default();
    let first = banner.split(' ').next().unwrap_or_default();
    first.parse::<SocketAddr>().is_ok()
}

/// Both ends of both hops inside the pod; the hop outside keeps the node's choice.
fn unpaced() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let host = &node.world.node("a").host;
    for place in [&*pod, &*outsider] {
        let net = format!("--net={}", place.netns().display());
        // A default that nothing else here would choose.
        let set = "echo bbr > /proc/sys/net/ipv4/tcp_congestion_control 2>/dev/null || true";
        drop(host.run(&["nsenter", &net, "--", "sh", "-c", set])?.ok()?);
    }
    let mut serving = pod.spawn("9001", &["python3", "-uc", SERVE, "::", "9001"])?;
    serving.wait_for("listening", super::SOON)?;
    let hold = "import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); s.sendall(b'x')
print(s.recv(1), flush=True); time.sleep(60)";
    let ip = pod.ip4.to_string();
    let mut kept = Vec::new();
    for (place, address, port) in [(&*pod, "192.0.2.1", "80"), (&*outsider, &*ip, "9001")] {
        let mut process = place.spawn("hold", &["python3", "-uc", hold, address, port])?;
        process.wait_for("b'", super::SOON)?;
        kept.push(process);
    }
    let sockets = pod
        .run(&["ss", "-Htiean", "state", "established"])?
        .ok()?
        .stdout;
    let sockets: Vec<&str> = sockets.split_inclusive(")\n").collect();
    let text = sockets.concat().replace("\n\t", " ");
    let inside = text.lines().filter(|line| line.contains("127."));
    let (cubic, other): (Vec<&str>, Vec<&str>) = inside.partition(|line| line.contains(" cubic "));
    ensure!(cubic.len() == 4 && other.is_empty(), "{text}");
    Ok(())
}

/// Every one of thousands of connections, many at a time, is asked for its own
/// destination.
fn under_load() -> Result<()> {
    let node = Node::up()?;
    let (first, second) = (node.enrolled("first")?, node.enrolled("second")?);
    let mut clients = Vec::new();
    for (pod, number) in [(&first, "1"), (&second, "2")] {
        let command = ["python3", "-uc", MANY, number, "5000", "500"];
        clients.push(pod.spawn("many", &command)?);
    }
    for client in &mut clients {
        let status = client.wait(Duration::from_mins(2))?;
        ensure!(status.success(), "{}", client.output());
        ensure!(
            client.output().contains("5000 of 5000"),
            "{}",
            client.output()
        );
    }
    ensure!(node.tell("strays", &Value::Null)? == 0);
    ensure!(node.count("redirected")? == 10_000);
    ensure!(node.count("carried")? == 10_000);
    ensure!(node.count("carry_failed")? == 0);
    Ok(())
}

/// With a hundred ephemeral ports, many more than a hundred destinations.
fn few_ports() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("client")?;
    let range = "echo 50000 50099 > /proc/sys/net/ipv4/ip_local_port_range";
    let net = format!("--net={}", pod.netns().display());
    drop(
        node.world
            .node("a")
            .host
            .run(&["nsenter", &net, "--", "sh", "-c", range])?
            .ok()?,
    );
    let output = pod
        .run_for(
            Duration::from_mins(1),
            &["python3", "-uc", MANY, "1", "600", "600"],
        )?
        .ok()?;
    ensure!(output.stdout.contains("600 of 600"), "{}", output.stdout);
    Ok(())
}
