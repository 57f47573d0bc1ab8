//! What a client of HTTP/1.1 sends, before the parser reads it: whatever two readers could
//! take for different requests is spoiled on the way, so that the parser refuses it.
//!
//! ```text
//!        ┌────────────────────────── no body ──────────────────────────┐
//!        ▼                                                             │
//!      Head ─┬─ content-length ─► Length ──────────────────────────────┤
//!            └─ chunked ─► Size ─► Data ─► DataEnd ─► Size ..          │
//!                           └─ 0 ─► Trailers ──────────────────────────┘
//! ```
//! Refused: lines that end with LF alone, a CR anywhere else, folded lines, spaces around a
//! header's name, `content-length` with `transfer-encoding`, either of them twice, lengths
//! and sizes that are not plain numbers, codings other than `chunked`, framing headers in
//! trailers. A spoiled byte is NUL, which stands nowhere in HTTP/1.1.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::io::Io;
use super::owed::Owed;
use super::stall::{Stall, Timer};
use crate::proxy::config::HttpConfig;

/// The longest size of a chunk, in hexadecimal digits, and what may follow it in its line.
const SIZE_DIGITS: usize = 15;
const SIZE_LINE: usize = 256;

/// A client's bytes, of which the parser sees only what can be read in one way.
#[derive(Debug)]
pub(super) struct Strict {
    io: Io,
    framing: Framing,
    patience: Patience,
    owed: Owed,
    /// Of the client, which does not take what it is given.
    stall: Stall,
    stalled: bool,
}

/// Where in a request the next byte is.
#[derive(Debug, Default)]
pub(super) struct Framing {
    pub(super) place: Place,
    /// The line so far, where it came in pieces.
    line: Vec<u8>,
    head: Head,
    longest: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// Before the first byte of a request.
    #[default]
    Between,
    Head,
    Length(u64),
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    /// A line is longer than the parser takes: it says so.
    TooLong,
    /// It was refused: nothing more is read.
    Refused,
}

/// What the lines of a head have said of its body.
#[derive(Debug, Default)]
struct Head {
    lines: usize,
    length: Option<u64>,
    chunked: bool,
}

/// It can be read in two ways.
#[derive(Debug, PartialEq, Eq)]
struct Ambiguous;

impl Framing {
    /// Before the first request; no line of a head is longer than this.
    pub(super) fn new(longest: usize) -> Self {
        Self {
            longest,
            ..Self::default()
        }
    }

    /// Follows the bytes. From the first that is ambiguous on they are overwritten.
    pub(super) fn follow(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let Ok(taken) = self.step(&bytes[at..]) else {
                bytes[at..].fill(0);
                self.place = Place::Refused;
                return;
            };
            at += taken;
        }
    }

    /// Takes some of what is left, which is not empty.
    fn step(&mut self, rest: &[u8]) -> Result<usize, Ambiguous> {
        match self.place {
            Place::TooLong => Ok(rest.len()),
            Place::Refused => Err(Ambiguous),
            Place::Length(left) => {
                let taken = take(left, rest.len());
                let left = left - taken as u64;
                self.place = if left == 0 {
                    Place::Between
                } else {
                    Place::Length(left)
                };
                Ok(taken)
            }
            Place::Data(left) => {
                let taken = take(left, rest.len());
                let left = left - taken as u64;
                self.place = if left == 0 {
                    Place::DataEnd
                } else {
                    Place::Data(left)
                };
                Ok(taken)
            }
            Place::Between | Place::Head | Place::Size | Place::DataEnd | Place::Trailers => {
                self.collect(rest)
            }
        }
    }

    /// Takes a line, or what there is of it.
    fn collect(&mut self, rest: &[u8]) -> Result<usize, Ambiguous> {
        if self.place == Place::Between {
            self.place = Place::Head;
            self.head = Head::default();
        }
        let found = rest.iter().position(|byte| *byte == b'\n');
        let taken = found.map_or(rest.len(), |at| at + 1);
        let limit = match self.place {
            Place::Size | Place::DataEnd => SIZE_LINE,
            _ => self.longest,
        };
        if found.is_none() || !self.line.is_empty() {
            if self.line.len() + taken > limit {
                // Too long for anybody: the parser says so of a head.
                self.place = if limit == SIZE_LINE {
                    Place::Refused
                } else {
                    Place::TooLong
                };
                self.line = Vec::new();
                return if limit == SIZE_LINE {
                    Err(Ambiguous)
                } else {
                    Ok(taken)
                };
            }
            self.line.extend_from_slice(&rest[..taken]);
            if found.is_none() {
                return Ok(taken);
            }
            let line = std::mem::take(&mut self.line);
            self.end_line(&line)?;
            self.line = line;
            self.line.clear();
        } else {
            self.end_line(&rest[..taken])?;
        }
        Ok(taken)
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        let line = line.strip_suffix(b"\r\n").ok_or(Ambiguous)?;
        if line.contains(&b'\r') || line.contains(&0) {
            return Err(Ambiguous);
        }
        match self.place {
            Place::DataEnd => {
                if !line.is_empty() {
                    return Err(Ambiguous);
                }
                self.place = Place::Size;
            }
            Place::Size => {
                self.place = match size(line)? {
                    0 => Place::Trailers,
                    size => Place::Data(size),
                };
            }
            Place::Trailers if line.is_empty() => self.place = Place::Between,
            Place::Trailers => {
                let (name, _) = header(line)?;
                if is_framing(name) {
                    return Err(Ambiguous);
                }
            }
            _ => self.head_line(line)?,
        }
        Ok(())
    }

    fn head_line(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        if self.head.lines == 0 {
            // An empty line before a request is nothing (RFC 9112, section 2.2).
            self.head.lines = usize::from(!line.is_empty());
            return Ok(());
        }
        if line.is_empty() {
            self.place = match (self.head.length, self.head.chunked) {
                (Some(_), true) => return Err(Ambiguous),
                (Some(0) | None, false) => Place::Between,
                (Some(length), false) => Place::Length(length),
                (None, true) => Place::Size,
            };
            return Ok(());
        }
        self.head.lines += 1;
        let (name, value) = header(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.head.length.is_some() || self.head.chunked {
                return Err(Ambiguous);
            }
            self.head.length = Some(decimal(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let chunked = value.eq_ignore_ascii_case(b"chunked");
            if !chunked || self.head.chunked || self.head.length.is_some() {
                return Err(Ambiguous);
            }
            self.head.chunked = true;
        }
        Ok(())
    }
}

fn take(left: u64, there: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(there)
}

/// A header line's name and value. A folded line has no name.
fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Ambiguous> {
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or(Ambiguous)?;
    let name = &line[..colon];
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(is_token) {
        return Err(Ambiguous);
    }
    Ok((name, line[colon + 1..].trim_ascii()))
}

fn is_framing(name: &[u8]) -> bool {
    [&b"content-length"[..], b"transfer-encoding", b"host"]
        .iter()
        .any(|framing| name.eq_ignore_ascii_case(framing))
}

fn decimal(value: &[u8]) -> Result<u64, Ambiguous> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Ambiguous);
    }
    let digit = |number: u64, digit: &u8| number * 10 + u64::from(digit - b'0');
    Ok(value.iter().fold(0, digit))
}

