//! Bytes both ways between an application's socket and the far side.
//!
//! In: both sides, connected, and the permit. Out: why it ended. A FIN of one side is a
//! FIN to the other, a RST a RST, each after the bytes that came before it. A side that
//! does not read stops the other: nothing is buffered beyond one read and what the
//! kernel holds. An idle connection holds no buffer and no timer.

mod tcp;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

pub(super) use self::tcp::{TcpFar, with_scratch};
use super::config::Config;
use super::dial;
use super::network::PodNetwork;
use super::outcome::Outcome;
use super::permit::Permit;
use super::record::{Near, Record};
use crate::flow::KernelStats;

/// The most that one read from an application takes. With what TLS and HTTP/2 add to it,
/// the kernel sends it in one piece: that is 64 KiB at most, in whole segments, and what does
/// not fit would be a second packet of a few bytes, each time.
pub(super) const BATCH: usize = 62 << 10;

/// How often a connection in use is looked at: metrics, limits.
const TICK: Duration = Duration::from_secs(15);

/// Why a direction ended before its FIN.
#[derive(Debug)]
pub(super) enum Broken {
    /// The side that sends was reset.
    Source,
    /// The side that receives takes no more.
    Sink,
}

/// The side of a connection that is not the near application's socket.
pub(super) trait Far: Sized + Send {
    /// Moves bytes from `near` until its FIN, which it passes on.
    fn poll_outward(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>>;

    /// Moves bytes to `near` until the far side's FIN, which it passes on.
    fn poll_homeward(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>>;

    /// The far side is known to be gone, though no call above said so.
    fn is_gone(&self) -> bool;

    /// What the kernel counted on the network hop.
    fn kernel_stats(&self, network: &dyn PodNetwork) -> Option<KernelStats>;

    /// Both directions have ended with a FIN.
    fn close(self);

    /// Ends it with a reset, after what was written has left.
    fn reset_when_sent(self, network: &dyn PodNetwork) -> impl Future<Output = ()> + Send;

    /// Ends it with a reset, at once.
    fn reset(self);
}

/// The side of a connection that is an application's socket.
#[derive(Debug)]
pub(super) struct NearSide<'a> {
    pub(super) stream: TcpStream,
    /// Whose it is.
    pub(super) is: Near,
    /// The namespace of it.
    pub(super) network: &'a dyn PodNetwork,
}

/// Relays until the end, closes both sides as they ended, and says why.
pub(super) fn relay<F: Far>(
    near: NearSide<'_>,
    far: F,
    permit: Permit,
    record: &mut Record,
    config: &Config,
) -> impl Future<Output = Outcome> + Send {
    relay_until(near, far, || permit.revoked(), record, config)
}

/// Likewise, of what a request has led to: whoever let that in says until when.
pub(super) async fn relay_until<F: Far, R: Future<Output = Outcome> + Send>(
    near: NearSide<'_>,
    mut far: F,
    revoked: impl FnOnce() -> R + Send,
    record: &mut Record,
    config: &Config,
) -> Outcome {
    let NearSide {
        stream: mut near,
        is: near_is,
        network,
    } = near;
    record.connected(near_is);
    let ended = {
        let mut revoked = pin!(revoked());
        let mut limits = pin!(Limits::new(config));
        let mut ways = Ways::default();
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = revoked.as_mut().poll(cx) {
                return Poll::Ready(Ended::Stopped(outcome));
            }
            if let Poll::Ready(ended) = ways.poll(cx, &mut near, &mut far, record) {
                return Poll::Ready(ended);
            }
            record.account();
            limits.as_mut().poll(cx, &ways, (&near, &far), record)
        })
        .await
    };
    record.kernel = far.kernel_stats(network);
    let (by_near, by_far) = match near_is {
        Near::Client => (Outcome::ClientReset, Outcome::ServerReset),
        Near::Server => (Outcome::ServerReset, Outcome::ClientReset),
    };
    match ended {
        Ended::Finished => {
            dial::close(near);
            far.close();
            Outcome::Closed
        }
        Ended::NearGone => {
            drop(near);
            far.reset_when_sent(network).await;
            by_near
        }
        Ended::FarGone => {
            far.reset();
            dial::reset_when_sent(near, network).await;
            by_far
        }
        Ended::Stopped(outcome) => {
            dial::reset(near);
            far.reset();
            outcome
        }
    }
}

