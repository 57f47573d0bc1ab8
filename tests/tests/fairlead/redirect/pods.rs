//! Pods that come, go and change.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{NOWHERE, Node, SOON, dial, error_of, meshed, refused, serve};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("redirect::unenrolled_pods_go_straight", unenrolled).with(&["python3"]),
    Test::node("redirect::namespaces_are_reused", reused).with(&["python3"]),
    Test::node("redirect::hosts_and_strangers_are_not_enrolled", strangers),
    Test::node("redirect::old_connections_are_listed_and_closed", existing).with(&["python3"]),
    Test::node("redirect::what_cannot_be_enrolled_is_blocked", blocked).with(&["python3"]),
    Test::node("redirect::changes_do_not_open_a_pod", held).with(&["python3"]),
    Test::node("redirect::closed_ports_are_forgotten", tidied).with(&["python3"]),
    Test::node("redirect::running_out_of_descriptors_is_told", exhausted)
        .with(&["python3", "prlimit"]),
];

fn unenrolled() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let _outside = serve(&outsider, 9001)?;
    let _serving = serve(&pod, 9002)?;
    let hold = "import socket, time
s = socket.create_connection(('192.0.2.1', 80)); f = s.makefile()
print(f.readline(), flush=True); time.sleep(2)
s.sendall(b'still\\n'); print('echo', f.readline(), s.getpeername()[0], flush=True); time.sleep(60)";
    let mut client = pod.spawn("hold", &["python3", "-uc", hold])?;
    client.wait_for("192.0.2.1:80", SOON)?;
    node.unenrol(&pod)?;
    let far = outsider.ip4.to_string();
    let seen = dial(&pod, &far, 9001)?;
    let banner = seen["banner"].as_str().unwrap_or_default();
    ensure!(banner.contains(&pod.ip4.to_string()), "{seen}");
    ensure!(dial(&outsider, &pod.ip4.to_string(), 9002)?["echo"] == "ping");
    ensure!(node.count("steered")? == 0);
    // What was meshed stays so to its end, and looks as it did.
    client.wait_for("echo still", SOON)?;
    let output = client.output();
    ensure!(output.contains("192.0.2.1\n"), "{output}");
    let status = node.tell("status", &Value::Null)?;
    ensure!(status["pods"] == json!([]), "{status}");
    // Twice is as good as once.
    node.unenrol(&pod)?;
    drop(node.enrol(&pod, &json!({}))?);
    meshed(&pod)
}

fn reused() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("pod")?;
    meshed(&pod)?;
    // Another pod may not have a namespace or an address that is in use.
    let other = node.pod("other")?;
    let same_namespace = json!({"name": "thief", "ips": [other.ip4], "netns": pod.netns()});
    let error = error_of(node.tell("enrol", &same_namespace));
    ensure!(error.contains("belongs to test/pod"), "{error}");
    let same_address = json!({"name": "thief", "ips": [pod.ip4], "netns": other.netns()});
    let error = error_of(node.tell("enrol", &same_address));
    ensure!(error.contains("belongs to test/pod"), "{error}");
    // It is to be meshed and can't be: so nothing leaves it, and the owner has no harm.
    refused(&dial(&other, NOWHERE, 80)?, "EPERM")?;
    meshed(&pod)?;
    let error = error_of(node.tell("enrol", &same_address));
    ensure!(error.contains("belongs to test/pod"), "{error}");
    drop(node.tell("unenrol", &same_address)?);
    ensure!(dial(&other, NOWHERE, 80)?["error"] != "EPERM");
    meshed(&pod)?;

    // The namespace goes and another comes in its place, of the same name.
    let place = pod.netns();
    let aside = node.pod("successor")?;
    ensure!(node.tell("vanished", &Value::Null)? == json!([]));
    let swap = format!(
        "umount -l {0} && mount --bind {1} {0}",
        place.display(),
        aside.netns().display()
    );
    let swapped = std::process::Command::new("sh")
        .args(["-ec", &swap])
        .status()?;
    ensure!(swapped.success());
    let vanished = node.tell("vanished", &Value::Null)?;
    ensure!(vanished.to_string().contains("pod"), "{vanished}");
    node.unenrol(&pod)?;
    let successor = json!({"name": "pod", "ips": [aside.ip4, aside.ip6], "netns": place});
    drop(node.tell("enrol", &successor)?);
    let seen = dial(&aside, NOWHERE, 80)?;
    let banner = seen["banner"].as_str().unwrap_or_default();
    ensure!(banner.contains(&aside.ip4.to_string()), "{seen}");
    Ok(())
}