/// The size of a chunk, without its extensions.
fn size(line: &[u8]) -> Result<u64, Ambiguous> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (number, rest) = line.split_at(digits);
    let extended = rest.is_empty() || rest.trim_ascii_start().starts_with(b";");
    if digits == 0 || digits > SIZE_DIGITS || !extended {
        return Err(Ambiguous);
    }
    let text = std::str::from_utf8(number).map_err(|_not_ascii| Ambiguous)?;
    u64::from_str_radix(text, 16).map_err(|_too_large| Ambiguous)
}

/// How long a client is waited for, by where it is in a request. A request costs a look at
/// the clock.
#[derive(Debug)]
struct Patience {
    idle: Duration,
    head: Duration,
    body: Duration,
    /// Since when nothing came; `None`: something just did.
    since: Option<Instant>,
    /// Since when the head is not whole.
    head_since: Option<Instant>,
    timer: Timer,
}

/// A client has had its time.
#[derive(Debug, PartialEq, Eq)]
enum Late {
    /// Between two requests: it is let go.
    Idle,
    /// Within one.
    Slow,
}

impl Patience {
    fn new(config: &HttpConfig) -> Self {
        Self {
            idle: config.client_idle,
            head: config.head_timeout,
            body: config.body_idle,
            since: None,
            head_since: None,
            timer: Timer::default(),
        }
    }

    fn came(&mut self, place: Place) {
        self.since = None;
        if place == Place::Head {
            let _first = self.head_since.get_or_insert_with(Instant::now);
        } else {
            self.head_since = None;
        }
    }

    /// Nothing came: is ready once that has been so for too long.
    fn poll(&mut self, cx: &mut Context<'_>, place: Place) -> Poll<Late> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let (end, late) = match place {
            Place::TooLong | Place::Refused => return Poll::Pending,
            Place::Between => (since + self.idle, Late::Idle),
            Place::Head => (self.head_since.unwrap_or(since) + self.head, Late::Slow),
            Place::Length(_) | Place::Size | Place::Data(_) | Place::DataEnd | Place::Trailers => {
                (since + self.body, Late::Slow)
            }
        };
        ready!(self.timer.poll(cx, end));
        Poll::Ready(late)
    }
}

impl Strict {
    /// A client that is `owed` an answer is not idle.
    pub(super) fn new(io: Io, config: &HttpConfig, owed: Owed) -> Self {
        Self {
            io,
            framing: Framing::new(config.head_bytes),
            patience: Patience::new(config),
            owed,
            stall: Stall::new(config.body_idle),
            stalled: false,
        }
    }

