//! Circuit breakers, budgets, rates and the limit that is found out.

use super::*;
use crate::policy::traffic::{AdaptiveConcurrency, Budget};

fn refused(result: Result<impl Sized, impl Into<Refusal>>) -> Option<Circuit> {
    match result.map_err(Into::into) {
        Err(Refusal::CircuitOpen(circuit)) => Some(circuit),
        Err(Refusal::NoEndpoints | Refusal::Overloaded) | Ok(_) => None,
    }
}

#[test]
fn requests_in_flight_are_limited() {
    let mut sim = Sim::of(settings(|it| it.requests.max = 2), 3);
    let [one, _two] = [sim.pick(), sim.pick()];
    assert_eq!(refused(sim.try_pick()), Some(Circuit::Requests));
    drop(one);
    let _three = sim.pick();
    assert_eq!(refused(sim.try_pick()), Some(Circuit::Requests));
}

#[test]
fn a_refused_request_takes_no_place() {
    let mut sim = Sim::new(settings(|it| it.requests.max = 1), &[]);
    for _ in 0..3 {
        assert_eq!(sim.try_pick().unwrap_err(), Refusal::NoEndpoints);
    }
}

#[test]
fn one_client_takes_no_more_than_its_share() {
    let limits = settings(|it| {
        it.requests.max = 3;
        it.requests.per_client = Some(2);
        it.connections.per_client = Some(1);
    });
    let mut sim = Sim::of(limits, 3);
    let mut cart = vec![sim.pick(), sim.pick()];
    assert_eq!(refused(sim.try_pick()), Some(Circuit::ClientRequests));
    sim.client = NamespacedName::new("shop", "web");
    let _web = sim.pick();
    assert_eq!(refused(sim.try_pick()), Some(Circuit::Requests));
    cart.pop();
    sim.client = NamespacedName::new("shop", "cart");
    cart.push(sim.pick());
    let connection = sim.balancer.connection(&sim.client).unwrap();
    let again = sim.balancer.connection(&sim.client);
    assert_eq!(refused(again), Some(Circuit::ClientConnections));
    let other = NamespacedName::new("shop", "web");
    assert!(sim.balancer.connection(&other).is_ok());
    drop(connection);
    assert!(sim.balancer.connection(&sim.client).is_ok());
}

#[test]
fn clients_that_are_gone_are_forgotten() {
    let mut sim = Sim::of(settings(|it| it.requests.per_client = Some(1)), 1);
    for number in 0..2_000 {
        sim.client = NamespacedName::new("shop", format!("cart-{number}"));
        drop(sim.pick());
    }
    sim.client = NamespacedName::new("shop", "cart-7");
    let _held = sim.pick();
    assert_eq!(refused(sim.try_pick()), Some(Circuit::ClientRequests));
}

#[test]
fn connections_and_those_who_wait_for_one_are_limited() {
    let limits = settings(|it| {
        it.connections.max = 1;
        it.connections.pending = 1;
    });
    let sim = Sim::of(limits, 1);
    let connection = sim.balancer.connection(&sim.client).unwrap();
    let pending = sim.balancer.pending().unwrap();
    let again = sim.balancer.connection(&sim.client);
    assert_eq!(refused(again), Some(Circuit::Connections));
    assert_eq!(refused(sim.balancer.pending()), Some(Circuit::Pending));
    drop((connection, pending));
    assert!(sim.balancer.connection(&sim.client).is_ok());
    assert!(sim.balancer.pending().is_ok());
}

#[test]
fn limits_that_change_hold_for_what_is_in_flight() {
    let mut sim = Sim::of(settings(|_| {}), 3);
    let _held = [sim.pick(), sim.pick(), sim.pick()];
    sim.update(settings(|it| it.requests.max = 3), &candidates(3));
    assert_eq!(refused(sim.try_pick()), Some(Circuit::Requests));
    sim.update(settings(|it| it.requests.max = 4), &candidates(3));
    assert!(sim.try_pick().is_ok());
}

fn budget(percent: u32, min_per_second: u32) -> Budget {
    Budget {
        percent,
        min_per_second,
    }
}

#[test]
fn retries_are_a_share_of_requests() {
    let now = Instant::now();
    let retries = RetryBudget::new(now);
    for _ in 0..100 {
        retries.deposit(now);
    }
    let permitted = (0..100).filter(|_| retries.withdraw(&budget(20, 0), now));
    assert_eq!(permitted.count(), 20);
    // Ten seconds on, neither the requests nor the retries count any more.
    assert!(!retries.withdraw(&budget(20, 0), now + secs(9)));
    for _ in 0..10 {
        retries.deposit(now + secs(11));
    }
    let later = (0..100).filter(|_| retries.withdraw(&budget(20, 0), now + secs(12)));
    assert_eq!(later.count(), 2);
}

