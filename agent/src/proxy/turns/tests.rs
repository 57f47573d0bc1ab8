use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::sync::LazyLock;
use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::*;
use crate::model::NodeName;
use crate::proxy::Config;

const TURN: Duration = Duration::from_micros(200);

thread_local! {
    /// Time passes where a task works, and nowhere else.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn now() -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START + NOW.get()
}

fn account() -> Arc<Account> {
    Account::new(&Config::recommended(NodeName("a".into())))
}

fn pod() -> (Arc<Turns>, Driver) {
    Turns::timed_by(account(), TURN, now)
}

/// Works for so long at each poll, and wants to go on.
async fn busy(microseconds: u64) {
    poll_fn::<(), _>(|cx| {
        NOW.set(NOW.get() + Duration::from_micros(microseconds));
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        let _before = self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// One poll of a driver; whether it ended, and how often it asked for another.
fn poll(driver: &mut Driver) -> (bool, usize) {
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let polled = Pin::new(driver).poll(&mut Context::from_waker(&waker));
    (polled.is_ready(), woken.0.load(Ordering::SeqCst))
}

/// Microseconds that each of two pods had of a thread, after many polls of both in turn.
#[track_caller]
fn check_fair(left: impl IntoIterator<Item = u64>, right: impl IntoIterator<Item = u64>) {
    let (many, mut first) = pod();
    let (few, mut second) = pod();
    left.into_iter().for_each(|work| many.spawn(busy(work)));
    right.into_iter().for_each(|work| few.spawn(busy(work)));
    for _ in 0..1000 {
        assert_eq!(poll(&mut first), (false, 1));
        assert_eq!(poll(&mut second), (false, 1));
    }
    let [left, right] = [&many, &few].map(|turns| turns.account.usage().busy.as_secs_f64());
    assert!((left / right - 1.0).abs() < 0.05, "{left} {right}");
}

#[test]
fn a_pod_with_a_hundred_busy_tasks_has_no_more_than_one_with_one() {
    check_fair([20; 100], [20]);
}

#[test]
fn long_polls_are_paid_with_turns() {
    check_fair([3000], [30; 10]);
    check_fair([1, 700], [199]);
}

#[test]
fn a_debt_outlasts_a_pause() {
    let (turns, mut driver) = pod();
    turns.spawn(async {
        NOW.set(NOW.get() + TURN * 3);
        pending::<()>().await;
    });
    assert_eq!(poll(&mut driver), (false, 0));
    turns.spawn(busy(1));
    assert_eq!(poll(&mut driver), (false, 1));
    assert_eq!(
        turns.account.usage().busy,
        TURN * 3,
        "the debt is paid first"
    );
    assert_eq!(poll(&mut driver), (false, 1));
    assert_eq!(poll(&mut driver), (false, 1));
    assert!(turns.account.usage().busy > TURN * 3);
}

#[test]
fn a_debt_has_a_limit() {
    let (turns, mut driver) = pod();
    turns.spawn(async {
        NOW.set(NOW.get() + Duration::from_secs(10));
        pending::<()>().await;
    });
    turns.spawn(busy(1));
    let _more = poll(&mut driver);
    let turns_lost = (0..1000).take_while(|_| {
        let _more = poll(&mut driver);
        turns.account.usage().busy == Duration::from_secs(10)
    });
    assert_eq!(turns_lost.count(), usize::try_from(DEBT).unwrap());
}

#[test]
fn a_pod_whose_tasks_wait_asks_for_no_turn() {
    let (turns, mut driver) = pod();
    let (send, mut receive) = mpsc::channel::<()>(1);
    turns.spawn(async move { while receive.recv().await.is_some() {} });
    assert_eq!(poll(&mut driver), (false, 0));
    assert_eq!(turns.account.usage().turns_over, 0);
    send.try_send(()).unwrap();
    let polls = poll(&mut driver);
    assert_eq!(polls, (false, 0));
}

#[test]
fn what_becomes_ready_while_nobody_polls_wakes_the_driver() {
    let (turns, mut driver) = pod();
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let (send, mut receive) = mpsc::channel::<()>(1);
    turns.spawn(async move { while receive.recv().await.is_some() {} });
    let _pending = Pin::new(&mut driver).poll(&mut Context::from_waker(&waker));
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    drop(send);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    turns.leave();
    assert_eq!(poll(&mut driver), (true, 0));
}

#[test]
fn what_a_task_starts_is_the_pods_too() {
    let (turns, mut driver) = pod();
    assert!(Turns::current().is_none());
    let (told, mut tell) = mpsc::unbounded_channel();
    turns.spawn(async move {
        let turns = Turns::current().unwrap();
        turns.spawn(async move { told.send(Turns::current().is_some()).unwrap() });
    });
    assert_eq!(poll(&mut driver), (false, 0));
    assert_eq!(tell.try_recv(), Ok(true));
    assert!(Turns::current().is_none());
}

#[test]
fn it_ends_with_the_last_task_of_a_pod_that_has_left() {
    let (turns, mut driver) = pod();
    let (send, mut receive) = mpsc::channel::<()>(1);
    turns.spawn(async move { while receive.recv().await.is_some() {} });
    turns.leave();
    assert!(!poll(&mut driver).0);
    drop(send);
    assert!(poll(&mut driver).0);
    assert_eq!(turns.account.usage().memory_bytes, 0);
}

#[test]
fn tasks_are_dropped_with_the_driver_and_none_starts_later() {
    let (turns, mut driver) = pod();
    let alive = Arc::new(());
    for _ in 0..2 {
        let held = Arc::clone(&alive);
        turns.spawn(async move {
            pending::<()>().await;
            drop(held);
        });
        let _more = poll(&mut driver);
    }
    assert!(turns.account.usage().memory_bytes > 0);
    drop(driver);
    assert_eq!(Arc::strong_count(&alive), 1);
    let held = Arc::clone(&alive);
    turns.spawn(async move {
        drop(held);
    });
    assert_eq!(Arc::strong_count(&alive), 1);
    assert_eq!(turns.account.usage().memory_bytes, 0);
}

#[tokio::test]
async fn a_socket_that_becomes_ready_waits_for_one_turn_of_a_busy_pod() {
    let (turns, driver) = pod();
    turns.spawn(busy(20));
    let driver = tokio::spawn(driver);
    let (mut near, mut far) = UnixStream::pair().unwrap();
    for _ in 0..100 {
        let before = turns.account.usage().turns_over;
        near.write_all(b"x").await.unwrap();
        // With room for more, so that the next read has to wait.
        let _one = far.read(&mut [0; 8]).await.unwrap();
        let waited = turns.account.usage().turns_over - before;
        assert!(waited <= 2, "{waited} turns");
    }
    assert!(turns.account.usage().turns_over >= 100);
    driver.abort();
}

/// Wake-ups come from other threads at any moment: none may be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_wake_up_is_lost() {
    const ROUNDS: u32 = 2000;
    let (left, right) = (account(), account());
    let [(left, first), (right, second)] =
        [left, right].map(|account| Turns::new(account, Duration::from_micros(5)));
    let drivers = [tokio::spawn(first), tokio::spawn(second)];
    let mut ends = Vec::new();
    for _ in 0..8 {
        let (there, mut arrivals) = mpsc::channel(1);
        let (back, mut replies) = mpsc::channel(1);
        let (done, end) = tokio::sync::oneshot::channel();
        left.spawn(async move {
            for round in 0..ROUNDS {
                there.send(round).await.unwrap();
                assert_eq!(replies.recv().await, Some(round));
            }
            done.send(()).unwrap();
        });
        right.spawn(async move {
            while let Some(round) = arrivals.recv().await {
                back.send(round).await.unwrap();
            }
        });
        ends.push(end);
    }
    left.leave();
    right.leave();
    for end in ends {
        tokio::time::timeout(Duration::from_mins(1), end)
            .await
            .expect("no wake-up is lost")
            .unwrap();
    }
    for driver in drivers {
        driver.await.unwrap();
    }
}
