//! Which endpoint is picked.

use super::*;
use crate::policy::traffic::{Locality, SlowStart};

/// Each of the endpoints has so many of the requests, or at most `off` more or fewer.
#[track_caller]
fn check_even(shares: &BTreeMap<SocketAddr, u32>, endpoints: usize, each: u32, off: u32) {
    assert_eq!(shares.len(), endpoints, "{shares:?}");
    for share in shares.values() {
        assert!(share.abs_diff(each) <= off, "{shares:?}");
    }
}

#[test]
fn no_endpoint_is_a_refusal() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::RoundRobin,
        Algorithm::ConsistentHash,
    ] {
        let mut sim = Sim::new(super::algorithm(algorithm), &[]);
        assert_eq!(sim.try_pick().unwrap_err(), Refusal::NoEndpoints);
        let unready = Candidate {
            ready: false,
            ..candidate(1)
        };
        sim.update(super::algorithm(algorithm), &[unready]);
        assert_eq!(sim.try_pick().unwrap_err(), Refusal::NoEndpoints);
        sim.update(super::algorithm(algorithm), &candidates(1));
        assert_eq!(sim.pick().address(), address(1));
    }
}

#[test]
fn equal_endpoints_get_equal_shares() {
    for (algorithm, off) in [
        (Algorithm::PeakEwma, 150),
        (Algorithm::LeastRequest, 150),
        (Algorithm::Random, 150),
        (Algorithm::RoundRobin, 0),
        (Algorithm::ConsistentHash, 150),
    ] {
        let mut sim = Sim::of(super::algorithm(algorithm), 5);
        let shares = sim.load(5_000, ms(1), |_| ms(5));
        check_even(&shares, 5, 1_000, off);
    }
}

#[test]
fn peak_ewma_sends_most_to_the_fast() {
    let mut sim = Sim::of(algorithm(Algorithm::PeakEwma), 3);
    let slow = address(1);
    let latency = |it| if it == slow { ms(100) } else { ms(5) };
    sim.load(1_000, ms(1), latency);
    let shares = sim.load(10_000, ms(1), latency);
    // It gets some all the time: nobody knows else when it is fast again.
    let share = shares[&slow];
    assert!((10..600).contains(&share), "{shares:?}");
    let latency = |_| ms(5);
    sim.load(120_000, ms(1), latency);
    let shares = sim.load(9_000, ms(1), latency);
    check_even(&shares, 3, 3_000, 450);
}

#[test]
fn peak_ewma_leaves_an_endpoint_at_its_first_slow_answer() {
    let mut sim = Sim::of(algorithm(Algorithm::PeakEwma), 2);
    sim.load(1_000, ms(1), |_| ms(1));
    // One slow answer, then it would be fast again.
    let picked = loop {
        let picked = sim.pick();
        if picked.address() == address(1) {
            break picked;
        }
    };
    picked.sample(Outcome::Success, secs(1), sim.now);
    drop(picked);
    let after = sim.load(100, ms(1), |_| ms(1));
    assert!(!after.contains_key(&address(1)), "{after:?}");
}

#[test]
fn an_endpoint_that_fails_fast_is_not_taken_for_a_fast_one() {
    let mut sim = Sim::of(algorithm(Algorithm::PeakEwma), 3);
    let mut failed = 0;
    for _ in 0..5_000 {
        sim.wait(ms(1));
        let address = sim.request(|it| {
            if it == address(1) {
                (Outcome::Failed, ms(0))
            } else {
                (Outcome::Success, ms(20))
            }
        });
        failed += u32::from(address == super::address(1));
    }
    assert!(failed < 50, "{failed}");
}

#[test]
fn least_request_avoids_the_busy() {
    let mut sim = Sim::of(algorithm(Algorithm::LeastRequest), 3);
    let busy: Vec<Picked> = std::iter::repeat_with(|| sim.pick_other(&[address(2), address(3)]))
        .take(10)
        .collect();
    assert!(busy.iter().all(|it| it.address() == address(1)));
    let shares = sim.shares(3_000);
    // Two that are drawn are never the same, so that there is always one that is idle.
    assert!(!shares.contains_key(&address(1)), "{shares:?}");
    drop(busy);
    check_even(&sim.shares(3_000), 3, 1_000, 120);
}

