//! Turns: how the pods of one thread share it.
//!
//! A runtime serves its tasks in the order in which they became ready, one poll each. So
//! a pod with a thousand busy connections would get a thousand polls for each one of a
//! pod with a single connection, whose every request waits behind them. Here the tasks
//! of a pod are one task of the runtime, its *driver*, and the runtime's queue is one of
//! pods: the driver polls what is ready of its pod, in order, until the pod's turn is
//! over or nothing is ready, and goes to the end of the queue.
//!
//! This is deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), with time in place
//! of bytes, and as polls can't be cut short, with the debt of its "surplus" variant: a
//! turn gives credit; each poll takes from it what it lasted; a poll that lasts longer
//! than the credit leaves a debt, which costs the pod whole turns later. Credit that is
//! not used is not kept. Nobody waits while nobody else is ready: a pod alone goes from
//! turn to turn. Between two turns of a pod the thread looks for what has become ready:
//! the first turn of a pod that was quiet is at most one turn of each busy pod away.
//!
//! What a task of a pod starts is the pod's too ([`Turns::current`]).

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::task::{self, coop};

use super::account::{Account, TaskMemory};

thread_local! {
    /// Whose task is being polled.
    static CURRENT: RefCell<Option<Arc<Turns>>> = const { RefCell::new(None) };
}

/// The tasks of one pod.
pub(super) struct Turns {
    account: Arc<Account>,
    state: Mutex<State>,
    /// Of the driver, while it waits.
    driver: AtomicWaker,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Arc<Job>>,
    all: HashMap<u64, Arc<Job>>,
    next: u64,
    /// The driver is at work, and will see what becomes ready.
    running: bool,
    /// No further task will be started from outside.
    leaving: bool,
    /// The driver is gone.
    over: bool,
}

/// One task.
struct Job {
    owner: Arc<Turns>,
    number: u64,
    /// It is among the ready ones.
    queued: AtomicBool,
    work: Mutex<Option<Work>>,
}

struct Work {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    _memory: TaskMemory,
}

/// Polls the tasks of one pod, a turn at a time. Ends when the pod has left and its last
/// task has ended; its drop drops them all.
pub(super) struct Driver {
    turns: Arc<Turns>,
    turn: Duration,
    credit: Credit,
    clock: fn() -> Instant,
}

/// What is left of a turn: nanoseconds, below zero where the last one was overdrawn.
#[derive(Clone, Copy, Debug, Default)]
struct Credit(i64);

/// The most turns that a debt costs. What lasts longer than that did not work all the
/// time: something else had the processor.
const DEBT: i64 = 32;

