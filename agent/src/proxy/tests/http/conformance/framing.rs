//! What RFC 9113 says of connections, frames and streams: sections `http2/3.5` to `http2/5.5`.

use super::BODY;
use super::wire::{
    CLOSED, COMPRESSION, CONTINUATION, Case, DATA, END_HEADERS, END_STREAM, Expect, GENERIC,
    HEADERS, PING, PROTOCOL, REFUSED, SIZE, Script, TOO_LARGE, WHOLE, WITH_PRIORITY, case, head,
    say,
};

pub(super) fn cases() -> Vec<Case> {
    let parts = [
        frames(),
        headers(),
        idle(),
        half_closed(),
        closed(),
        identifiers(),
        errors(),
    ];
    parts.into_iter().flatten().collect()
}

fn hello() -> Script {
    say().hello()
}

/// Sections 3.5, 4.1 and 4.2.
fn frames() -> Vec<Case> {
    let long = head("GET", &[("x-long", &"x".repeat(120))]);
    let long = [&long[..], &long[45..].repeat(600)].concat();
    vec![
        case("http2/3.5/1 a preface", hello(), Expect::Settings),
        case(
            "http2/3.5/2 no preface",
            say().raw(b"INVALID CONNECTION PREFACE\r\n\r\n"),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/4.1/1 an unknown type of frame",
            hello().frame(0xff, 0, 0, &[0; 8]).ping(),
            Expect::Pong,
        ),
        case(
            "http2/4.1/2 undefined flags",
            hello().frame(PING, 0x16, 0, b"fairlead"),
            Expect::Pong,
        ),
        case(
            "http2/4.1/3 the reserved bit",
            hello().frame(PING, 0, 1 << 31, b"fairlead"),
            Expect::Pong,
        ),
        case(
            "http2/4.2/1 DATA of 16384 bytes",
            hello().post(1).frame(DATA, END_STREAM, 1, &[0; 16384]),
            Expect::Answer(1),
        ),
        case(
            "http2/4.2/2 DATA beyond SETTINGS_MAX_FRAME_SIZE",
            hello().post(1).frame(DATA, END_STREAM, 1, &[0; TOO_LARGE]),
            Expect::Reset(&[SIZE]),
        ),
        case(
            "http2/4.2/3 HEADERS beyond SETTINGS_MAX_FRAME_SIZE",
            hello().frame(HEADERS, WHOLE, 1, &long),
            Expect::End(&[SIZE]),
        ),
    ]
}

/// Section 4.3.
fn headers() -> Vec<Case> {
    let get = head("GET", &[]);
    let begun = || hello().frame(HEADERS, END_STREAM, 1, &get);
    vec![
        case(
            "http2/4.3/1 an invalid block",
            hello().ask(&[&get[..], &[0x40]].concat()),
            Expect::End(&[COMPRESSION]),
        )
        .but(GENERIC),
        case(
            "http2/4.3/2 PRIORITY within a block",
            begun().priority(1, 0, 255),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/4.3/3 HEADERS of another stream within a block",
            begun().get(3),
            Expect::End(&[PROTOCOL]),
        ),
    ]
}

/// Section 5.1, idle.
fn idle() -> Vec<Case> {
    let get = head("GET", &[]);
    vec![
        case(
            "http2/5.1/1 idle: DATA",
            hello().data(END_STREAM, 1),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/5.1/2 idle: RST_STREAM",
            hello().reset(1, 8),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/5.1/3 idle: WINDOW_UPDATE",
            hello().window(1, 100),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/5.1/4 idle: CONTINUATION",
            hello().frame(CONTINUATION, END_HEADERS, 1, &get),
            Expect::End(&[PROTOCOL]),
        ),
    ]
}