#[test]
fn round_robin_takes_turns() {
    let mut sim = Sim::of(algorithm(Algorithm::RoundRobin), 3);
    let turns: Vec<SocketAddr> = (0..6).map(|_| sim.pick().address()).collect();
    assert_eq!(turns[..3], turns[3..]);
    let first: std::collections::BTreeSet<_> = turns[..3].iter().collect();
    assert_eq!(first.len(), 3);
}

#[test]
fn a_retry_goes_elsewhere_while_there_is_anything_else() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::ConsistentHash,
    ] {
        let mut sim = Sim::of(super::algorithm(algorithm), 3);
        for _ in 0..200 {
            let other = sim.pick_other(&[address(1), address(2)]);
            assert_eq!(other.address(), address(3));
        }
        let all = [address(1), address(2), address(3)];
        assert!(all.contains(&sim.pick_other(&all).address()));
    }
}

#[test]
fn a_session_stays_with_its_endpoint_while_that_is_there() {
    let mut sim = Sim::of(algorithm(Algorithm::PeakEwma), 5);
    let pick = |sim: &mut Sim, exclude: &[SocketAddr]| {
        let (balancer, now) = (sim.balancer.clone(), sim.now);
        let ask = Ask {
            prefer: Some(address(4)),
            exclude,
            ..sim.ask()
        };
        balancer.pick(&ask, now).unwrap().address()
    };
    for _ in 0..50 {
        assert_eq!(pick(&mut sim, &[]), address(4));
        assert_ne!(pick(&mut sim, &[address(4)]), address(4));
    }
    sim.update(algorithm(Algorithm::PeakEwma), &candidates(3));
    assert_ne!(pick(&mut sim, &[]), address(4));
}

#[test]
fn a_connection_that_is_being_opened_is_used_where_any_would_do() {
    let share = |algorithm, busy: bool| {
        let mut sim = Sim::of(super::algorithm(algorithm), 5);
        let held: Vec<Picked> = (0..10)
            .filter(|_| busy)
            .map(|_| sim.pick_other(&[1, 2, 3, 5].map(address)))
            .collect();
        let hits = (0..100).filter(|_| {
            let (balancer, now) = (sim.balancer.clone(), sim.now);
            let ask = Ask {
                open: Some(address(4)),
                hash: Some(7),
                ..sim.ask()
            };
            balancer.pick(&ask, now).unwrap().address() == address(4)
        });
        let hits = hits.count();
        drop(held);
        hits
    };
    assert_eq!(share(Algorithm::PeakEwma, false), 100);
    assert_eq!(share(Algorithm::LeastRequest, false), 100);
    assert_eq!(share(Algorithm::Random, true), 100);
    // A better one goes before it.
    assert_eq!(share(Algorithm::LeastRequest, true), 0);
    assert_eq!(share(Algorithm::PeakEwma, true), 0);
    // And what leads elsewhere.
    assert_eq!(share(Algorithm::RoundRobin, false), 20);
    assert!([0, 100].contains(&share(Algorithm::ConsistentHash, false)));
}

#[test]
fn an_endpoint_that_drains_gets_nothing_new_and_keeps_what_it_has() {
    let mut sim = Sim::of(algorithm(Algorithm::LeastRequest), 2);
    let held = sim.pick_other(&[address(2)]);
    let draining = Candidate {
        ready: false,
        ..candidate(1)
    };
    sim.update(
        algorithm(Algorithm::LeastRequest),
        &[draining, candidate(2)],
    );
    check_even(&sim.shares(100), 1, 100, 0);
    held.sample(Outcome::Success, ms(1), sim.now);
    drop(held);
    assert_eq!(sim.balancer.figures(sim.now).len(), 1);
}

#[test]
fn what_is_known_of_an_endpoint_outlives_other_changes() {
    let mut sim = Sim::of(algorithm(Algorithm::PeakEwma), 2);
    let held = sim.pick_other(&[address(2)]);
    sim.shares(100);
    sim.update(algorithm(Algorithm::PeakEwma), &candidates(3));
    let figures = sim.balancer.figures(sim.now);
    assert_eq!(figures[0].in_flight, 1);
    assert!(figures[1].requests > 10 && figures[2].requests == 0);
    drop(held);
    assert_eq!(sim.balancer.figures(sim.now)[0].in_flight, 0);
}

