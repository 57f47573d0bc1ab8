//! Endpoints that are left out for a while.

use super::*;
use crate::policy::traffic::{LatencyOutlier, OutlierDetection, SuccessRate};

fn detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(5),
        consecutive_gateway_errors: None,
        success_rate: None,
        latency: None,
        interval: secs(10),
        base_ejection_time: secs(30),
        max_ejection_time: secs(300),
        max_ejection_percent: 10,
        panic_threshold: 50,
    }
}

fn detecting(change: impl FnOnce(&mut OutlierDetection)) -> Arc<TrafficSettings> {
    let mut detection = detection();
    change(&mut detection);
    settings(|it| {
        it.load_balancing.algorithm = Algorithm::RoundRobin;
        it.outlier_detection = Some(detection);
    })
}

/// So many requests to each of the endpoints; those of `bad` come out as said.
fn rounds(sim: &mut Sim, count: u32, endpoints: u32, bad: &[u8], outcome: Outcome) -> u32 {
    let bad: Vec<SocketAddr> = bad.iter().map(|it| address(*it)).collect();
    let mut seen = 0;
    for _ in 0..count * endpoints {
        sim.wait(ms(1));
        let address = sim.request(|it| {
            let bad = bad.contains(&it);
            (if bad { outcome } else { Outcome::Success }, ms(1))
        });
        seen += u32::from(bad.contains(&address));
    }
    seen
}

#[test]
fn errors_in_a_row_eject() {
    let mut sim = Sim::of(detecting(|_| {}), 10);
    assert_eq!(rounds(&mut sim, 4, 10, &[3], Outcome::ServerError), 4);
    assert_eq!(sim.health(3), Health::Healthy);
    assert_eq!(rounds(&mut sim, 10, 10, &[3], Outcome::ServerError), 1);
    assert_eq!(sim.health(3), Health::Ejected);
}

#[test]
fn a_success_between_errors_saves() {
    let mut sim = Sim::of(detecting(|_| {}), 3);
    for _ in 0..10 {
        rounds(&mut sim, 4, 3, &[3], Outcome::Failed);
        rounds(&mut sim, 1, 3, &[], Outcome::Success);
    }
    assert_eq!(sim.health(3), Health::Healthy);
}

#[test]
fn errors_of_a_gateway_are_counted_apart() {
    let gateway = |it: &mut OutlierDetection| {
        it.consecutive_5xx = None;
        it.consecutive_gateway_errors = Some(3);
    };
    let mut sim = Sim::of(detecting(gateway), 10);
    rounds(&mut sim, 20, 10, &[3], Outcome::ServerError);
    assert_eq!(sim.health(3), Health::Healthy);
    rounds(&mut sim, 4, 10, &[3], Outcome::GatewayError);
    assert_eq!(sim.health(3), Health::Ejected);
}

#[test]
fn an_ejection_ends_and_the_next_takes_longer() {
    let mut sim = Sim::of(detecting(|_| {}), 10);
    for times in 1..=3 {
        rounds(&mut sim, 6, 10, &[3], Outcome::ServerError);
        assert_eq!(sim.health(3), Health::Ejected);
        let figures = &sim.balancer.figures(sim.now)[2];
        assert_eq!(figures.ejections, times);
        let left = figures.ejected_for.unwrap();
        let whole = secs(30) * times;
        assert!(left <= whole && left + secs(1) > whole, "{left:?}");
        sim.wait(left.saturating_sub(ms(1)));
        assert_eq!(rounds(&mut sim, 0, 10, &[3], Outcome::ServerError), 0);
        assert_eq!(sim.health(3), Health::Ejected);
        sim.wait(ms(2));
        drop(sim.pick());
        assert_eq!(sim.health(3), Health::Healthy);
    }
}

#[test]
fn ejections_are_forgotten_by_intervals_without() {
    let mut sim = Sim::of(detecting(|_| {}), 10);
    rounds(&mut sim, 6, 10, &[3], Outcome::ServerError);
    sim.wait(secs(31));
    for _ in 0..3 {
        drop(sim.pick());
        sim.wait(secs(10));
    }
    assert_eq!(sim.balancer.figures(sim.now)[2].ejections, 0);
}

#[test]
fn an_ejection_takes_no_longer_than_the_longest() {
    let settings = detecting(|it| it.max_ejection_time = secs(40));
    let mut sim = Sim::of(settings, 10);
    for _ in 0..4 {
        rounds(&mut sim, 6, 10, &[3], Outcome::ServerError);
        let left = sim.balancer.figures(sim.now)[2].ejected_for.unwrap();
        assert!(left <= secs(40), "{left:?}");
        sim.wait(secs(41));
        drop(sim.pick());
    }
}

