//! Facts about each decision.

use core::net::IpAddr;

use super::*;
use crate::abi::{Ports, Role};

const PORTS: Ports = Ports {
    outbound4: 40_001,
    outbound6: 40_002,
    inbound4: 40_003,
    inbound6: 40_004,
    tunnel4: 40_005,
    tunnel6: 40_006,
};

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

fn pod(flags: u32) -> Pod {
    Pod {
        ip4: ip("10.0.0.1"),
        ip6: ip("fd00::1"),
        ports: PORTS,
        flags,
    }
}

/// A connect by the application, with no exclusion that matches.
#[track_caller]
fn connects(pod: &Pod, to: &str, port: u16, expected: Connect) {
    let decided = connect(
        Some(pod),
        (ip(to), port),
        || false,
        |_| false,
        || 0x1234_5678,
    );
    assert_eq!(decided, expected, "{to}:{port}");
}

fn redirect(ip: Ip, port: u16, source: &str) -> Connect {
    Connect::Redirect(Redirect {
        ip,
        port,
        source: source.parse::<IpAddr>().unwrap().into(),
    })
}

#[test]
fn unknown_namespaces_are_left_alone() {
    let decided = connect(None, (ip("10.0.0.2"), 80), || true, |_| true, || 0);
    assert_eq!(decided, Connect::Pass(Passed::NotEnrolled));
}

#[test]
fn both_families_are_redirected() {
    connects(
        &pod(0),
        "10.0.0.2",
        80,
        redirect(ip("127.180.86.121"), 40_001, "10.0.0.1"),
    );
    connects(
        &pod(0),
        "::ffff:10.0.0.2",
        80,
        redirect(ip("127.180.86.121"), 40_001, "10.0.0.1"),
    );
    connects(
        &pod(0),
        "fd00::2",
        80,
        redirect(Ip::LOOPBACK6, 40_002, "fd00::1"),
    );
}

#[test]
fn the_pods_own_address_is_redirected() {
    connects(
        &pod(0),
        "10.0.0.1",
        80,
        redirect(ip("127.180.86.121"), 40_001, "10.0.0.1"),
    );
}

#[test]
fn loopback_is_left_alone() {
    for to in [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
    ] {
        connects(&pod(0), to, 80, Connect::Pass(Passed::Loopback));
        connects(&pod(Pod::BLOCKED), to, 80, Connect::Pass(Passed::Loopback));
    }
}

#[test]
fn the_agents_ports_are_refused() {
    for port in 40_001..=40_006 {
        connects(
            &pod(0),
            "127.0.0.1",
            port,
            Connect::Refuse(Refused::OwnPort),
        );
        connects(&pod(0), "::1", port, Connect::Refuse(Refused::OwnPort));
        connects(&pod(0), "0.0.0.0", port, Connect::Refuse(Refused::OwnPort));
    }
}

#[test]
fn no_port_is_not_the_agents_port() {
    let mut pod = pod(0);
    pod.ports.outbound6 = 0;
    connects(&pod, "127.0.0.1", 0, Connect::Pass(Passed::Loopback));
}

#[test]
fn the_agent_is_left_alone() {
    let blocked = pod(Pod::BLOCKED);
    let decided = connect(
        Some(&blocked),
        (ip("10.0.0.2"), 80),
        || true,
        |_| true,
        || 0,
    );
    assert_eq!(decided, Connect::Agent);
}

#[test]
fn blocked_pods_are_refused_even_where_excluded() {
    let pod = pod(Pod::BLOCKED | Pod::EXCLUDES_PORTS);
    let decided = connect(Some(&pod), (ip("10.0.0.2"), 80), || false, |_| true, || 0);
    assert_eq!(decided, Connect::Refuse(Refused::Blocked));
}