/// How the relay ended.
#[derive(Debug)]
enum Ended {
    /// Both directions with a FIN.
    Finished,
    /// The near side was reset or takes no more.
    NearGone,
    /// The far side was.
    FarGone,
    /// By this agent.
    Stopped(Outcome),
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    #[default]
    Open,
    /// Its FIN was passed on.
    Finished,
    /// Its sink takes no more. The other direction goes on until it ends: what that sink
    /// sent before is still owed.
    Broken,
}

/// Both directions.
#[derive(Debug, Default)]
struct Ways {
    outward: Way,
    homeward: Way,
}

impl Ways {
    fn poll<F: Far>(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        far: &mut F,
        record: &mut Record,
    ) -> Poll<Ended> {
        if self.outward == Way::Open
            && let Poll::Ready(end) = far.poll_outward(cx, near, &mut record.moved.outward)
        {
            self.outward = match end {
                Ok(()) => Way::Finished,
                Err(Broken::Sink) => Way::Broken,
                Err(Broken::Source) => return Poll::Ready(Ended::NearGone),
            };
        }
        if self.homeward == Way::Open
            && let Poll::Ready(end) = far.poll_homeward(cx, near, &mut record.moved.homeward)
        {
            self.homeward = match end {
                Ok(()) => Way::Finished,
                Err(Broken::Sink) => Way::Broken,
                Err(Broken::Source) => return Poll::Ready(Ended::FarGone),
            };
        }
        match (self.outward, self.homeward) {
            (Way::Open, _) | (_, Way::Open) => Poll::Pending,
            (Way::Finished, Way::Finished) => Poll::Ready(Ended::Finished),
            (Way::Broken, _) => Poll::Ready(Ended::FarGone),
            (Way::Finished, Way::Broken) => Poll::Ready(Ended::NearGone),
        }
    }

    fn is_half_open(&self) -> bool {
        self.outward != Way::Open || self.homeward != Way::Open
    }
}

/// Looks at a connection now and then, as long as there is something to look for.
#[derive(Debug)]
struct Limits {
    idle: Option<Duration>,
    half_open: Duration,
    /// One way has ended: from then on it counts how long nothing moves.
    was_half_open: bool,
    last_total: u64,
    last_moved: Instant,
    /// Boxed: an idle connection has none.
    tick: Option<Pin<Box<Sleep>>>,
}

impl Limits {
    fn new(config: &Config) -> Self {
        Self {
            idle: config.idle_timeout,
            half_open: config.half_open_timeout,
            was_half_open: false,
            last_total: 0,
            last_moved: Instant::now(),
            tick: None,
        }
    }

    fn poll<F: Far>(
        &mut self,
        cx: &mut Context<'_>,
        ways: &Ways,
        (near, far): (&TcpStream, &F),
        record: &mut Record,
    ) -> Poll<Ended> {
        loop {
            let moved = record.moved.total() != self.last_total;
            let half_open = ways.is_half_open();
            if self.tick.is_none() && !moved && !half_open && self.idle.is_none() {
                return Poll::Pending;
            }
            if half_open && !self.was_half_open {
                self.was_half_open = true;
                self.last_moved = Instant::now();
                self.tick = None;
            }
            let tick = self.tick.get_or_insert_with(|| {
                let limit = if half_open {
                    Some(self.half_open)
                } else {
                    self.idle
                };
                Box::pin(tokio::time::sleep(TICK.min(limit.unwrap_or(TICK))))
            });
            ready!(tick.as_mut().poll(cx));
            self.tick = None;
            if moved {
                self.last_total = record.moved.total();
                self.last_moved = Instant::now();
                record.progress();
            }
            let silent = self.last_moved.elapsed();
            if half_open {
                if is_gone(near) {
                    return Poll::Ready(Ended::NearGone);
                }
                if far.is_gone() {
                    return Poll::Ready(Ended::FarGone);
                }
                if silent >= self.half_open {
                    return Poll::Ready(Ended::Stopped(Outcome::HalfOpenTimeout));
                }
            } else if self.idle.is_some_and(|idle| silent >= idle) {
                return Poll::Ready(Ended::Stopped(Outcome::IdleTimeout));
            }
        }
    }
}

/// The kernel knows that the peer is gone, though nobody reads or writes: a RST, or
/// probes without an answer.
fn is_gone(stream: &TcpStream) -> bool {
    let error: io::Result<Option<io::Error>> = SockRef::from(stream).take_error();
    !matches!(error, Ok(None))
}
