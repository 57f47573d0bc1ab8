//! What a client speaks, by its first bytes. They are looked at where they are and stay
//! there: what is not HTTP is relayed as it came.

use std::future::poll_fn;
use std::io;
use std::task::{Poll, ready};

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxy::config::HttpConfig;
use crate::proxy::reach::Stream;
use crate::proxy::relay::with_scratch;
use crate::proxy::tunnel::HboneStream;

/// What a client's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Speaks {
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// Anything else, or nothing at all.
    Other,
}

/// How every client of HTTP/2 begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's head.
const SETTINGS_HEAD: usize = 9;
/// Longer than any method that is in use.
const LONGEST_METHOD: usize = 24;
/// What has not shown by then what it is has a target too long for any server: it is left to
/// the parser of HTTP to say so.
const ENOUGH: usize = 16 << 10;

/// What these first bytes are; `None`: too few to tell.
pub(in crate::proxy) fn classify(bytes: &[u8]) -> Option<Speaks> {
    let common = bytes.len().min(PREFACE.len());
    if common > 0 && bytes[..common] == PREFACE[..common] {
        return (common == PREFACE.len()).then_some(Speaks::Http2);
    }
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    let method = bytes.iter().take_while(|byte| is_method(byte)).count();
    if method > LONGEST_METHOD {
        return Some(Speaks::Other);
    }
    let Some((b' ', rest)) = bytes[method..].split_first() else {
        return (method < bytes.len()).then_some(Speaks::Other);
    };
    let target = rest.iter().take_while(|byte| **byte > b' ').count();
    if method == 0 || (target == 0 && !rest.is_empty()) {
        return Some(Speaks::Other);
    }
    let Some((b' ', version)) = rest[target..].split_first() else {
        let long = bytes.len() >= ENOUGH;
        let told = target < rest.len();
        return told
            .then_some(Speaks::Other)
            .or(long.then_some(Speaks::Http1));
    };
    let expected = b"HTTP/1.";
    let common = version.len().min(expected.len());
    if version[..common] != expected[..common] {
        return Some(Speaks::Other);
    }
    (common == expected.len()).then_some(Speaks::Http1)
}

/// Waits for the first bytes of a client, and leaves them. Cancel safe.
pub(in crate::proxy) async fn first_bytes(stream: &mut Stream) -> Speaks {
    match stream {
        Stream::Tcp(stream) => of_socket(stream).await,
        Stream::Hbone(stream) => of_tunnel(stream).await,
    }
}

/// Likewise, of a client that has to speak for anything to be done: `None` where it says
/// nothing for as long as it may between two requests. What it then says is a beginning in
/// the time that a head may take, or no HTTP.
pub(in crate::proxy) async fn in_time(stream: &mut Stream, config: &HttpConfig) -> Option<Speaks> {
    match stream {
        Stream::Tcp(stream) => of_socket_in_time(stream, config).await,
        Stream::Hbone(stream) => {
            let said = poll_fn(|cx| stream.poll_peek(cx, 0).map(drop));
            timeout(config.client_idle, said).await.ok()?;
            let told = timeout(config.head_timeout, of_tunnel(stream)).await;
            Some(told.unwrap_or(Speaks::Other))
        }
    }
}

/// Likewise, of a socket.
pub(in crate::proxy) async fn of_socket_in_time(
    stream: &TcpStream,
    config: &HttpConfig,
) -> Option<Speaks> {
    let said = look(stream, |bytes| (!bytes.is_empty()).then_some(()));
    let _bytes = timeout(config.client_idle, said).await.ok()?;
    let told = timeout(config.head_timeout, of_socket(stream)).await;
    Some(told.unwrap_or(Speaks::Other))
}

/// Waits for the first bytes of a socket, and leaves them. Cancel safe.
pub(in crate::proxy) async fn of_socket(stream: &TcpStream) -> Speaks {
    let speaks = look(stream, classify).await;
    speaks.unwrap_or(Speaks::Other)
}

/// Looks at the first bytes of a socket until they tell something, and leaves them. `None`
/// where it ends, or where there is no room for more, before they do. Cancel safe.
pub(in crate::proxy) async fn look<T>(
    stream: &TcpStream,
    tell: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    loop {
        let ready = stream.ready(Interest::READABLE).await.ok()?;
        let looked = stream.try_io(Interest::READABLE, || {
            with_scratch(|scratch| {
                let (count, _filled) = recv(stream, &mut scratch[..ENOUGH], RecvFlags::PEEK)?;
                match tell(&scratch[..count]) {
                    Some(told) => Ok(Some(told)),
                    None if count == 0 || count == ENOUGH || ready.is_read_closed() => Ok(None),
                    // Told so, the runtime waits for more than what is there already.
                    None => Err(io::ErrorKind::WouldBlock.into()),
                }
            })
        });
        match looked {
            Ok(told) => return told,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_reset) => return None,
        }
    }
}

async fn of_tunnel(stream: &mut HboneStream) -> Speaks {
    let mut known = 0;
    poll_fn(|cx| {
        loop {
            let Ok(bytes) = ready!(stream.poll_peek(cx, known)) else {
                return Speaks::Other.into();
            };
            if let Some(speaks) = classify(bytes) {
                return speaks.into();
            }
            if bytes.len() <= known {
                return Speaks::Other.into();
            }
            known = bytes.len();
        }
    })
    .await
}