#[test]
fn exclusions_are_looked_up_only_where_there_are_any() {
    let excluded = |flags| {
        connect(
            Some(&pod(flags)),
            (ip("10.0.0.2"), 80),
            || false,
            |_| true,
            || 0,
        )
    };
    assert!(matches!(excluded(0), Connect::Redirect(_)));
    assert_eq!(
        excluded(Pod::EXCLUDES_PORTS),
        Connect::Pass(Passed::Excluded)
    );
    assert_eq!(
        excluded(Pod::EXCLUDES_CIDRS),
        Connect::Pass(Passed::Excluded)
    );
}

#[test]
fn a_family_without_listener_is_refused() {
    let mut pod = pod(0);
    pod.ports.outbound6 = 0;
    connects(&pod, "fd00::2", 80, Connect::Refuse(Refused::NoFamily));
}

#[test]
fn spread_stays_in_its_block() {
    for random in [0, 1, 0x003f_ffff, 0x0040_0000, u32::MAX] {
        let IpAddr::V4(v4) = IpAddr::from(spread(random)) else {
            panic!("not IPv4");
        };
        let [first, second, _, last] = v4.octets();
        assert_eq!(first, 127);
        assert!((128..192).contains(&second), "{v4}");
        assert_ne!(last, 0, "{v4}");
    }
}

/// What is known of the port that is dialled.
struct Port {
    known: bool,
    excluded: bool,
    listening: bool,
}

const fn facts(known: bool, excluded: bool, listening: bool) -> Port {
    Port {
        known,
        excluded,
        listening,
    }
}

#[track_caller]
fn steers(remote: &str, port: u16, facts: &Port, expected: Lookup) {
    let decided = lookup(
        ip(remote),
        (ip("10.0.0.1"), port),
        || facts.known.then_some(7),
        |_| facts.excluded,
        |_| facts.listening,
    );
    assert_eq!(decided, expected);
}

#[test]
fn ports_with_a_listener_are_steered() {
    let inbound = Lookup::Steer(ListenerKind::Inbound);
    steers("10.0.0.9", 80, &facts(true, false, true), inbound);
}

#[test]
fn ports_without_a_listener_are_reset() {
    let closed = Lookup::Reset(Reset::ClosedPort);
    steers("10.0.0.9", 80, &facts(true, false, false), closed);
}

#[test]
fn the_tunnel_port_is_always_steered() {
    let tunnel = Lookup::Steer(ListenerKind::Tunnel);
    steers("10.0.0.9", TUNNEL_PORT, &facts(true, true, false), tunnel);
}

#[test]
fn loopback_reaches_the_application() {
    let pass = Lookup::Pass(PassedInbound::Loopback);
    steers("127.128.0.1", 80, &facts(true, false, true), pass);
    steers("::1", TUNNEL_PORT, &facts(false, false, true), pass);
}

#[test]
fn redirected_connections_reach_the_agent() {
    let local = (ip("127.128.0.1"), 40_001);
    let decided = lookup(ip("10.0.0.1"), local, || None, |_| false, |_| false);
    assert_eq!(decided, Lookup::Pass(PassedInbound::Loopback));
    let local = (Ip::LOOPBACK6, 40_002);
    let decided = lookup(ip("fd00::1"), local, || None, |_| false, |_| false);
    assert_eq!(decided, Lookup::Pass(PassedInbound::Loopback));
}

#[test]
fn excluded_ports_are_left_alone() {
    let pass = Lookup::Pass(PassedInbound::Excluded);
    steers("10.0.0.9", 80, &facts(true, true, true), pass);
    steers("10.0.0.9", 80, &facts(true, true, false), pass);
}

#[test]
fn unknown_addresses_are_reset() {
    let unknown = Lookup::Reset(Reset::UnknownAddress);
    steers("10.0.0.9", 80, &facts(false, true, true), unknown);
}

