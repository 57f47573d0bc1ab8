//! Accepting, for as long as the pod is served and whatever `accept` says.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

/// Waits at the first and at most at each further refusal by the kernel.
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Takes connections from `accept` until dropped. Where the kernel has no descriptor or no memory left,
/// it waits, longer at each time in a row: the connection stays in the backlog, and
/// descriptors come free as others end. Never returns.
pub(super) async fn accept_all<T, F>(
    mut accept: impl FnMut() -> F,
    exhausted: &AtomicU64,
    mut serve: impl FnMut(T),
) where
    F: Future<Output = io::Result<T>>,
{
    let mut wait = FIRST_WAIT;
    loop {
        match accept().await {
            Ok(connection) => {
                wait = FIRST_WAIT;
                serve(connection);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                let before = exhausted.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, times = before + 1, "cannot accept, waiting");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// `accept` reports errors of the connection that it would have returned (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| {
        [
            Errno::CONNABORTED,
            Errno::INTR,
            Errno::PROTO,
            Errno::NETDOWN,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::NETUNREACH,
            Errno::OPNOTSUPP,
            Errno::PERM,
        ]
        .contains(&errno)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aborted_connection_is_not_exhaustion() {
        assert!(is_of_one_connection(&Errno::CONNABORTED.into()));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(!is_of_one_connection(&errno.into()), "{errno}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn exhaustion_is_waited_out_without_spinning() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            waits_out(errno).await;
        }
    }

    async fn waits_out(errno: Errno) {
        let exhausted = AtomicU64::new(0);
        let served = AtomicU64::new(0);
        // The kernel has none left for a minute.
        let start = tokio::time::Instant::now();
        let accept = async || {
            if start.elapsed() < Duration::from_mins(1) {
                return Err(errno.into());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        };
        let serve = |()| {
            let _before = served.fetch_add(1, Ordering::Relaxed);
        };
        let accepting = accept_all(accept, &exhausted, serve);
        let minutes = Duration::from_secs(125);
        assert!(tokio::time::timeout(minutes, accepting).await.is_err());
        let times = exhausted.load(Ordering::Relaxed);
        assert!((1..80).contains(&times), "{errno}: {times}");
        assert!(served.load(Ordering::Relaxed) > 50, "{errno}: {served:?}");
    }
}