fn strangers() -> Result<()> {
    let node = Node::up()?;
    let pod = node.pod("pod")?;
    let refuse = |extra: Value, reason: &str| -> Result<()> {
        let error = error_of(node.enrol(&pod, &extra));
        ensure!(error.contains(reason), "{error}, not {reason}");
        Ok(())
    };
    let own = node.world.node("a").host.netns();
    refuse(json!({ "netns": own }), "the node's own")?;
    refuse(json!({"host_network": true}), "the node's own")?;
    refuse(json!({"ips": []}), "no address")?;
    // Its namespace is known, and so nothing leaves it.
    let status = node.tell("status", &Value::Null)?;
    ensure!(status["pods"][0]["blocked"] == true, "{status}");
    node.unenrol(&pod)?;
    refuse(json!({ "netns": null }), "unknown")?;
    refuse(json!({"netns": "/proc/1/ns/mnt"}), "cannot enter")?;
    refuse(json!({"netns": "/run/netns/none"}), "cannot enter")?;
    ensure!(node.tell("status", &Value::Null)?["pods"] == json!([]));
    drop(node.enrol(&pod, &json!({}))?);
    refuse(json!({}), "belongs to")
}

fn existing() -> Result<()> {
    let node = Node::up()?;
    let outsider = node.outsider()?;
    let _outside = serve(&outsider, 9001)?;
    let far = outsider.ip4.to_string();
    let hold = "import socket, sys
s = socket.create_connection((sys.argv[1], 9001)); f = s.makefile('rb')
print('open', f.readline(), flush=True)
try: print('end', s.recv(1), flush=True)
except OSError as error: print('end', error, flush=True)";
    let left = node.pod("left")?;
    let closed = node.pod("closed")?;
    let mut clients = Vec::new();
    for pod in [&left, &closed] {
        let mut client = pod.spawn("hold", &["python3", "-uc", hold, &far])?;
        client.wait_for("open", SOON)?;
        clients.push(client);
    }
    let enrolled = node.enrol(&left, &json!({}))?;
    ensure!(enrolled["closed"] == 0, "{enrolled}");
    let listed = enrolled["existing"][0]["remote"].as_str();
    ensure!(listed == Some(format!("{far}:9001").as_str()), "{enrolled}");
    let enrolled = node.enrol(&closed, &json!({"close_existing": true}))?;
    ensure!(enrolled["closed"] == 1, "{enrolled}");
    ensure!(enrolled["existing"] == json!([]), "{enrolled}");
    clients[1].wait_for("end", SOON)?;
    ensure!(!clients[0].output().contains("end"), "it was left alone");
    Ok(())
}

