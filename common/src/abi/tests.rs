//! The layout, as numbers: changing one changes the ABI.

use core::net::IpAddr;

use super::*;

#[test]
fn sizes_are_fixed() {
    assert_eq!(size_of::<Pod>(), 48);
    assert_eq!(size_of::<Flight>(), 48);
    assert_eq!(size_of::<PortKey>(), 16);
    assert_eq!(size_of::<ListenerKey>(), 20);
    assert_eq!(size_of::<CidrKey>(), 24);
    assert_eq!(size_of::<Endpoint>(), 20);
    assert_eq!(size_of::<Event>(), 56);
    assert_eq!(size_of::<Told>(), 16);
}

#[track_caller]
fn round_trips(text: &str) {
    let ip: IpAddr = text.parse().unwrap();
    assert_eq!(IpAddr::from(Ip::from(ip)), ip);
}

#[test]
fn addresses_round_trip() {
    round_trips("10.1.2.3");
    round_trips("fd00::1:2:3");
    round_trips("::1");
}

#[test]
fn addresses_are_in_network_order() {
    let ip = Ip::from(IpAddr::from([10, 1, 2, 3]));
    assert_eq!(
        bytes_of(&ip),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]
    );
    assert_eq!(ip, Ip::from_v4(u32::from_ne_bytes([10, 1, 2, 3])));
}

#[track_caller]
fn loopback(text: &str, expected: bool) {
    let ip = Ip::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(ip.is_loopback(), expected, "{text}");
}

#[test]
fn loopback_is_both_families_and_the_mapped_form() {
    loopback("127.0.0.1", true);
    loopback("127.128.9.9", true);
    loopback("::1", true);
    loopback("::ffff:127.0.0.1", true);
    loopback("128.0.0.1", false);
    loopback("::2", false);
    loopback("::", false);
    loopback("::127.0.0.1", false);
}

#[test]
fn unspecified_is_both_families() {
    assert!(Ip::from(IpAddr::from([0, 0, 0, 0])).is_unspecified());
    assert!(Ip::NONE.is_unspecified());
    assert!(!Ip::LOOPBACK6.is_unspecified());
}

#[test]
fn values_round_trip_through_bytes() {
    let key = PortKey::excluded(7, 80, Direction::Inbound);
    assert_eq!(from_bytes::<PortKey>(bytes_of(&key)), Some(key));
    assert_eq!(from_bytes::<PortKey>(&[0; 15]), None);
}

#[test]
fn counters_index_their_array() {
    for (index, counter) in Counter::ALL.iter().enumerate() {
        assert_eq!(*counter as usize, index);
    }
}

#[test]
fn event_kinds_round_trip() {
    for number in 1..=6 {
        assert_eq!(EventKind::from_number(number).unwrap() as u32, number);
    }
    assert_eq!(EventKind::from_number(0), None);
    assert_eq!(EventKind::from_number(7), None);
}
