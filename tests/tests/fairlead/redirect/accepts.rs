//! What applications accept.

use anyhow::{Result, ensure};
use fairlead_tests::{Pod, Process, until};
use serde_json::{Value, json};

use super::{Node, SERVE, SOON, dial};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("redirect::servers_see_the_true_client", true_client).with(&["python3"]),
    Test::node("redirect::closed_ports_reset_at_once", closed_ports).with(&["python3"]),
    Test::node("redirect::listening_ports_are_followed", followed).with(&["python3"]),
    Test::node("redirect::listeners_of_before_are_found", found).with(&["python3"]),
    Test::node("redirect::listeners_of_before_over_ipv6", found_v6).with(&["python3"]),
    Test::node(
        "redirect::ports_of_ipv4_alone_are_closed_to_ipv6",
        of_ipv4_alone,
    )
    .with(&["python3"]),
    Test::node("redirect::port_15008_is_the_tunnel's", tunnel).with(&["python3"]),
    Test::node("redirect::excluded_inbound_ports_bypass", excluded).with(&["python3"]),
    Test::node("redirect::unknown_addresses_are_reset", unknown).with(&["python3"]),
];

/// A server in the pod that is up.
fn serve(pod: &Pod, address: &str, port: u16) -> Result<Process> {
    let port_text = port.to_string();
    let name = format!("serve-{port}");
    let mut process = pod.spawn(&name, &["python3", "-uc", SERVE, address, &port_text])?;
    process.wait_for("listening", SOON)?;
    Ok(process)
}

/// What the server saw is the client, from accept and from getpeername.
#[track_caller]
fn sees(server: &Pod, client: &Pod, listen: &str, dialled: &str, port: u16) -> Result<()> {
    let _serving = serve(server, listen, port)?;
    let seen = dial(client, dialled, port)?;
    let local = seen["local"].as_str().unwrap_or_default();
    let shown = if listen == "::" && !dialled.contains(':') {
        format!("::ffff:{local}")
    } else {
        local.to_owned()
    };
    let expected = json!(format!("{shown} {shown}"));
    ensure!(
        seen["banner"] == expected,
        "{listen} dialled as {dialled}: {seen}, not {expected}"
    );
    ensure!(seen["echo"] == "ping", "{seen}");
    Ok(())
}

fn true_client() -> Result<()> {
    let node = Node::up()?;
    let server = node.enrolled("server")?;
    let client = node.outsider()?;
    let (ip4, ip6) = (server.ip4.to_string(), server.ip6.to_string());
    sees(&server, &client, "0.0.0.0", &ip4, 9001)?;
    sees(&server, &client, &ip4, &ip4, 9002)?;
    sees(&server, &client, "::", &ip4, 9003)?;
    sees(&server, &client, "::", &ip6, 9004)?;
    sees(&server, &client, &ip6, &ip6, 9005)?;
    let steered = node.count("steered")?;
    ensure!(steered == 5, "{steered} steered, not 5");
    // The application's own connections to itself do not leave the namespace.
    let _serving = serve(&server, "127.0.0.1", 9006)?;
    let seen = dial(&server, "127.0.0.1", 9006)?;
    let local = seen["local"].as_str().unwrap_or_default();
    ensure!(seen["banner"] == format!("{local} {local}"), "{seen}");
    Ok(())
}

fn closed_ports() -> Result<()> {
    let node = Node::up()?;
    let server = node.enrolled("server")?;
    let client = node.outsider()?;
    for address in [server.ip4.to_string(), server.ip6.to_string()] {
        // The first packet of a new world may wait for a neighbour's address.
        drop(dial(&client, &address, 9000)?);
        let seen = dial(&client, &address, 9001)?;
        ensure!(seen["error"] == "ECONNREFUSED", "{address}: {seen}");
        ensure!(seen["seconds"].as_f64() < Some(0.9), "{address}: {seen}");
    }
    // A port that only the pod itself can reach is closed to others.
    let _serving = serve(&server, "127.0.0.1", 9002)?;
    let seen = dial(&client, &server.ip4.to_string(), 9002)?;
    ensure!(seen["error"] == "ECONNREFUSED", "{seen}");
    Ok(())
}