#[test]
fn a_new_endpoint_gets_more_and_more() {
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::LeastRequest,
        Algorithm::Random,
        Algorithm::PeakEwma,
    ] {
        let slow = settings(|it| {
            it.load_balancing.algorithm = algorithm;
            it.load_balancing.slow_start = Some(SlowStart {
                window: secs(10),
                minimum_percent: 10,
            });
        });
        let mut sim = Sim::of(Arc::clone(&slow), 3);
        // Those of the beginning are not begun with slowly.
        assert_eq!(sim.health(1), Health::Healthy);
        sim.load(30_000, ms(1), |_| ms(20));
        sim.update(slow, &candidates(4));
        assert_eq!(sim.health(4), Health::SlowStart);
        let share = |sim: &mut Sim| {
            let shares = sim.load(2_500, ms(1), |_| ms(20));
            shares.get(&address(4)).copied().unwrap_or(0)
        };
        let quarters = [
            share(&mut sim),
            share(&mut sim),
            share(&mut sim),
            share(&mut sim),
        ];
        assert!(quarters.is_sorted(), "{algorithm:?} {quarters:?}");
        assert!(quarters[0] < 250, "{algorithm:?} {quarters:?}");
        assert_eq!(sim.health(4), Health::Healthy);
        let full = share(&mut sim);
        assert!(full.abs_diff(625) < 100, "{algorithm:?} {full}");
    }
}

/// Endpoints 1 to 3 are on this node, 4 to 6 in its zone, 7 to 9 elsewhere; those of
/// `unready` are not ready.
fn places(unready: &[u8]) -> Vec<Candidate> {
    let near = |number| match number {
        1..=3 => Near::Node,
        4..=6 => Near::Zone,
        _ => Near::Far,
    };
    let candidate = |number| Candidate {
        ready: !unready.contains(&number),
        near: near(number),
        ..candidate(number)
    };
    (1..=9).map(candidate).collect()
}

/// How many of 10,000 requests go to the node, to the zone, and further.
fn by_place(node: bool, zone: bool, unready: &[u8]) -> [u32; 3] {
    let settings = settings(|it| {
        it.load_balancing.locality = Locality {
            node,
            zone,
            overprovisioning: 140,
        };
    });
    let mut sim = Sim::new(settings, &places(unready));
    let shares = sim.shares(10_000);
    let sum = |numbers: std::ops::RangeInclusive<u8>| {
        let shares = numbers.map(|number| shares.get(&address(number)));
        shares.flatten().sum()
    };
    [sum(1..=3), sum(4..=6), sum(7..=9)]
}

#[track_caller]
fn check_places(actual: [u32; 3], expected: [u32; 3]) {
    let close = actual
        .iter()
        .zip(expected)
        .all(|(a, e)| a.abs_diff(e) <= 300);
    assert!(close, "{actual:?}");
}

#[test]
fn near_endpoints_go_first_where_it_is_asked_for() {
    check_places(by_place(false, false, &[]), [3_333, 3_333, 3_333]);
    assert_eq!(by_place(true, false, &[]), [10_000, 0, 0]);
    assert_eq!(by_place(true, true, &[]), [10_000, 0, 0]);
    check_places(by_place(false, true, &[]), [5_000, 5_000, 0]);
}

#[test]
fn requests_go_further_as_the_near_endpoints_fail() {
    // Two of three are 93 percent with overprovisioning.
    check_places(by_place(true, true, &[1]), [9_333, 667, 0]);
    check_places(by_place(true, true, &[1, 2]), [4_667, 5_333, 0]);
    check_places(by_place(true, true, &[1, 2, 3]), [0, 10_000, 0]);
    check_places(by_place(true, false, &[1, 2, 3]), [0, 5_000, 5_000]);
    check_places(by_place(true, true, &[1, 2, 4, 5]), [4_667, 4_667, 667]);
}
