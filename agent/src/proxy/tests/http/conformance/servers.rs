//! The same at the proxy's other end, where it is the client: what a server says.

use bytes::Bytes;
use futures_util::future::{join, join_all};
use h2::RecvStream;
use http::{Request, Response, StatusCode};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::super::http2::talking;
use super::BODY;
use super::wire::{
    ACK, COMPRESSION, CONTINUATION, Case, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, Expect,
    FLOW_CONTROL, GENERIC, GOAWAY, HEADERS, INITIAL_WINDOW, MAX_FRAME, PADDED, PING, PREFACE,
    PRIORITY, PROTOCOL, PUSH_PROMISE, RST_STREAM, SETTINGS, SIZE, Script, TOO_LARGE, WHOLE,
    WINDOW_UPDATE, case, fields, head, read, say,
};
use crate::proxy::tests::world::{World, soon};

/// The head of an answer: `:status: 200` of the static table.
const OK: &[u8] = b"\x88";

/// An answer has begun.
fn begun() -> Script {
    say().frame(HEADERS, END_HEADERS, 1, OK)
}

impl Script {
    /// The rest of an answer.
    fn last(self) -> Self {
        self.frame(DATA, END_STREAM, 1, BODY)
    }

    /// The head of an answer.
    fn head(self, block: &[u8]) -> Self {
        self.frame(HEADERS, END_HEADERS, 1, block)
    }
}

/// What is understood, or passed over.
fn taken() -> Vec<Case> {
    let padded = [&[2][..], OK, &[0; 2]].concat();
    let interim = fields(&[(":status", "103")]);
    let trailers = fields(&[("x-a", "b")]);
    let opaque = b"fairlead";
    let rows = [
        (
            "http2/4.1/1 an unknown type",
            begun().frame(0xff, 0, 0, &[0; 8]).ping(),
        ),
        (
            "http2/4.1/2 undefined flags",
            begun().frame(PING, 0x16, 0, opaque),
        ),
        (
            "http2/4.1/3 the reserved bit",
            begun().frame(PING, 0, 1 << 31, opaque),
        ),
        (
            "http2/6.7/2 PING with ACK",
            begun().frame(PING, ACK, 0, b"invalid!").ping(),
        ),
    ];
    let answered = |(name, script): (_, Script)| {
        let script = script.hear(Expect::Pong).last();
        Case::of(name, script)
    };
    let mut cases = Vec::from(rows.map(answered));
    let rows = [
        (
            "generic/3.1/3 padded DATA",
            begun().frame(DATA, END_STREAM | PADDED, 1, b"\x02test\0\0"),
        ),
        (
            "generic/3.2/2 padded HEADERS",
            say()
                .frame(HEADERS, END_HEADERS | PADDED, 1, &padded)
                .last(),
        ),
        ("generic/3.3/3 PRIORITY", begun().priority(1, 3, 255).last()),
        (
            "generic/3.10/1 CONTINUATION",
            say()
                .frame(HEADERS, 0, 1, &[])
                .frame(CONTINUATION, END_HEADERS, 1, OK)
                .last(),
        ),
        (
            "generic/4/4 trailers",
            begun().data(0, 1).frame(HEADERS, WHOLE, 1, &trailers),
        ),
        (
            "generic/5/14 an update of the table's size",
            say().head(b"\x20\x88").last(),
        ),
        (
            "http2/4.2/1 DATA of 16384 bytes",
            begun().frame(DATA, 0, 1, &[0; 16384]).last(),
        ),
        (
            "http2/6.5.2/5 an unknown setting",
            begun().settings(&[(0xff, 1)]).last(),
        ),
        (
            "http2/6.8/0 GOAWAY after which it ends",
            begun()
                .frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])
                .last(),
        ),
        (
            "http2/8.1/0 an interim answer",
            say().head(&interim).head(OK).last(),
        ),
    ];
    cases.extend(rows.map(|(name, script)| Case::of(name, script)));
    cases
}

/// What is to be refused, and is passed over.
fn passed_over() -> Vec<Case> {
    let trailers = fields(&[(":status", "200"), ("x-a", "b")]);
    let head = [OK, &fields(&[(":path", "/")])].concat();
    let rows = [
        (
            "http2/6.5.2/1 ENABLE_PUSH of a server",
            say().settings(&[(ENABLE_PUSH, 1)]).head(OK).last(),
        ),
        (
            "http2/8.1.2.1/2 a pseudo-header of requests",
            say().head(&head).last(),
        ),
        (
            "http2/8.1.2.1/3 one in trailers",
            begun().frame(HEADERS, WHOLE, 1, &trailers),
        ),
    ];
    rows.map(|(name, script)| Case::of(name, script).otherwise())
        .into()
}