/// What the programs know of the ports that a pod listens on.
fn listening(node: &Node) -> Result<Value> {
    let mut status = node.tell("status", &Value::Null)?;
    Ok(status["pods"][0]["listening"].take())
}

#[track_caller]
fn soon_listening(node: &Node, expected: &Value) -> Result<()> {
    until(&format!("{expected} to be listened on"), SOON, || {
        (listening(node).ok()? == *expected).then_some(())
    })
}

fn followed() -> Result<()> {
    let node = Node::up()?;
    let server = node.enrolled("server")?;
    let client = node.outsider()?;
    let ip = server.ip4.to_string();
    soon_listening(&node, &json!([]))?;
    let first = serve(&server, "0.0.0.0", 9001)?;
    let second = serve(&server, "0.0.0.0", 9002)?;
    soon_listening(&node, &json!([9001, 9002]))?;
    let _signal = first.terminate(SOON)?;
    soon_listening(&node, &json!([9002]))?;
    ensure!(dial(&client, &ip, 9001)?["error"] == "ECONNREFUSED");
    second.kill();
    soon_listening(&node, &json!([]))?;
    ensure!(dial(&client, &ip, 9002)?["error"] == "ECONNREFUSED");
    // Two that share a port count twice.
    let script = "import socket, sys
for _ in range(2):
    s = socket.socket(); s.setsockopt(1, 15, 1); s.bind(('0.0.0.0', 9003)); s.listen()
    globals().setdefault('kept', []).append(s)
kept[0].close(); print('one left', flush=True); sys.stdin.read(); import time; time.sleep(60)";
    let mut shared = server.spawn("shared", &["python3", "-uc", script])?;
    shared.wait_for("one left", SOON)?;
    ensure!(listening(&node)? == json!([9003]), "{}", listening(&node)?);
    shared.kill();
    soon_listening(&node, &json!([]))?;
    let events = node.tell("events", &Value::Null)?.to_string();
    for word in ["ListenOpened", "ListenClosed", "9001", "test/server"] {
        ensure!(events.contains(word), "no {word} in {events}");
    }
    Ok(())
}

fn found() -> Result<()> {
    let node = Node::up()?;
    let server = node.pod("server")?;
    let client = node.outsider()?;
    let (ip4, ip6) = (server.ip4.to_string(), server.ip6.to_string());
    let serving = serve(&server, "::", 9001)?;
    let _private = serve(&server, "127.0.0.1", 9002)?;
    drop(node.enrol(&server, &json!({}))?);
    soon_listening(&node, &json!([9001]))?;
    for ip in [&ip4, &ip6] {
        let seen = dial(&client, ip, 9001)?;
        ensure!(seen["echo"] == "ping", "{seen}");
    }
    ensure!(node.count("steered")? == 2);
    // Nobody sees it close. The first that is refused tells.
    serving.kill();
    drop(dial(&client, &ip4, 9001)?);
    soon_listening(&node, &json!([]))?;
    ensure!(dial(&client, &ip4, 9001)?["error"] == "ECONNREFUSED");
    Ok(())
}

/// To `::1` Linux sends no reset: nothing may wait for one.
fn found_v6() -> Result<()> {
    let node = Node::up()?;
    let server = node.pod("server")?;
    let client = node.outsider()?;
    let ip6 = server.ip6.to_string();
    let serving = serve(&server, "::", 9001)?;
    drop(node.enrol(&server, &json!({}))?);
    let seen = dial(&client, &ip6, 9001)?;
    ensure!(seen["echo"] == "ping", "{seen}");
    serving.kill();
    until("the port to be closed", SOON, || {
        let seen = dial(&client, &ip6, 9001).ok()?;
        (seen["error"] == "ECONNREFUSED").then_some(())
    })?;
    soon_listening(&node, &json!([]))
}

