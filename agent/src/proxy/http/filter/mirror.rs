//! Copies of requests, for a back end whose answers nobody waits for.
//!
//! The original is never slowed: what the copy's back end does not take in time is not
//! kept for it. Its request then breaks off, so that it does not take half a body for all.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::policy::{Filter, Mirror};

/// The copy of a request was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the copy fell behind its original")]
pub(in crate::proxy) struct FellBehind;

/// The copies that are to be made of one request. `random` is asked once for each mirror.
pub(in crate::proxy) fn wanted(
    filters: &[Filter],
    mut random: impl FnMut() -> u32,
) -> impl Iterator<Item = &Mirror> {
    let mirrors = filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(mirror) => Some(mirror),
        _ => None,
    });
    mirrors.filter(move |mirror| {
        // Scaled rather than reduced by remainder, so that each share is exact.
        let drawn = (u64::from(random()) * u64::from(mirror.denominator)) >> 32;
        drawn < u64::from(mirror.numerator)
    })
}

#[derive(Debug)]
enum Part {
    Frame(Frame<Bytes>),
    End,
}

/// The original body, of which a copy is made on the way.
#[derive(Debug)]
pub(in crate::proxy) struct Tee<B> {
    body: B,
    copy: Option<Sink>,
}

#[derive(Debug)]
struct Sink {
    parts: mpsc::UnboundedSender<Part>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

/// The copy of a body.
#[derive(Debug)]
pub(in crate::proxy) struct Copy {
    parts: mpsc::UnboundedReceiver<Part>,
    waiting: Arc<AtomicUsize>,
    size: SizeHint,
    ended: bool,
}

/// The body, and a copy of it that may be `limit` bytes behind.
pub(in crate::proxy) fn tee<B: Body<Data = Bytes>>(body: B, limit: usize) -> (Tee<B>, Copy) {
    // Bounded by bytes, which `waiting` counts.
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let ended = body.is_end_stream();
    let copy = Copy {
        parts: receiver,
        waiting: Arc::clone(&waiting),
        size: body.size_hint(),
        ended,
    };
    let sink = Sink {
        parts: sender,
        waiting,
        limit,
    };
    let copied = (!ended).then_some(sink);
    (Tee { body, copy: copied }, copy)
}

impl Sink {
    /// Takes a copy of the frame; false where the copy has fallen behind or is gone.
    fn take(&self, frame: &Frame<Bytes>) -> bool {
        let frame = if let Some(data) = frame.data_ref() {
            let before = self.waiting.fetch_add(data.len(), Ordering::Relaxed);
            if before + data.len() > self.limit {
                return false;
            }
            Frame::data(data.clone())
        } else if let Some(trailers) = frame.trailers_ref() {
            Frame::trailers(trailers.clone())
        } else {
            return true;
        };
        self.parts.send(Part::Frame(frame)).is_ok()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Tee<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        match &polled {
            Some(Ok(frame)) => {
                if self.copy.as_ref().is_some_and(|copy| !copy.take(frame)) {
                    self.copy = None;
                }
                // Whoever knows the length may not ask for the end of the stream.
                if self.body.is_end_stream()
                    && let Some(copy) = self.copy.take()
                {
                    let _gone = copy.parts.send(Part::End);
                }
            }
            None => {
                if let Some(copy) = self.copy.take() {
                    let _gone = copy.parts.send(Part::End);
                }
            }
            Some(Err(_)) => self.copy = None,
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for Copy {
    type Data = Bytes;
    type Error = FellBehind;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, FellBehind>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let part = std::task::ready!(self.parts.poll_recv(context));
        self.ended = !matches!(part, Some(Part::Frame(_)));
        Poll::Ready(match part {
            Some(Part::Frame(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let _before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                Some(Ok(frame))
            }
            Some(Part::End) => None,
            None => Some(Err(FellBehind)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::{Body as _, Frame};
    use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
    use tokio_stream::iter;

    use super::{FellBehind, tee, wanted};
    use crate::policy::{BackendTarget, Filter, Mirror};

    fn chunks(
        texts: &[&'static str],
    ) -> StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>>> {
        let frames: Vec<_> = texts
            .iter()
            .map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))))
            .collect();
        StreamBody::new(iter(frames))
    }

    #[tokio::test]
    async fn both_get_the_whole_body() {
        let (original, copy) = tee(chunks(&["ab", "cd"]), 4);
        assert_eq!(original.collect().await.unwrap().to_bytes(), "abcd");
        assert_eq!(copy.collect().await.unwrap().to_bytes(), "abcd");
    }

    #[tokio::test]
    async fn a_length_is_known_to_both_and_ends_both() {
        let (mut original, copy) = tee(Full::new(Bytes::from_static(b"abcd")), 4);
        assert_eq!(copy.size_hint().exact(), Some(4));
        let frame = original.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "abcd");
        assert!(original.is_end_stream());
        assert_eq!(copy.collect().await.unwrap().to_bytes(), "abcd");
    }

    #[tokio::test]
    async fn a_copy_that_falls_behind_breaks_off_and_the_original_goes_on() {
        let (original, copy) = tee(chunks(&["ab", "cd", "ef"]), 3);
        assert_eq!(original.collect().await.unwrap().to_bytes(), "abcdef");
        assert_eq!(copy.collect().await.unwrap_err(), FellBehind);
    }

    #[tokio::test]
    async fn an_original_that_breaks_off_breaks_its_copy() {
        let (original, copy) = tee(chunks(&["ab", "cd"]), 100);
        drop(original);
        assert_eq!(copy.collect().await.unwrap_err(), FellBehind);
    }

    #[tokio::test]
    async fn a_copy_that_nobody_reads_costs_the_original_nothing() {
        let (original, copy) = tee(chunks(&["ab", "cd"]), 100);
        drop(copy);
        assert_eq!(original.collect().await.unwrap().to_bytes(), "abcd");
    }

    #[tokio::test]
    async fn nothing_is_copied_as_nothing() {
        let (original, copy) = tee(Empty::<Bytes>::new(), 0);
        assert!(original.is_end_stream() && copy.is_end_stream());
        assert_eq!(copy.collect().await.unwrap().to_bytes(), "");
    }

    #[track_caller]
    fn share(numerator: u32, denominator: u32) -> usize {
        let filters = [Filter::Mirror(Mirror {
            target: BackendTarget::Invalid("test".into()),
            numerator,
            denominator,
        })];
        let draws = (0..1000u32).map(|step| step.wrapping_mul(u32::MAX / 1000));
        draws
            .filter(|&drawn| wanted(&filters, || drawn).count() == 1)
            .count()
    }

    #[test]
    fn the_share_of_requests_is_as_configured() {
        assert_eq!(share(0, 100), 0);
        assert_eq!(share(100, 100), 1000);
        assert!((100..=101).contains(&share(10, 100)));
        assert!((333..=335).contains(&share(1, 3)));
    }
}