/// Section 5.1, half-closed (remote).
fn half_closed() -> Vec<Case> {
    let get = head("GET", &[]);
    vec![
        case(
            "http2/5.1/5 half-closed (remote): DATA",
            hello().get(1).data(END_STREAM, 1),
            Expect::Reset(&[CLOSED]),
        )
        .but(GENERIC),
        case(
            "http2/5.1/6 half-closed (remote): HEADERS",
            hello().get(1).get(1),
            Expect::Reset(&[CLOSED]),
        )
        .but(GENERIC),
        case(
            "http2/5.1/7 half-closed (remote): CONTINUATION",
            hello().get(1).frame(CONTINUATION, END_HEADERS, 1, &get),
            Expect::End(&[CLOSED, PROTOCOL]),
        ),
    ]
}

/// Section 5.1, closed.
fn closed() -> Vec<Case> {
    let get = head("GET", &[]);
    let reset = || hello().post(1).reset(1, 8);
    let over = || hello().get(1).hear(Expect::Data(BODY.len()));
    vec![
        case(
            "http2/5.1/8 closed by RST_STREAM: DATA",
            reset().data(END_STREAM, 1),
            Expect::Reset(&[CLOSED]),
        ),
        case(
            "http2/5.1/9 closed by RST_STREAM: HEADERS",
            reset().get(1),
            Expect::Reset(&[CLOSED]),
        )
        .but(GENERIC),
        case(
            "http2/5.1/10 closed by RST_STREAM: CONTINUATION",
            reset().frame(CONTINUATION, END_HEADERS, 1, &get),
            Expect::End(&[CLOSED, PROTOCOL]),
        ),
        case(
            "http2/5.1/11 closed: DATA",
            over().data(END_STREAM, 1),
            Expect::Reset(&[CLOSED]),
        ),
        case(
            "http2/5.1/12 closed: HEADERS",
            over().get(1),
            Expect::End(&[CLOSED]),
        )
        .but(GENERIC),
        case(
            "http2/5.1/13 closed: CONTINUATION",
            over().frame(CONTINUATION, END_HEADERS, 1, &get),
            Expect::End(&[CLOSED, PROTOCOL]),
        ),
    ]
}

/// Sections 5.1.1, 5.1.2 and 5.3.1.
fn identifiers() -> Vec<Case> {
    let itself = [&[0, 0, 0, 1, 255][..], &head("GET", &[])].concat();
    let many = (0..=256).fold(hello(), |said, index| said.post(2 * index + 1));
    vec![
        case(
            "http2/5.1.1/1 an even number",
            hello().get(2),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/5.1.1/2 a lower number than before",
            hello().get(5).hear(Expect::Answer(5)).get(3),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/5.1.2/1 more streams than may be",
            many,
            Expect::Reset(&[PROTOCOL, REFUSED]),
        ),
        case(
            "http2/5.3.1/1 HEADERS that depend on themselves",
            hello().frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &itself),
            Expect::Reset(&[PROTOCOL]),
        ),
        case(
            "http2/5.3.1/2 PRIORITY that depends on itself",
            hello().priority(2, 2, 255),
            Expect::Reset(&[PROTOCOL]),
        ),
    ]
}

/// Sections 5.4.1 and 5.5.
fn errors() -> Vec<Case> {
    let get = head("GET", &[]);
    let (one, two) = get.split_at(20);
    vec![
        case(
            "http2/5.4.1/1 an invalid PING ends the connection",
            hello().frame(PING, 0, 3, &[0; 8]),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/5.4.1/2 and is told so by GOAWAY",
            hello().frame(PING, 0, 3, &[0; 8]),
            Expect::Told(&[PROTOCOL]),
        ),
        case(
            "http2/5.5/1 an unknown extension",
            hello().frame(0x16, 0xff, 0, b"unknown").ping(),
            Expect::Pong,
        ),
        case(
            "http2/5.5/2 an unknown extension within a block",
            hello()
                .frame(HEADERS, END_STREAM, 1, one)
                .frame(0x16, 0, 0, b"unknown")
                .frame(CONTINUATION, END_HEADERS, 1, two),
            Expect::End(&[PROTOCOL]),
        ),
    ]
}