#[test]
fn sock_ops_have_their_meanings() {
    let none = || (0, 0);
    assert_eq!(sock_op(op::CONNECT, none), SockOp::Depart);
    assert_eq!(sock_op(op::PASSIVE_ESTABLISHED, none), SockOp::Arrive);
    assert_eq!(sock_op(op::LISTEN, none), SockOp::ListenOpened);
    let closed = |from| move || (from, op::STATE_CLOSE);
    let state = |states| sock_op(op::STATE, states);
    assert_eq!(state(closed(op::STATE_LISTEN)), SockOp::ListenClosed);
    assert_eq!(state(closed(2)), SockOp::Ended);
    assert_eq!(sock_op(op::STATE, || (2, 1)), SockOp::Ignore);
    assert_eq!(sock_op(99, closed(op::STATE_LISTEN)), SockOp::Ignore);
}

#[test]
fn only_kubelets_own_namespace_is_believed() {
    let probe = |trusted, is_pod| is_probe(7, || trusted, || is_pod);
    assert!(probe(Some(7), true));
    assert!(!probe(Some(8), true), "a socket in another namespace");
    assert!(!probe(None, true), "another cgroup");
    assert!(!probe(Some(7), false), "not to a pod");
}

#[test]
fn what_kubelet_dials_is_shown_to_nobody() {
    let kept = Endpoint::new(ip("10.0.0.9"), 1, Role::Probe);
    assert_eq!(peer4(&kept), None);
    assert_eq!(peer6(&kept), None);
}

#[test]
fn a_namespace_tells_only_so_much_in_a_second() {
    let mut told = Told {
        second: 0,
        events: 0,
    };
    let mut tell_at = |now_ns| {
        let (is_told, now) = tell(told, now_ns);
        told = now;
        is_told
    };
    let second = 1_000_000_000;
    let first = (0..2 * EVENTS_PER_SECOND).filter(|at| tell_at(5 * second + at));
    assert_eq!(first.count() as u64, EVENTS_PER_SECOND);
    assert!(tell_at(6 * second));
}

#[test]
fn listeners_on_loopback_are_not_reachable() {
    assert!(is_reachable(ip("0.0.0.0"), 0));
    assert!(is_reachable(ip("10.0.0.1"), 0));
    assert!(is_reachable(ip("::"), 2));
    assert!(!is_reachable(ip("127.0.0.1"), 0));
    assert!(!is_reachable(ip("::1"), 0));
    assert!(!is_reachable(ip("0.0.0.0"), LOOPBACK_DEVICE));
}

#[test]
fn peers_are_shown_in_the_sockets_family() {
    let v4 = Endpoint::new(ip("10.0.0.9"), 1, Role::Client);
    let v6 = Endpoint::new(ip("fd00::9"), 1, Role::Client);
    assert_eq!(peer4(&v4), Some(u32::from_ne_bytes([10, 0, 0, 9])));
    assert_eq!(peer4(&v6), None);
    assert_eq!(peer6(&v4), Some(ip("::ffff:10.0.0.9").words()));
    assert_eq!(peer6(&v6), Some(ip("fd00::9").words()));
}

#[test]
fn a_port_is_open_to_the_families_that_are_listened_on() {
    let [any4, any6, ip4, ip6] = ["0.0.0.0", "::", "10.0.0.1", "fd00::1"].map(ip);
    assert!(!takes(0, ip4) && !takes(0, ip6));
    assert!(takes(listener(any4), ip4) && !takes(listener(any4), ip6));
    assert!(takes(listener(any6), ip4) && takes(listener(any6), ip6));
    // As many as there are sockets, each taken off as it was put on.
    let both = listener(ip4) + listener(ip6) + listener(any4);
    assert!(takes(both, ip6));
    let rest = both - listener(ip6);
    assert!(takes(rest, ip4) && !takes(rest, ip6));
    assert_eq!(rest - listener(ip4) - listener(any4), 0);
    // A socket of IPv6 that is bound to an address of IPv4.
    assert_eq!(listener(ip("::ffff:10.0.0.1")), listener(ip4));
}