/// What a driver does next.
enum Step {
    Poll(Arc<Job>),
    /// Until something is ready.
    Wait,
    /// To the pods that wait, then go on.
    Yield,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl Turns {
    /// The tasks of a pod, none as yet, and what polls them.
    pub(super) fn new(account: Arc<Account>, turn: Duration) -> (Arc<Self>, Driver) {
        Self::timed_by(account, turn, Instant::now)
    }

    fn timed_by(
        account: Arc<Account>,
        turn: Duration,
        clock: fn() -> Instant,
    ) -> (Arc<Self>, Driver) {
        let turns = Arc::new(Self {
            account,
            state: Mutex::default(),
            driver: AtomicWaker::new(),
        });
        let driver = Driver {
            turns: Arc::clone(&turns),
            turn,
            credit: Credit::default(),
            clock,
        };
        (turns, driver)
    }

    /// The pod whose task is being polled on this thread.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Adds a task. It is dropped at once where the driver is gone.
    pub(super) fn spawn<F>(self: &Arc<Self>, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = Work {
            task: Box::pin(task),
            _memory: self.account.task(size_of::<F>()),
        };
        let mut state = self.state();
        if state.over {
            drop(state);
            drop(work);
            return;
        }
        let number = state.next;
        state.next += 1;
        let job = Arc::new(Job {
            owner: Arc::clone(self),
            number,
            queued: AtomicBool::new(true),
            work: Mutex::new(Some(work)),
        });
        let _none = state.all.insert(number, Arc::clone(&job));
        self.make_ready(state, job);
    }

    /// No further task comes from outside: the driver ends with the last one.
    pub(super) fn leave(&self) {
        self.state().leaving = true;
        self.driver.wake();
    }

    fn make_ready(&self, mut state: MutexGuard<'_, State>, job: Arc<Job>) {
        state.ready.push_back(job);
        let running = state.running;
        drop(state);
        if !running {
            self.driver.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.owner.make_ready(self.owner.state(), Arc::clone(self));
        }
    }
}

impl Job {
    fn poll(self: Arc<Self>) {
        // Before the poll: what wakes it from here on asks for another.
        self.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self));
        let mut work = self.work();
        let Some(running) = work.as_mut() else {
            return;
        };
        let polled = running.task.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            let done = work.take();
            drop(work);
            // Without a lock: its parts may wake others, or start some.
            drop(done);
            let _job = self.owner.state().all.remove(&self.number);
        }
    }

    fn work(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
    fn next(&self, within_turn: bool) -> Step {
        let mut state = self.turns.state();
        if state.ready.is_empty() {
            state.running = false;
            return Step::Wait;
        }
        if !within_turn {
            return Step::Yield;
        }
        state.ready.pop_front().map_or(Step::Wait, Step::Poll)
    }

    /// One turn. Returns whether there is more to do.
    fn turn(&mut self) -> bool {
        let start = (self.clock)();
        let mut now = start;
        self.credit.grant(self.turn);
        let more = loop {
            // The runtime's own budget may end a turn too: with none of it left, sockets
            // that are ready say that they are not.
            let within_turn = self.credit.is_positive() && coop::has_budget_remaining();
            match self.next(within_turn) {
                Step::Poll(job) => job.poll(),
                Step::Wait => {
                    self.credit.forgo();
                    break false;
                }
                Step::Yield => break true,
            }
            let then = (self.clock)();
            self.credit.spend(then - now, self.turn);
            now = then;
        };
        self.turns.account.worked(now - start);
        more
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.turns.driver.register(cx.waker());
        self.turns.state().running = true;
        let before = CURRENT.replace(Some(Arc::clone(&self.turns)));
        let more = self.turn();
        let _this = CURRENT.replace(before);
        if more {
            self.turns.account.turn_over();
            wake_behind_all(cx);
            return Poll::Pending;
        }
        let state = self.turns.state();
        if state.leaving && state.all.is_empty() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.over = true;
        let ready = mem::take(&mut state.ready);
        let all = mem::take(&mut state.all);
        drop(state);
        for job in all.values() {
            let work = job.work().take();
            drop(work);
        }
        drop((ready, all));
    }
}

impl Credit {
    /// That of one turn; a debt is paid with it first.
    fn grant(&mut self, turn: Duration) {
        let turn = nanos(turn);
        self.0 = self.0.saturating_add(turn).min(turn);
    }

    fn spend(&mut self, time: Duration, turn: Duration) {
        let limit = nanos(turn).saturating_mul(-DEBT);
        self.0 = self.0.saturating_sub(nanos(time)).max(limit);
    }

    /// A debt stays.
    fn forgo(&mut self) {
        self.0 = self.0.min(0);
    }

    fn is_positive(self) -> bool {
        self.0 > 0
    }
}

/// Wakes this task once the thread has polled all that is ready and looked for sockets that
/// have become so. A plain wake-up is polled again before they are looked for.
fn wake_behind_all(cx: &mut Context<'_>) {
    let mut yielding = pin!(task::yield_now());
    let polled = yielding.as_mut().poll(cx);
    debug_assert!(polled.is_pending(), "it waits for its wake-up");
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
