//! Request bodies that can be sent again.
//!
//! What the first attempt took of the client's body is kept, so that the next attempt begins
//! with it and goes on where the last one stopped reading. The bytes are shared, not copied.
//! A body that grows over its limit, or that its pod has no memory left for, is streamed as
//! any other from there on, and its request is not repeated any more.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::lock::lock;

/// Memory for bodies of one pod, as its account gives it.
pub(in crate::proxy) trait Reserve: Send + 'static {
    /// Takes so many bytes more; false: there are none left.
    fn grow(&mut self, bytes: usize) -> bool;
}

/// What the attempts of one request share.
#[derive(Debug)]
struct Store<B, R> {
    /// The client's body, with what was not read yet.
    rest: B,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// What may still be kept; `None`: the request is not to be repeated.
    room: Option<(usize, R)>,
    /// Only the latest attempt may read.
    attempt: u32,
}

/// Makes a body for each attempt.
#[derive(Debug)]
pub(in crate::proxy) struct Replay<B, R> {
    store: Arc<Mutex<Store<B, R>>>,
}

/// The body of one attempt.
#[derive(Debug)]
pub(in crate::proxy) struct ReplayBody<B, R> {
    store: Arc<Mutex<Store<B, R>>>,
    attempt: u32,
    position: usize,
    trailers_sent: bool,
}

/// A later attempt has the body now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request was sent again elsewhere")]
pub(in crate::proxy) struct Superseded;

impl<B: Body<Data = Bytes> + Unpin, R: Reserve> Replay<B, R> {
    /// Keeps up to `limit` bytes, of `memory`.
    pub(in crate::proxy) fn new(body: B, limit: usize, memory: R) -> Self {
        // What is known to be too long is not kept in vain.
        let fits = body.size_hint().lower() <= limit as u64;
        let store = Store {
            rest: body,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            ended: false,
            room: fits.then_some((limit, memory)),
            attempt: 0,
        };
        Self {
            store: Arc::new(Mutex::new(store)),
        }
    }

    /// The body of the next attempt; `None` where what was read already is not all there.
    pub(in crate::proxy) fn next(&self) -> Option<ReplayBody<B, R>> {
        let mut store = lock(&self.store);
        if store.attempt > 0 && store.room.is_none() {
            return None;
        }
        store.attempt += 1;
        Some(ReplayBody {
            store: Arc::clone(&self.store),
            attempt: store.attempt,
            position: 0,
            trailers_sent: false,
        })
    }

    /// There will be no other attempt: nothing more is kept.
    pub(in crate::proxy) fn settle(&self) {
        lock(&self.store).room = None;
    }

    /// Another attempt can still be made.
    pub(in crate::proxy) fn can_repeat(&self) -> bool {
        lock(&self.store).room.is_some()
    }
}

impl<B: Body<Data = Bytes> + Unpin, R: Reserve> Store<B, R> {
    /// Keeps what an attempt has just read, if there is room.
    fn keep(&mut self, data: &Bytes) -> bool {
        let Some((limit, memory)) = &mut self.room else {
            return false;
        };
        let bytes = self.kept_bytes + data.len();
        if bytes > *limit || !memory.grow(data.len()) {
            self.room = None;
            return false;
        }
        self.kept_bytes = bytes;
        self.kept.push(data.clone());
        true
    }

    /// What no attempt will need any more.
    fn forget(&mut self) {
        self.kept = Vec::new();
        self.kept_bytes = 0;
    }
}