fn blocked() -> Result<()> {
    let node = Node::up()?;
    let pod = node.pod("pod")?;
    let outsider = node.outsider()?;
    let _outside = serve(&outsider, 9001)?;
    let _serving = serve(&pod, 9002)?;
    let far = outsider.ip4.to_string();
    ensure!(dial(&pod, &far, 9001)?["echo"] == "ping");
    let v6 = |off: u8| -> Result<()> {
        let net = format!("--net={}", pod.netns().display());
        let set = format!("echo {off} > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
        let host = &node.world.node("a").host;
        host.run(&["nsenter", &net, "--", "sh", "-ec", &set])?
            .ok()
            .map(drop)
    };
    v6(1)?;
    let error = error_of(node.enrol(&pod, &json!({})));
    ensure!(error.contains("IPv6"), "{error}");
    let status = node.tell("status", &Value::Null)?;
    ensure!(status["pods"][0]["blocked"] == true, "{status}");
    refused(&dial(&pod, &far, 9001)?, "EPERM")?;
    refused(
        &dial(&outsider, &pod.ip4.to_string(), 9002)?,
        "ECONNREFUSED",
    )?;
    ensure!(dial(&pod, "127.0.0.1", 9002)?["echo"] == "ping");
    drop(node.tell("take over", &Value::Null)?);
    // The cause goes, and so does the block.
    v6(0)?;
    drop(node.enrol(&pod, &json!({}))?);
    meshed(&pod)?;
    ensure!(dial(&outsider, &pod.ip4.to_string(), 9002)?["echo"] == "ping");
    Ok(())
}

/// What changes a pod's enrolment does not open it in between.
fn held() -> Result<()> {
    let node = Node::up()?;
    let pod = node.pod("pod")?;
    let outsider = node.outsider()?;
    let _outside = serve(&outsider, 9001)?;
    let serving = serve(&pod, 9002)?;
    let (far, near) = (outsider.ip4.to_string(), pod.ip4.to_string());
    let bypass = json!({"exclude_outbound_ports": [9001], "exclude_inbound_ports": [9002]});
    drop(node.enrol(&pod, &bypass)?);
    ensure!(dial(&pod, &far, 9001)?["echo"] == "ping");
    drop(node.tell("hold", &json!({"name": "pod"}))?);
    refused(&dial(&pod, &far, 9001)?, "EPERM")?;
    refused(&dial(&outsider, &near, 9002)?, "ECONNREFUSED")?;
    ensure!(node.tell("status", &Value::Null)?["pods"][0]["blocked"] == true);
    // At another address of the same namespace, with no bypass.
    drop(node.enrol(&pod, &json!({"ips": [pod.ip4]}))?);
    meshed(&pod)?;
    let seen = dial(&outsider, &near, 9002)?;
    ensure!(seen["echo"] == "ping", "{seen}");
    ensure!(node.count("steered")? == 1);
    let status = node.tell("status", &Value::Null)?;
    ensure!(status["pods"][0]["listening"] == json!([9002]), "{status}");
    serving.kill();
    drop(dial(&outsider, &near, 9002)?);
    let _serving = serve(&pod, 9002)?;
    ensure!(dial(&outsider, &near, 9002)?["echo"] == "ping");
    node.unenrol(&pod)?;
    ensure!(dial(&pod, &far, 9001)?["echo"] == "ping");
    Ok(())
}

/// Ports that were opened and closed are forgotten, those that are open are not.
fn tidied() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let near = pod.ip4.to_string();
    let _serving = serve(&pod, 9002)?;
    ensure!(node.tell("tidy", &Value::Null)? == 0);
    let many = "import socket
for port in range(20000, 29000):
    s = socket.socket(); s.setsockopt(1, 2, 1)
    s.bind(('0.0.0.0', port)); s.listen(); s.close()";
    drop(pod.run_for(SOON, &["python3", "-c", many])?.ok()?);
    let removed = node.tell("tidy", &Value::Null)?;
    ensure!(removed.as_u64() >= Some(9000), "{removed}");
    ensure!(node.tell("tidy", &Value::Null)? == 0);
    ensure!(dial(&outsider, &near, 9002)?["echo"] == "ping");
    refused(&dial(&outsider, &near, 20000)?, "ECONNREFUSED")?;
    let _again = serve(&pod, 20000)?;
    ensure!(dial(&outsider, &near, 20000)?["echo"] == "ping");
    Ok(())
}

fn exhausted() -> Result<()> {
    let node = Node::up()?;
    let first = node.enrolled("first")?;
    let second = node.pod("second")?;
    let pid = node.agent.as_ref().context("it runs")?.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let limit = |files: usize| -> Result<()> {
        let (pid, files) = (pid.to_string(), format!("--nofile={files}:20000"));
        let host = &node.world.node("a").host;
        host.run(&["prlimit", "--pid", &pid, &files])?
            .ok()
            .map(drop)
    };
    // Room for the namespace and a few sockets, not for all listeners; and then for
    // not even the namespace. One more is the connection that gives the order.
    limit(open + 10)?;
    let error = error_of(node.enrol(&second, &json!({})));
    ensure!(error.contains("Too many open files"), "{error}");
    let status = node.tell("status", &Value::Null)?;

    ensure!(status["pods"][1]["blocked"] == true, "{status}");
    refused(&dial(&second, NOWHERE, 80)?, "EPERM")?;
    node.unenrol(&second)?;
    limit(open + 1)?;
    let error = error_of(node.enrol(&second, &json!({})));
    ensure!(error.contains("Too many open files"), "{error}");
    let error = error_of(node.tell("take over", &Value::Null));
    ensure!(error.contains("test/second"), "{error}");
    limit(20_000)?;
    drop(node.enrol(&second, &json!({}))?);
    drop(node.tell("take over", &Value::Null)?);
    meshed(&second)?;
    meshed(&first)
}
