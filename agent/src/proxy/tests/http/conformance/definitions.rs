//! What RFC 9113 says of each type of frame: sections `http2/6.1` to `http2/6.10`.

use super::wire::{
    ACK, CLOSED, CONTINUATION, Case, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, Expect,
    FLOW_CONTROL, GENERIC, GOAWAY, HEADERS, INITIAL_WINDOW, MAX_FRAME, PADDED, PING, PRIORITY,
    PROTOCOL, RST_STREAM, SETTINGS, SIZE, Script, WHOLE, WINDOW_UPDATE, case, head, say,
};

pub(super) fn cases() -> Vec<Case> {
    let parts = [
        data_and_headers(),
        priority_and_reset(),
        settings(),
        ping_and_goaway(),
        window_update(),
        windows(),
        continuation(),
    ];
    parts.into_iter().flatten().collect()
}

fn hello() -> Script {
    say().hello()
}

/// Sections 6.1 and 6.2.
fn data_and_headers() -> Vec<Case> {
    let get = head("GET", &[]);
    let begun = || hello().frame(HEADERS, END_STREAM, 1, &get);
    let padded = [&[200][..], &get].concat();
    vec![
        case(
            "http2/6.1/1 DATA of stream 0",
            hello().data(END_STREAM, 0),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.1/2 DATA of a stream that has ended",
            hello().get(1).data(END_STREAM, 1),
            Expect::Reset(&[CLOSED]),
        )
        .but(GENERIC),
        case(
            "http2/6.1/3 DATA with more padding than bytes",
            hello()
                .post(1)
                .frame(DATA, END_STREAM | PADDED, 1, b"\x58Test"),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.2/1 HEADERS without END_HEADERS, then PRIORITY",
            begun().priority(1, 0, 255),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.2/2 HEADERS of another stream within a block",
            begun().get(3),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.2/3 HEADERS of stream 0",
            hello().get(0),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.2/4 HEADERS with more padding than bytes",
            hello().frame(HEADERS, WHOLE | PADDED, 1, &padded),
            Expect::End(&[PROTOCOL]),
        ),
    ]
}

/// Sections 6.3 and 6.4.
fn priority_and_reset() -> Vec<Case> {
    vec![
        case(
            "http2/6.3/1 PRIORITY of stream 0",
            hello().priority(0, 0, 255),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.3/2 PRIORITY that is no 5 bytes",
            hello().post(1).frame(PRIORITY, 0, 1, &[0x80, 0, 0, 1]),
            Expect::Reset(&[SIZE]),
        )
        .but(GENERIC),
        case(
            "http2/6.4/1 RST_STREAM of stream 0",
            hello().reset(0, 8),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.4/2 RST_STREAM of an idle stream",
            hello().reset(1, 8),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.4/3 RST_STREAM that is no 4 bytes",
            hello().post(1).frame(RST_STREAM, 0, 1, &[0; 3]),
            Expect::End(&[SIZE]),
        )
        .but(GENERIC),
    ]
}

/// Section 6.5.
fn settings() -> Vec<Case> {
    let set = |name, value| hello().settings(&[(name, value)]);
    vec![
        case(
            "http2/6.5/1 SETTINGS with ACK and a payload",
            hello().frame(SETTINGS, ACK, 0, &[0]),
            Expect::End(&[SIZE]),
        )
        .but(GENERIC),
        case(
            "http2/6.5/2 SETTINGS of a stream",
            hello().frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100]),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.5/3 SETTINGS that are no multiple of 6 bytes",
            hello().frame(SETTINGS, 0, 0, &[0, 3, 0]),
            Expect::End(&[SIZE]),
        )
        .but(GENERIC),
        case(
            "http2/6.5.2/1 ENABLE_PUSH that is neither 0 nor 1",
            set(ENABLE_PUSH, 2),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.5.2/2 INITIAL_WINDOW_SIZE above the maximum",
            set(INITIAL_WINDOW, 1 << 31),
            Expect::End(&[FLOW_CONTROL]),
        )
        .but(GENERIC),
        case(
            "http2/6.5.2/3 MAX_FRAME_SIZE below the least",
            set(MAX_FRAME, 16383),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.5.2/4 MAX_FRAME_SIZE above the maximum",
            set(MAX_FRAME, 1 << 24),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.5.2/5 an unknown setting",
            set(0xff, 1).ping(),
            Expect::Pong,
        ),
        case(
            "http2/6.5.3/1 one setting twice",
            hello()
                .settings(&[(INITIAL_WINDOW, 100), (INITIAL_WINDOW, 1)])
                .get(1),
            Expect::Data(1),
        ),
        case(
            "http2/6.5.3/2 SETTINGS are acknowledged",
            hello().hear(Expect::Ack).settings(&[(ENABLE_PUSH, 0)]),
            Expect::Ack,
        ),
    ]
}