    /// The client took nothing for too long, or until what it was given was over.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Ends what is written to a client that does not take it.
    fn watch(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall.moved();
            return written;
        }
        let slow = match self.owed.poll_over(cx) {
            Poll::Ready(()) => None,
            Poll::Pending => Some(ready!(self.stall.poll(cx))),
        };
        self.owed.break_off(slow);
        self.stalled = true;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Some of what was read is not what the client has sent.
    pub(super) fn is_spoiled(&self) -> bool {
        self.framing.place == Place::Refused
    }

    /// The stream itself, for what is spoken on it afterwards.
    pub(super) fn into_inner(self) -> Io {
        self.io
    }
}

impl AsyncRead for Strict {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.framing.place == Place::Refused {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                this.framing.follow(&mut buffer.filled_mut()[before..]);
                this.patience.came(this.framing.place);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if this.framing.place == Place::Between && this.owed.is_any() => {
                this.patience.came(Place::Between);
                Poll::Pending
            }
            Poll::Pending => match ready!(this.patience.poll(cx, this.framing.place)) {
                // As if it had ended by itself.
                Late::Idle => Poll::Ready(Ok(())),
                Late::Slow => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            },
        }
    }
}

impl AsyncWrite for Strict {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{Framing, Place};

    fn framing() -> Framing {
        Framing::new(4096)
    }

    /// However the bytes are cut, the same is refused, and what was let through before is
    /// not a whole request.
    #[track_caller]
    fn check_refused(text: &str) {
        for cut in 1..=text.len() {
            let (mut first, mut second) = (text.as_bytes().to_vec(), Vec::new());
            second.extend(first.drain(cut..));
            let mut framing = framing();
            framing.follow(&mut first);
            framing.follow(&mut second);
            assert_eq!(framing.place, Place::Refused, "{text:?} cut at {cut}");
            let passed = [first, second].concat();
            assert!(passed.contains(&0), "{text:?} cut at {cut}");
        }
    }

    #[track_caller]
    fn check_passed(text: &str, end: Place) {
        for cut in 0..=text.len() {
            let mut bytes = text.as_bytes().to_vec();
            let mut framing = framing();
            let (first, second) = bytes.split_at_mut(cut);
            framing.follow(first);
            framing.follow(second);
            assert_eq!(framing.place, end, "{text:?} cut at {cut}");
            assert_eq!(bytes, text.as_bytes(), "cut at {cut}");
        }
    }

    const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

    #[test]
    fn requests_pass_as_they_are() {
        check_passed("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Place::Between);
        check_passed("\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Place::Between);
        check_passed(
            "POST / HTTP/1.1\r\nContent-Length:5\r\n\r\nhelloGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            Place::Between,
        );
        let body = "5;x=y\r\nhel\nl\r\n00A\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n";
        check_passed(&format!("{CHUNKED}{body}"), Place::Between);
        check_passed(&format!("{CHUNKED}5\r\nhe"), Place::Data(3));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_spoiled() {
        let head =
            |lines: &str| check_refused(&format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n"));
        head("content-length: 5\r\ntransfer-encoding: chunked");
        head("transfer-encoding: chunked\r\ncontent-length: 5");
        head("content-length: 5\r\ncontent-length: 5");
        head("content-length: 5, 5");
        head("content-length: +5");
        head("content-length: 0x5");
        head("content-length: 99999999999999999999");
        head("content-length:");
        head("transfer-encoding: gzip, chunked");
        head("transfer-encoding: identity");
        head("transfer-encoding: chunked\r\ntransfer-encoding: chunked");
        head("transfer-encoding: \u{b}chunked");
        head("content-length : 5");
        head("content length: 5");
        head("x: 1\r\n folded");
        head("x: 1\r\n\tfolded");
        head("x: 1\nsmuggled: 1");
        head("x: 1\rsmuggled: 1");
        head(": no name");
        head("no colon");
        head("x: \0");
    }

    #[test]
    fn chunks_that_lie_are_spoiled() {
        let body = |text: &str| check_refused(&format!("{CHUNKED}{text}"));
        body("5\nhello\r\n0\r\n\r\n");
        body("5\r\nhello0\r\n\r\n");
        body("5\r\nhello\n0\r\n\r\n");
        body("-5\r\nhello\r\n");
        body("+5\r\nhello\r\n");
        body("0x5\r\nhello\r\n");
        body("5 6\r\nhello\r\n");
        body("\r\n");
        body("10000000000000000\r\n");
        body("0\r\ncontent-length: 5\r\n\r\n");
        body("0\r\ntransfer-encoding: chunked\r\n\r\n");
        body("0\r\nx: 1\n\r\n");
    }

    #[test]
    fn another_protocol_before_it_is_agreed_on_is_spoiled() {
        let head = "GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n";
        check_refused(&format!("{head}\x01\n\x02"));
    }

    #[test]
    fn a_line_without_end_is_left_to_the_parser() {
        let mut bytes = b"GET /".to_vec();
        bytes.resize(5000, b'x');
        let mut framing = framing();
        framing.follow(&mut bytes);
        assert_eq!(framing.place, Place::TooLong);
        assert!(!bytes.contains(&0));
    }
}