/// What is wrong with a frame, whatever is in it.
fn frames() -> Vec<Case> {
    let opened = || say().frame(HEADERS, 0, 1, OK);
    let ends = |name, script, code: &'static [u32]| case(name, script, Expect::End(code));
    vec![
        ends(
            "http2/4.2/3 HEADERS that are too large",
            say().head(&[0; TOO_LARGE]),
            &[SIZE],
        ),
        ends(
            "http2/4.3/2 PRIORITY within a block",
            opened().priority(1, 0, 255),
            &[PROTOCOL],
        ),
        ends(
            "http2/5.1/1 idle: DATA",
            say().data(END_STREAM, 3),
            &[PROTOCOL],
        ),
        ends(
            "http2/5.1/2 idle: RST_STREAM",
            say().reset(3, 8),
            &[PROTOCOL],
        ),
        ends(
            "http2/5.1/3 idle: WINDOW_UPDATE",
            say().window(3, 1),
            &[PROTOCOL],
        ),
        ends(
            "http2/5.1/4 idle: CONTINUATION",
            say().frame(CONTINUATION, END_HEADERS, 1, OK),
            &[PROTOCOL],
        ),
        ends(
            "http2/5.1.1/1 a stream of the server's",
            say().frame(HEADERS, END_HEADERS, 2, OK),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.1/1 DATA of stream 0",
            begun().data(0, 0),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.1/3 more padding than bytes",
            begun().frame(DATA, PADDED, 1, b"\x58Test"),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.2/3 HEADERS of stream 0",
            say().frame(HEADERS, END_HEADERS, 0, OK),
            &[PROTOCOL],
        ),
    ]
}

/// What is wrong with a frame that controls something.
fn control_frames() -> Vec<Case> {
    let opened = || say().frame(HEADERS, 0, 1, OK);
    let ends = |name, script, code: &'static [u32]| case(name, script, Expect::End(code));
    vec![
        ends(
            "http2/6.3/1 PRIORITY of stream 0",
            say().priority(0, 1, 255),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.4/1 RST_STREAM of stream 0",
            say().reset(0, 8),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.4/3 RST_STREAM that is no 4 bytes",
            say().frame(RST_STREAM, 0, 1, &[0; 3]),
            &[SIZE],
        )
        .but(GENERIC),
        ends(
            "http2/6.7/3 PING of a stream",
            say().frame(PING, 0, 1, &[0; 8]),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.7/4 PING that is no 8 bytes",
            say().frame(PING, 0, 0, &[0; 6]),
            &[SIZE],
        )
        .but(GENERIC),
        ends(
            "http2/6.8/1 GOAWAY of a stream",
            say().frame(GOAWAY, 0, 1, &[0; 8]),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.9/1 WINDOW_UPDATE by 0",
            say().window(0, 0),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.9/3 WINDOW_UPDATE that is no 4 bytes",
            say().frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            &[SIZE],
        )
        .but(GENERIC),
        ends(
            "http2/6.9.1/2 a window above the maximum",
            say().window(0, u32::MAX >> 1),
            &[FLOW_CONTROL],
        ),
        ends(
            "http2/6.10/2 DATA within a block",
            opened().data(0, 1),
            &[PROTOCOL],
        ),
        ends(
            "http2/8.2/1 PUSH_PROMISE that was forbidden",
            say().frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[&[0, 0, 0, 2][..], &head("GET", &[])].concat(),
            ),
            &[PROTOCOL],
        ),
        case(
            "http2/4.2/2 DATA that are too large",
            begun().frame(DATA, 0, 1, &[0; TOO_LARGE]),
            Expect::Reset(&[SIZE]),
        ),
        case(
            "http2/6.3/2 PRIORITY that is no 5 bytes",
            say().frame(PRIORITY, 0, 1, &[0; 4]),
            Expect::Reset(&[SIZE]),
        )
        .but(GENERIC),
    ]
}

/// What is wrong with its settings.
fn settings() -> Vec<Case> {
    let set = |name, value| say().settings(&[(name, value)]);
    let ends = |name, script, code: &'static [u32]| case(name, script, Expect::End(code));
    vec![
        ends(
            "http2/6.5/1 ACK with a payload",
            say().frame(SETTINGS, ACK, 0, &[0]),
            &[SIZE],
        )
        .but(GENERIC),
        ends(
            "http2/6.5/2 of a stream",
            say().frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 1]),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.5/3 no multiple of 6 bytes",
            say().frame(SETTINGS, 0, 0, &[0; 3]),
            &[SIZE],
        )
        .but(GENERIC),
        ends(
            "http2/6.5.2/2 a window above the maximum",
            set(INITIAL_WINDOW, 1 << 31),
            &[FLOW_CONTROL],
        )
        .but(GENERIC),
        ends(
            "http2/6.5.2/3 MAX_FRAME_SIZE below the least",
            set(MAX_FRAME, 16383),
            &[PROTOCOL],
        ),
        ends(
            "http2/6.5.2/4 MAX_FRAME_SIZE above the maximum",
            set(MAX_FRAME, 1 << 24),
            &[PROTOCOL],
        ),
    ]
}