/// Sections 6.7 and 6.8.
fn ping_and_goaway() -> Vec<Case> {
    vec![
        case("http2/6.7/1 PING", hello().ping(), Expect::Pong),
        case(
            "http2/6.7/2 PING with ACK is not answered",
            hello().frame(PING, ACK, 0, b"invalid!").ping(),
            Expect::Pong,
        ),
        case(
            "http2/6.7/3 PING of a stream",
            hello().frame(PING, 0, 1, &[0; 8]),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.7/4 PING that is no 8 bytes",
            hello().frame(PING, 0, 0, &[0; 6]),
            Expect::End(&[SIZE]),
        )
        .but(GENERIC),
        case(
            "http2/6.8/1 GOAWAY of a stream",
            hello().frame(GOAWAY, 0, 1, &[0; 8]),
            Expect::End(&[PROTOCOL]),
        ),
    ]
}

/// Section 6.9.
fn window_update() -> Vec<Case> {
    vec![
        case(
            "http2/6.9/1 WINDOW_UPDATE by 0 of the connection",
            hello().window(0, 0),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.9/2 WINDOW_UPDATE by 0 of a stream",
            hello().post(1).window(1, 0),
            Expect::Reset(&[PROTOCOL]),
        ),
        case(
            "http2/6.9/3 WINDOW_UPDATE that is no 4 bytes",
            hello().frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]),
            Expect::End(&[SIZE]),
        )
        .but(GENERIC),
        case(
            "http2/6.9.1/1 a window of 1 byte",
            hello().settings(&[(INITIAL_WINDOW, 1)]).get(1),
            Expect::Data(1),
        ),
        case(
            "http2/6.9.1/2 a window of the connection above the maximum",
            hello().window(0, u32::MAX >> 1).window(0, u32::MAX >> 1),
            Expect::End(&[FLOW_CONTROL]),
        ),
        case(
            "http2/6.9.1/3 a window of a stream above the maximum",
            hello()
                .post(1)
                .window(1, u32::MAX >> 1)
                .window(1, u32::MAX >> 1),
            Expect::Reset(&[FLOW_CONTROL]),
        ),
    ]
}

/// Section 6.9.2.
fn windows() -> Vec<Case> {
    vec![
        case(
            "http2/6.9.2/1 a window that grows while a stream is open",
            hello()
                .settings(&[(INITIAL_WINDOW, 0)])
                .get(1)
                .hear(Expect::Answer(1))
                .settings(&[(INITIAL_WINDOW, 1)]),
            Expect::Data(1),
        ),
        case(
            "http2/6.9.2/2 a window that becomes negative",
            hello()
                .settings(&[(INITIAL_WINDOW, 3)])
                .get(1)
                .hear(Expect::Data(3))
                .settings(&[(INITIAL_WINDOW, 2)])
                .window(1, 2),
            Expect::Data(1),
        ),
        case(
            "http2/6.9.2/3 a window of streams above the maximum",
            hello().settings(&[(INITIAL_WINDOW, 1 << 31)]),
            Expect::End(&[FLOW_CONTROL]),
        )
        .but(GENERIC),
    ]
}

/// Section 6.10.
fn continuation() -> Vec<Case> {
    let get = head("GET", &[]);
    let (one, rest) = get.split_at(20);
    let (two, three) = rest.split_at(20);
    let begun = || hello().frame(HEADERS, END_STREAM, 1, one);
    vec![
        case(
            "http2/6.10/1 several CONTINUATION after HEADERS",
            begun()
                .frame(CONTINUATION, 0, 1, two)
                .frame(CONTINUATION, END_HEADERS, 1, three),
            Expect::Answer(1),
        ),
        case(
            "http2/6.10/2 another frame after CONTINUATION",
            begun().frame(CONTINUATION, 0, 1, two).data(END_STREAM, 1),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.10/3 CONTINUATION of stream 0",
            begun().frame(CONTINUATION, END_HEADERS, 0, rest),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.10/4 CONTINUATION after HEADERS with END_HEADERS",
            hello().post(1).frame(CONTINUATION, END_HEADERS, 1, rest),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.10/5 CONTINUATION after CONTINUATION with END_HEADERS",
            hello()
                .frame(HEADERS, 0, 1, one)
                .frame(CONTINUATION, END_HEADERS, 1, rest)
                .frame(CONTINUATION, END_HEADERS, 1, rest),
            Expect::End(&[PROTOCOL]),
        ),
        case(
            "http2/6.10/6 CONTINUATION after DATA",
            hello()
                .post(1)
                .data(0, 1)
                .frame(CONTINUATION, END_HEADERS, 1, rest),
            Expect::End(&[PROTOCOL]),
        ),
    ]
}