impl<B: Body<Data = Bytes> + Unpin, R: Reserve> ReplayBody<B, R> {
    fn poll_rest(
        store: &mut Store<B, R>,
        position: &mut usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if store.ended {
            return Poll::Ready(None);
        }
        match std::task::ready!(Pin::new(&mut store.rest).poll_frame(context)) {
            None => {
                store.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                // The client's half is broken: no attempt can be complete.
                store.room = None;
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if store.keep(data) {
                        *position += 1;
                    } else {
                        store.forget();
                        *position = 0;
                    }
                } else if let Some(trailers) = frame.trailers_ref()
                    && store.room.is_some()
                {
                    store.trailers = Some(trailers.clone());
                    store.ended = true;
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl<B, R> Body for ReplayBody<B, R>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: From<Superseded>,
    R: Reserve,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let mut store = lock(&this.store);
        if store.attempt != this.attempt {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if let Some(data) = store.kept.get(this.position) {
            this.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if let Some(trailers) = &store.trailers {
            let trailers = (!this.trailers_sent).then(|| Ok(Frame::trailers(trailers.clone())));
            this.trailers_sent = true;
            return Poll::Ready(trailers);
        }
        let polled = Self::poll_rest(&mut store, &mut this.position, context);
        this.trailers_sent = store.trailers.is_some();
        polled
    }

    fn is_end_stream(&self) -> bool {
        let store = lock(&self.store);
        let sent = self.position >= store.kept.len();
        let trailers = self.trailers_sent || store.trailers.is_none();
        sent && trailers && (store.ended || store.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let store = lock(&self.store);
        let waiting: usize = store.kept.iter().skip(self.position).map(Bytes::len).sum();
        let rest = store.rest.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + waiting as u64);
        }
        hint.set_lower(rest.lower() + waiting as u64);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};
    use http_body::{Body, Frame, SizeHint};
    use http_body_util::BodyExt as _;

    use super::{Replay, Reserve, Superseded};

    /// Frames as they come; a gap is a client that waits.
    struct Script(VecDeque<Option<Result<Frame<Bytes>, Broken>>>);

    #[derive(Debug, PartialEq, Eq)]
    enum Broken {
        Client,
        Superseded,
    }

    impl From<Superseded> for Broken {
        fn from(_: Superseded) -> Self {
            Self::Superseded
        }
    }

    impl Body for Script {
        type Data = Bytes;
        type Error = Broken;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
            match self.0.pop_front() {
                Some(Some(frame)) => Poll::Ready(Some(frame)),
                Some(None) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }

        fn size_hint(&self) -> SizeHint {
            let frames = self
                .0
                .iter()
                .flatten()
                .filter_map(|frame| frame.as_ref().ok());
            SizeHint::with_exact(
                frames
                    .filter_map(Frame::data_ref)
                    .map(|d| d.len() as u64)
                    .sum(),
            )
        }
    }

    struct Memory(usize);

    impl Reserve for Memory {
        fn grow(&mut self, bytes: usize) -> bool {
            let left = self.0.checked_sub(bytes);
            self.0 = left.unwrap_or(self.0);
            left.is_some()
        }
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "an entry of a script, of which `None` is another"
    )]
    fn data(text: &'static str) -> Option<Result<Frame<Bytes>, Broken>> {
        Some(Ok(Frame::data(Bytes::from_static(text.as_bytes()))))
    }

    fn script(frames: impl IntoIterator<Item = Option<Result<Frame<Bytes>, Broken>>>) -> Script {
        Script(frames.into_iter().collect())
    }

    async fn text(body: impl Body<Data = Bytes, Error = Broken>) -> (String, Option<HeaderMap>) {
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        let bytes = collected.to_bytes();
        (String::from_utf8(bytes.to_vec()).unwrap(), trailers)
    }

    #[tokio::test]
    async fn each_attempt_has_the_whole_body() {
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-sum"),
            HeaderValue::from_static("7"),
        )]);
        let end = Some(Ok(Frame::trailers(trailers.clone())));
        let replay = Replay::new(script([data("ab"), data("cd"), end]), 100, Memory(100));
        for _attempt in 0..3 {
            let body = replay.next().unwrap();
            assert_eq!(body.size_hint().exact(), Some(4));
            assert_eq!(
                text(body).await,
                ("abcd".to_owned(), Some(trailers.clone()))
            );
        }
    }

    #[tokio::test]
    async fn an_attempt_that_failed_half_way_is_repeated_from_the_start() {
        let replay = Replay::new(script([data("ab"), data("cd")]), 100, Memory(100));
        let mut first = replay.next().unwrap();
        let frame = first.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "ab");
        let second = replay.next().unwrap();
        assert_eq!(second.size_hint().exact(), Some(4));
        let late = first.frame().await.unwrap().unwrap_err();
        assert_eq!(late, Broken::Superseded);
        assert_eq!(text(second).await.0, "abcd");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_streamed_once() {
        let replay = Replay::new(
            script([data("abc"), None, data("def"), data("g")]),
            100,
            Memory(5),
        );
        let mut first = replay.next().unwrap();
        let _abc = first.frame().await.unwrap().unwrap();
        assert!(replay.can_repeat());
        let waker = std::task::Waker::noop();
        let mut context = Context::from_waker(waker);
        assert!(Pin::new(&mut first).poll_frame(&mut context).is_pending());
        assert_eq!(text(first).await.0, "defg");
        assert!(!replay.can_repeat());
        assert!(replay.next().is_none());
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_not_kept_at_all() {
        let replay = Replay::new(script([data("abcdef")]), 5, Memory(100));
        assert!(!replay.can_repeat());
        assert_eq!(text(replay.next().unwrap()).await.0, "abcdef");
        assert!(replay.next().is_none());
    }

    #[tokio::test]
    async fn once_settled_the_rest_streams_and_nothing_is_repeated() {
        let replay = Replay::new(script([data("ab"), data("cd")]), 100, Memory(100));
        let mut first = replay.next().unwrap();
        let _ab = first.frame().await.unwrap().unwrap();
        replay.settle();
        assert_eq!(text(first).await.0, "cd");
        assert!(replay.next().is_none());
    }

    #[tokio::test]
    async fn a_client_that_broke_off_is_not_repeated() {
        let broken = Some(Err(Broken::Client));
        let replay = Replay::new(script([data("ab"), broken]), 100, Memory(100));
        let first = replay.next().unwrap();
        assert_eq!(first.collect().await.unwrap_err(), Broken::Client);
        assert!(!replay.can_repeat());
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once_each_time() {
        let replay = Replay::new(
            http_body_util::Empty::<Bytes>::new().map_err(|never| match never {}),
            0,
            Memory(0),
        );
        for _attempt in 0..2 {
            let body = replay.next().unwrap();
            assert!(body.is_end_stream());
            assert_eq!(text(body).await.0, "");
        }
    }
}