/// Waits until a server speaks before its client does, or ends. A server of HTTP/2 has no
/// need to wait for its client's preface before it sends its settings: that is not it.
pub(in crate::proxy) async fn server_first(stream: &mut Stream) {
    match stream {
        Stream::Tcp(stream) => server_first_of_socket(stream).await,
        Stream::Hbone(stream) => {
            let mut known = 0;
            poll_fn(|cx| {
                loop {
                    let Ok(bytes) = ready!(stream.poll_peek(cx, known)) else {
                        return Poll::Ready(());
                    };
                    match is_settings(bytes) {
                        Some(true) => return Poll::Pending,
                        Some(false) => return Poll::Ready(()),
                        None if bytes.len() <= known => return Poll::Ready(()),
                        None => known = bytes.len(),
                    }
                }
            })
            .await;
        }
    }
}

/// Likewise, of a socket.
pub(in crate::proxy) async fn server_first_of_socket(stream: &TcpStream) {
    if look(stream, is_settings).await == Some(true) {
        std::future::pending::<()>().await;
    }
}

/// The beginning of SETTINGS (RFC 9113, sections 4.1 and 6.5); `None`: too few bytes to tell.
pub(in crate::proxy) fn is_settings(bytes: &[u8]) -> Option<bool> {
    let fits = |(at, byte): (usize, &u8)| match at {
        0 | 4..SETTINGS_HEAD => *byte == 0,
        3 => *byte == 4,
        _ => true,
    };
    if !bytes.iter().enumerate().all(fits) {
        return Some(false);
    }
    let length = u16::from_be_bytes([*bytes.get(1)?, *bytes.get(2)?]);
    if bytes.len() < SETTINGS_HEAD {
        return (length % 6 != 0).then_some(false);
    }
    Some(length % 6 == 0)
}

#[cfg(test)]
mod tests {
    use super::{ENOUGH, PREFACE, Speaks, classify, is_settings};

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<Speaks>) {
        assert_eq!(classify(bytes), expected, "{:?}", bytes.escape_ascii());
    }

    /// However the bytes are cut, what is told does not change with more of them.
    #[track_caller]
    fn check_whole(bytes: &[u8], expected: Speaks) {
        check(bytes, Some(expected));
        for cut in 0..bytes.len() {
            let told = classify(&bytes[..cut]);
            assert!(told.is_none_or(|told| told == expected), "cut at {cut}");
        }
    }

    #[test]
    fn requests_are_http() {
        check_whole(b"GET / HTTP/1.1\r\n", Speaks::Http1);
        check_whole(b"POST /a?b=c HTTP/1.0\r\n", Speaks::Http1);
        check_whole(b"OPTIONS * HTTP/1.1\r\n", Speaks::Http1);
        check_whole(b"CONNECT a:443 HTTP/1.1\r\n", Speaks::Http1);
        check_whole(b"VERSION-CONTROL /x HTTP/1.1\r\n", Speaks::Http1);
        check_whole(b"GET http://shop/ HTTP/1.1\r\n", Speaks::Http1);
        check_whole(PREFACE, Speaks::Http2);
    }

    #[test]
    fn what_resembles_requests_is_not_http() {
        check_whole(b"OPTIONS rtsp://camera RTSP/1.0\r\n", Speaks::Other);
        check_whole(b"OPTIONS sip:carol SIP/2.0\r\n", Speaks::Other);
        check_whole(b"GET /\r\n", Speaks::Other);
        check_whole(b"EHLO mail.example\r\n", Speaks::Other);
        check_whole(b"PING\r\n", Speaks::Other);
        check_whole(b"get / HTTP/1.1\r\n", Speaks::Other);
        check_whole(b"GET  / HTTP/1.1\r\n", Speaks::Other);
        check_whole(b"PRI * HTTP/2.0\r\n\r\nXX", Speaks::Other);
        check_whole(b"\x16\x03\x01\x02\x00\x01", Speaks::Other);
        check_whole(b" / HTTP/1.1\r\n", Speaks::Other);
        check_whole(&[b'A'; 25], Speaks::Other);
        check_whole(b"\0", Speaks::Other);
    }

    #[test]
    fn too_few_bytes_tell_nothing() {
        for bytes in [
            &b""[..],
            b"G",
            b"GET ",
            b"GET /x",
            b"GET / HTTP/1",
            b"PRI * HTTP/2.0",
        ] {
            check(bytes, None);
        }
    }

    #[test]
    fn a_target_without_end_is_left_to_the_parser() {
        let mut bytes = b"GET /".to_vec();
        bytes.resize(ENOUGH, b'x');
        check(&bytes, Some(Speaks::Http1));
    }

    #[test]
    fn only_settings_of_http2_are_settings() {
        let settings = [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
        for cut in 0..settings.len() {
            let told = is_settings(&settings[..cut]);
            assert_eq!(told, (cut >= 9).then_some(true), "cut at {cut}");
        }
        assert_eq!(is_settings(b"220 mail.example ESMTP\r\n"), Some(false));
        assert_eq!(is_settings(b"SSH-2.0-x"), Some(false));
        // The greeting of MySQL: a length, a number, a version.
        assert_eq!(is_settings(&[0x4a, 0, 0, 0, 10, 0x38]), Some(false));
        assert_eq!(is_settings(&[0, 0, 11, 4]), Some(false));
    }
}
