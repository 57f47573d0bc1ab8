//! The body of a request, as those see it who don't have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// What is known of the body of a request by those who don't have it.
#[derive(Debug, Default)]
pub(super) struct Upload {
    bytes: AtomicU64,
    over: AtomicBool,
    /// The client waits for word that the server wants it.
    held: AtomicBool,
    waiting: AtomicWaker,
}

/// Tells of the end of an upload when it is dropped.
#[derive(Debug)]
pub(super) struct UploadEnd(Arc<Upload>);

impl Upload {
    /// So much more of it was taken.
    pub(super) fn took(&self, count: u64) {
        let _before = self.bytes.fetch_add(count, Ordering::Relaxed);
    }

    /// How much of it was taken.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Nothing of it is asked for until it is released.
    pub(super) fn hold(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// The server wants it.
    pub(super) fn release(&self) {
        self.held.store(false, Ordering::Release);
        self.waiting.wake();
    }

    /// Is ready once it is not held.
    pub(super) fn poll_held(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.held.load(Ordering::Relaxed) {
            self.waiting.register(cx.waker());
            if self.held.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Nothing more of it is to come.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

impl UploadEnd {
    pub(super) fn of(upload: &Arc<Upload>) -> Self {
        Self(Arc::clone(upload))
    }

    /// Of which it is the end.
    pub(super) fn upload(&self) -> &Arc<Upload> {
        &self.0
    }
}

impl Drop for UploadEnd {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}