#[test]
fn no_more_than_a_share_is_ejected() {
    let ejected = |percent, endpoints| {
        let settings = detecting(|it| it.max_ejection_percent = percent);
        let mut sim = Sim::of(settings, endpoints);
        let all: Vec<u8> = (1..=endpoints).collect();
        rounds(&mut sim, 20, endpoints.into(), &all, Outcome::Failed);
        let ejected = all.iter().filter(|it| sim.health(**it) == Health::Ejected);
        ejected.count()
    };
    assert_eq!(ejected(10, 20), 2);
    assert_eq!(ejected(50, 20), 10);
    // One of two or more may always be; the only one never.
    assert_eq!(ejected(10, 3), 1);
    assert_eq!(ejected(100, 1), 0);
}

#[test]
fn in_a_panic_everybody_gets_requests() {
    let settings = |threshold| {
        detecting(|it| {
            it.max_ejection_percent = 100;
            it.panic_threshold = threshold;
        })
    };
    let mut sim = Sim::of(settings(50), 4);
    rounds(&mut sim, 8, 4, &[1, 2], Outcome::Failed);
    // Half is left: no panic yet.
    assert_eq!(sim.shares(100).len(), 2);
    rounds(&mut sim, 8, 4, &[3], Outcome::Failed);
    assert_eq!(sim.health(3), Health::Ejected);
    assert_eq!(sim.shares(100).len(), 4);
    // Without one nobody gets them, in the end.
    let mut sim = Sim::of(settings(0), 2);
    for _ in 0..10 {
        if let Ok(picked) = sim.try_pick() {
            picked.sample(Outcome::Failed, ms(1), sim.now);
        }
    }
    assert_eq!(sim.try_pick().unwrap_err(), Refusal::NoEndpoints);
}

#[test]
fn the_worst_rate_of_success_ejects() {
    let settings = || {
        detecting(|it| {
            it.consecutive_5xx = None;
            it.success_rate = Some(SuccessRate {
                minimum_hosts: 5,
                request_volume: 100,
                stdev_factor: 1_900,
            });
        })
    };
    // One in two fails, and never two in a row.
    let run = |endpoints: u8, requests: u32| {
        let mut sim = Sim::of(settings(), endpoints);
        for round in 0..requests {
            let outcome = [Outcome::ServerError, Outcome::Success][round as usize % 2];
            rounds(&mut sim, 1, endpoints.into(), &[3], outcome);
        }
        sim.wait(secs(10));
        drop(sim.pick());
        let ejected = (1..=endpoints).filter(|it| sim.health(*it) == Health::Ejected);
        ejected.collect::<Vec<_>>()
    };
    assert_eq!(run(10, 110), [3]);
    // Too few requests, too few endpoints.
    assert_eq!(run(10, 90), [0; 0]);
    assert_eq!(run(4, 110), [0; 0]);
}

#[test]
fn a_latency_beyond_the_others_ejects() {
    let settings = || {
        detecting(|it| {
            it.latency = Some(LatencyOutlier {
                minimum_hosts: 3,
                request_volume: 50,
                percent_of_median: 300,
                minimum: ms(50),
            });
        })
    };
    let run = |slow: Duration| {
        let mut sim = Sim::of(settings(), 5);
        for _ in 0..500 {
            sim.wait(ms(1));
            sim.request(|it| {
                let latency = if it == address(2) { slow } else { ms(10) };
                (Outcome::Success, latency)
            });
        }
        sim.wait(secs(10));
        drop(sim.pick());
        sim.health(2)
    };
    assert_eq!(run(ms(200)), Health::Ejected);
    // Beyond three times the median, but nobody minds 40 ms; or not beyond.
    assert_eq!(run(ms(40)), Health::Healthy);
    assert_eq!(run(ms(25)), Health::Healthy);
}

#[test]
fn an_endpoint_that_went_and_came_back_starts_anew() {
    let mut sim = Sim::of(detecting(|_| {}), 10);
    rounds(&mut sim, 6, 10, &[3], Outcome::ServerError);
    assert_eq!(sim.health(3), Health::Ejected);
    let without: Vec<Candidate> = candidates(10)
        .into_iter()
        .filter(|it| it.address != address(3))
        .collect();
    sim.update(detecting(|_| {}), &without);
    sim.update(detecting(|_| {}), &candidates(10));
    assert_eq!(sim.health(3), Health::Healthy);
}

#[test]
fn without_detection_nobody_is_out() {
    let mut sim = Sim::of(detecting(|_| {}), 10);
    rounds(&mut sim, 6, 10, &[3], Outcome::ServerError);
    sim.update(algorithm(Algorithm::RoundRobin), &candidates(10));
    assert_eq!(sim.health(3), Health::Healthy);
    rounds(&mut sim, 20, 10, &[3], Outcome::ServerError);
    assert_eq!(sim.shares(100).len(), 10);
}

#[test]
fn an_endpoint_that_is_gone_ejects_nobody() {
    let mut sim = Sim::of(detecting(|it| it.consecutive_5xx = Some(1)), 3);
    let held = sim.pick_other(&[address(2), address(3)]);
    sim.update(detecting(|_| {}), &candidates(3)[1..]);
    sim.update(detecting(|it| it.consecutive_5xx = Some(1)), &candidates(3));
    held.sample(Outcome::Failed, ms(1), sim.now);
    assert_eq!(sim.health(1), Health::Healthy);
}