fn of_ipv4_alone() -> Result<()> {
    let node = Node::up()?;
    let server = node.pod("server")?;
    let client = node.outsider()?;
    let (ip4, ip6) = (server.ip4.to_string(), server.ip6.to_string());
    let _before = serve(&server, "0.0.0.0", 9001)?;
    drop(node.enrol(&server, &json!({}))?);
    let after = serve(&server, "0.0.0.0", 9002)?;
    soon_listening(&node, &json!([9001, 9002]))?;
    for port in [9001, 9002] {
        let seen = dial(&client, &ip4, port)?;
        ensure!(seen["echo"] == "ping", "{port}: {seen}");
        let seen = dial(&client, &ip6, port)?;
        ensure!(seen["error"] == "ECONNREFUSED", "{port}: {seen}");
    }
    ensure!(node.count("steered")? == 2);
    ensure!(node.count("closed_port")? == 2);
    // One that takes both counts for both, and for none once it has closed.
    after.kill();
    soon_listening(&node, &json!([9001]))?;
    let both = serve(&server, "::", 9002)?;
    for ip in [&ip4, &ip6] {
        let seen = dial(&client, ip, 9002)?;
        ensure!(seen["echo"] == "ping", "{seen}");
    }
    both.kill();
    soon_listening(&node, &json!([9001]))
}

fn tunnel() -> Result<()> {
    let node = Node::up()?;
    let server = node.enrolled("server")?;
    let client = node.outsider()?;
    for address in [server.ip4.to_string(), server.ip6.to_string()] {
        let seen = dial(&client, &address, 15008)?;
        let banner = seen["banner"].as_str().unwrap_or_default();
        ensure!(banner.starts_with("tunnel "), "{seen}");
        ensure!(banner.contains("15008"), "{seen}");
    }
    // An application may listen on it as well, for itself.
    let _own = serve(&server, "0.0.0.0", 15008)?;
    let seen = dial(&client, &server.ip4.to_string(), 15008)?;
    ensure!(seen.to_string().contains("tunnel"), "{seen}");
    Ok(())
}

fn excluded() -> Result<()> {
    let node = Node::up()?;
    let server = node.pod("server")?;
    let extra = json!({"exclude_inbound_ports": [9001]});
    drop(node.enrol(&server, &extra)?);
    let client = node.outsider()?;
    let (ip4, ip6) = (server.ip4.to_string(), server.ip6.to_string());
    sees(&server, &client, "::", &ip4, 9001)?;
    sees(&server, &client, "::", &ip6, 9001)?;
    ensure!(node.count("steered")? == 0);
    ensure!(node.count("excluded_inbound")? == 2);
    // A changed list holds for the next connection.
    let changed = json!({"exclude_inbound_ports": []});
    let updated = node.tell("update", &super::described(&server, &changed))?;
    ensure!(updated == true, "{updated}");
    sees(&server, &client, "::", &ip4, 9001)?;
    ensure!(node.count("steered")? == 1);
    Ok(())
}

fn unknown() -> Result<()> {
    let node = Node::up()?;
    let server = node.enrolled("server")?;
    let client = node.outsider()?;
    drop(
        server
            .run(&["ip", "address", "add", "10.99.0.1/32", "dev", "lo"])?
            .ok()?,
    );
    let route = format!(
        "ip route add 10.99.0.1/32 via {} dev eth0 onlink",
        server.ip4
    );
    let _serving = serve(&server, "0.0.0.0", 9001)?;
    let host = &node.world.node("a").host;
    drop(
        host.run(&["sh", "-c", &route.replace("eth0", "pod10")])?
            .ok()?,
    );
    let other = node.world.node("b");
    let link = node.world.link("b", "a").1;
    let via = format!(
        "ip route add 10.99.0.1/32 via $(ip -4 route show default dev {link} 2>/dev/null | cut -d' ' -f3) 2>/dev/null || \
         ip route add 10.99.0.1/32 $(ip route show {}/24 | head -1 | cut -d' ' -f2-)",
        "10.244.1.0"
    );
    drop(other.host.run(&["sh", "-c", &via])?.ok()?);
    let seen = dial(&client, "10.99.0.1", 9001)?;
    ensure!(seen["error"] == "ECONNREFUSED", "{seen}");
    ensure!(node.count("unknown_address")? == 1);
    Ok(())
}