#[test]
fn a_few_retries_are_always_permitted() {
    let now = Instant::now();
    let retries = RetryBudget::new(now);
    let permitted = (0..1_000).filter(|_| retries.withdraw(&budget(0, 10), now));
    assert_eq!(permitted.count(), 100);
    // In the long run so many in a second.
    let permitted = (1..=100_000).filter(|n| retries.withdraw(&budget(0, 10), now + ms(*n)));
    let count = permitted.count();
    assert!((900..=1_000).contains(&count), "{count}");
}

#[test]
fn retries_have_a_budget_and_a_limit_in_flight() {
    let limits = settings(|it| {
        it.retries.budget = budget(50, 0);
        it.requests.retries = 2;
    });
    let mut sim = Sim::of(limits, 3);
    assert_eq!(
        refused(sim.balancer.retry(sim.now)),
        Some(Circuit::RetryBudget)
    );
    sim.shares(8);
    let one = sim.balancer.retry(sim.now).unwrap();
    let two = sim.balancer.retry(sim.now).unwrap();
    assert_eq!(refused(sim.balancer.retry(sim.now)), Some(Circuit::Retries));
    drop(one);
    let three = sim.balancer.retry(sim.now).unwrap();
    // A retry itself earns nothing.
    for _ in 0..100 {
        drop(sim.pick_other(&[address(1)]));
    }
    drop(two);
    let _four = sim.balancer.retry(sim.now).unwrap();
    drop(three);
    assert_eq!(
        refused(sim.balancer.retry(sim.now)),
        Some(Circuit::RetryBudget)
    );
}

#[test]
fn a_bucket_lets_through_its_burst_and_then_its_rate() {
    let start = Instant::now();
    let bucket = TokenBucket::new(10, secs(1), 5, start);
    assert!(bucket.is_full(start + ms(1)));
    let at_once = (0..20).filter(|_| bucket.take(start).is_ok()).count();
    assert_eq!(at_once, 5);
    assert_eq!(bucket.take(start), Err(ms(100)));
    assert_eq!(bucket.take(start + ms(60)), Err(ms(40)));
    assert_eq!(bucket.take(start + ms(100)), Ok(()));
    assert!(!bucket.is_full(start + ms(590)));
    let mut taken = 0;
    for millisecond in 101..=10_100 {
        taken += u32::from(bucket.take(start + ms(millisecond)).is_ok());
    }
    assert_eq!(taken, 100);
    // After a rest the burst is there again, and no more.
    let later = start + secs(3_600);
    assert_eq!((0..20).filter(|_| bucket.take(later).is_ok()).count(), 5);
}

#[test]
fn a_bucket_of_nothing_lets_nothing_through() {
    let start = Instant::now();
    for (requests, per) in [(0, secs(1)), (10, Duration::ZERO)] {
        let bucket = TokenBucket::new(requests, per, 10, start);
        assert!(bucket.take(start + secs(100)).is_err());
    }
    // So many that a nanosecond has more than one are not none.
    let many = TokenBucket::new(2_000_000_000, secs(1), 10, start);
    assert_eq!((0..10).filter(|_| many.take(start).is_ok()).count(), 10);
    assert!(many.take(start + ms(1)).is_ok());
    // A burst of none is one of one: else nothing would ever pass.
    assert!(TokenBucket::new(1, secs(1), 0, start).take(start).is_ok());
}

fn adaptive() -> Arc<TrafficSettings> {
    settings(|it| {
        it.adaptive_concurrency = Some(AdaptiveConcurrency {
            initial: 20,
            min: 5,
            max: 200,
            tolerance: 150,
        });
    })
}

/// A service that takes `capacity` requests at once in 10 ms each, and the others after
/// them; as many are in flight as the limit permits. The limit in the end.
fn converge(sim: &mut Sim, capacity: usize, rounds: u32) -> usize {
    let mut held: Vec<Picked> = Vec::new();
    let mut most = 0;
    for _ in 0..rounds {
        loop {
            match sim.try_pick() {
                Ok(picked) => held.push(picked),
                Err(Refusal::Overloaded) => break,
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
        most = held.len();
        let queued = u32::try_from(most.div_ceil(capacity)).unwrap();
        let latency = ms(10) * queued;
        sim.wait(latency);
        for picked in held.drain(..) {
            picked.sample(Outcome::Success, latency, sim.now);
        }
    }
    most
}

#[test]
fn the_limit_follows_what_a_service_takes() {
    let mut sim = Sim::of(adaptive(), 3);
    // Where nothing ever queues it rises to its most.
    assert_eq!(converge(&mut sim, 10_000, 3_000), 200);
    // Then it takes less: the limit comes down, and does not fall below its least.
    let limit = converge(&mut sim, 40, 200);
    assert!((5..150).contains(&limit), "{limit}");
}

#[test]
fn an_idle_service_keeps_its_limit() {
    let mut sim = Sim::of(adaptive(), 3);
    sim.load(5_000, ms(1), |_| ms(2));
    let held: Vec<Picked> = std::iter::from_fn(|| sim.try_pick().ok()).collect();
    assert_eq!(held.len(), 20);
    assert_eq!(sim.try_pick().unwrap_err(), Refusal::Overloaded);
}
