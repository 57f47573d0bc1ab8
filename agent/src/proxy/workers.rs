//! The threads that carry connections, each with a runtime of its own.
//!
//! A pod belongs to one thread, and with it its connections, their tunnels and what
//! drives those. A wake-up then is a push to the thread's own queue: no other thread has
//! to be woken, nothing is stolen and no cache line changes hands, which is a third of
//! what small messages cost. A pod that is busy keeps the pods of other threads waiting
//! for nothing but the processor.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// After so many polls a thread looks for sockets that have become ready, and for what
/// other threads have woken, also where it has more to poll. It does so after each turn
/// of a busy pod anyway ([`super::turns`]): this is for many pods with a little to do each.
const POLLS: u32 = 16;

/// The threads. They end when the token is cancelled, their tasks with them.
#[derive(Debug, Default)]
pub(super) struct Workers {
    handles: Vec<Handle>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts so many threads. With none, tasks run where they are made.
    pub(super) fn start(count: usize, stop: &CancellationToken) -> io::Result<Self> {
        let mut handles = Vec::with_capacity(count);
        for number in 0..count {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(POLLS)
                .global_queue_interval(POLLS)
                .build()?;
            handles.push(runtime.handle().clone());
            let stop = stop.clone();
            let name = format!("data-{number}");
            let _detached = thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(stop.cancelled_owned()))?;
        }
        Ok(Self {
            handles,
            next: AtomicUsize::new(0),
        })
    }

    /// The thread for the next pod, in turn. Without threads, that of the caller's runtime.
    pub(super) fn assign(&self) -> Handle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        match self.handles.len() {
            0 => Handle::current(),
            count => self.handles[turn % count].clone(),
        }
    }
}