/// What is wrong with an answer.
fn messages() -> Vec<Case> {
    let head = |more: &[(&str, &str)]| say().head(&[OK, &fields(more)].concat());
    let resets = |name, script| case(name, script, Expect::Reset(&[PROTOCOL]));
    let ends = |name, block: &[u8]| {
        case(name, say().head(block), Expect::End(&[COMPRESSION])).but(GENERIC)
    };
    vec![
        resets("http2/8.1/1 a second head", begun().head(OK)),
        resets("http2/8.1/2 DATA before the head", say().last()),
        resets(
            "http2/8.1.2/1 a name in capitals",
            head(&[("X-TEST", "ok")]),
        ),
        resets(
            "http2/8.1.2.1/4 one after a regular field",
            say().head(&fields(&[("x-a", "b"), (":status", "200")])),
        ),
        resets(
            "http2/8.1.2.2/1 connection",
            head(&[("connection", "keep-alive")]),
        ),
        resets(
            "http2/8.1.2.4/1 no :status",
            say().head(&fields(&[("x-a", "b")])),
        ),
        resets("http2/8.1.2.4/2 :status twice", say().head(b"\x88\x88")),
        resets(
            "http2/8.1.2.6/1 another length",
            head(&[("content-length", "1")]).last(),
        ),
        ends("http2/4.3/1 an invalid block", b"\x88\x40"),
        ends("hpack/2.3.3/1 an index beyond the table", b"\x88\xc6"),
        ends("hpack/4.2/1 an update at the end", b"\x88\x21"),
        ends(
            "hpack/5.2/2 padding of zeros",
            b"\x88\0\x04test\x83\x49\x50\x90",
        ),
        ends("hpack/6.1/1 index 0", b"\x88\x80"),
        ends("hpack/6.3/1 a size above the setting", b"\x3f\xe2\x1f\x88"),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let parts = [
        taken(),
        passed_over(),
        frames(),
        control_frames(),
        settings(),
        messages(),
    ];
    parts.into_iter().flatten().collect()
}

/// Hears a request, and answers by the book or not.
async fn serve(listener: TcpListener, script: Script) -> Result<(), String> {
    let (mut stream, _) = soon(listener.accept()).await.unwrap();
    let mut preface = [0; PREFACE.len()];
    let _count = soon(stream.read_exact(&mut preface)).await.unwrap();
    assert_eq!(preface, PREFACE);
    say().settings(&[]).play(&mut stream).await?;
    while soon(read(&mut stream)).await.expect("a request").kind != HEADERS {}
    script.play(&mut stream).await
}

/// Whether there was an answer, and all of it was good.
async fn ask(stream: TcpStream) -> bool {
    let mut sender = talking(stream).await;
    let request = Request::get("http://shop/").body(()).unwrap();
    let (answer, _body) = sender.send_request(request, true).unwrap();
    let answer = soon(answer).await;
    let Ok(answer) = answer else {
        return false;
    };
    answer.status() == StatusCode::OK && soon(whole_body(answer)).await
}

async fn whole_body(answer: Response<RecvStream>) -> bool {
    let mut body = answer.into_body();
    while let Some(bytes) = body.data().await {
        let Ok(bytes): Result<Bytes, _> = bytes else {
            return false;
        };
        let _freed = body.flow_control().release_capacity(bytes.len());
    }
    body.trailers().await.is_ok()
}

/// Plays each case on a connection of its own. Those that went otherwise.
async fn failed(cases: Vec<Case>, is_good: bool) -> Vec<String> {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let server = world.pod("server", 1);
    let played = cases.into_iter().map(async |case| {
        let (listener, address) = server.listen();
        let stream = client.dial(address).await;
        let (played, answered) = join(serve(listener, case.script), ask(stream)).await;
        let seen = (answered == is_good).then_some(());
        let seen = seen.ok_or_else(|| format!("answered: {answered}"));
        played
            .and(seen)
            .map_err(|got| format!("{}: {got}", case.name))
    });
    join_all(played)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect()
}

#[tokio::test]
async fn servers_of_http2_are_understood_by_the_book() {
    let cases = [taken(), passed_over()].into_iter().flatten();
    let failed = failed(cases.collect(), true).await;
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn servers_of_http2_are_refused_by_the_book() {
    let cases = [frames(), control_frames(), settings(), messages()]
        .into_iter()
        .flatten();
    let failed = failed(cases.collect(), false).await;
    assert!(failed.is_empty(), "{failed:#?}");
}
