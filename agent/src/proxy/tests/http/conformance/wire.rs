//! Frames of HTTP/2 as they are on the wire, right or wrong.

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// For each of the other end's reactions.
const PATIENCE: Duration = Duration::from_secs(20);

/// One byte more than the proxy's `SETTINGS_MAX_FRAME_SIZE`.
pub(super) const TOO_LARGE: usize = (64 << 10) + 1;

// Types of frames.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

// Flags.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
/// A head without a body.
pub(super) const WHOLE: u8 = END_STREAM | END_HEADERS;
pub(super) const PADDED: u8 = 8;
pub(super) const WITH_PRIORITY: u8 = 0x20;

// Error codes.
pub(super) const PROTOCOL: u32 = 1;
pub(super) const FLOW_CONTROL: u32 = 3;
pub(super) const CLOSED: u32 = 5;
pub(super) const SIZE: u32 = 6;
pub(super) const REFUSED: u32 = 7;
pub(super) const COMPRESSION: u32 = 9;

// Settings.
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const INITIAL_WINDOW: u16 = 4;
pub(super) const MAX_FRAME: u16 = 5;

const OPAQUE: [u8; 8] = *b"fairlead";

/// A frame that was heard.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// What must come next, as h2spec has it; frames about something else may come before.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    /// The end of the connection, with one of these codes where it is told why.
    End(&'static [u32]),
    /// GOAWAY with one of these codes.
    Told(&'static [u32]),
    /// A reset of a stream, or the end, with one of these codes.
    Reset(&'static [u32]),
    /// The head of an answer with status 200 on this stream.
    Answer(u32),
    /// The answer to the PING that was sent.
    Pong,
    /// The same, or the end.
    PongOrEnd,
    /// Settings were taken.
    Ack,
    /// So many bytes of an answer in one frame.
    Data(usize),
    /// Its settings, before anything else.
    Settings,
}

/// One side's part of a conversation.
#[derive(Debug, Default)]
pub(super) struct Script(Vec<Step>);

#[derive(Debug)]
enum Step {
    Say(Vec<u8>),
    Hear(Expect),
}

/// One case of the list.
#[derive(Debug)]
pub(super) struct Case {
    /// Its section and number, and what it asks.
    pub(super) name: &'static str,
    pub(super) script: Script,
    /// The library does not do what is asked.
    pub(super) otherwise: bool,
}

/// What the library says instead of a more specific code.
pub(super) const GENERIC: Expect = Expect::End(&[PROTOCOL]);

/// A case in which `script` is followed by what is asked.
pub(super) fn case(name: &'static str, script: Script, asked: Expect) -> Case {
    Case::of(name, script.hear(asked))
}

impl Case {
    /// A case in which `script` is all there is.
    pub(super) fn of(name: &'static str, script: Script) -> Self {
        let otherwise = false;
        Self {
            name,
            script,
            otherwise,
        }
    }

    /// What the library does instead of what is asked: docs/l7.md says why that is harmless.
    pub(super) fn but(mut self, done: Expect) -> Self {
        let _asked = self.script.0.pop();
        self.script.0.push(Step::Hear(done));
        self.otherwise()
    }

    /// The library does not do what is asked, but goes on.
    pub(super) fn otherwise(mut self) -> Self {
        self.otherwise = true;
        self
    }

    /// Where its name is in the list.
    pub(super) fn number(&self) -> &'static str {
        self.name.split(' ').next().unwrap_or_default()
    }
}

/// A script that says nothing yet.
pub(super) fn say() -> Script {
    Script::default()
}

/// Literal fields without indexing and without Huffman's code.
pub(super) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The head of a request with these further fields.
pub(super) fn head(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let first = [
        (":method", method),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "shop"),
    ];
    fields(&[&first, more].concat())
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

impl Script {
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        if let Some(Step::Say(said)) = self.0.last_mut() {
            said.extend_from_slice(bytes);
        } else {
            self.0.push(Step::Say(bytes.to_vec()));
        }
        self
    }

    pub(super) fn hear(mut self, expected: Expect) -> Self {
        self.0.push(Step::Hear(expected));
        self
    }

    pub(super) fn frame(self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        self.raw(&frame(kind, flags, stream, payload))
    }

    /// The beginning of a conversation.
    pub(super) fn hello(self) -> Self {
        self.raw(PREFACE).settings(&[])
    }

    /// A whole request.
    pub(super) fn get(self, stream: u32) -> Self {
        self.frame(HEADERS, WHOLE, stream, &head("GET", &[]))
    }

    /// A request whose body follows.
    pub(super) fn post(self, stream: u32) -> Self {
        self.frame(HEADERS, END_HEADERS, stream, &head("POST", &[]))
    }

    /// A whole request with this head.
    pub(super) fn ask(self, block: &[u8]) -> Self {
        self.frame(HEADERS, WHOLE, 1, block)
    }

    pub(super) fn data(self, flags: u8, stream: u32) -> Self {
        self.frame(DATA, flags, stream, b"test")
    }

    pub(super) fn priority(self, stream: u32, on: u32, weight: u8) -> Self {
        let payload = [&on.to_be_bytes()[..], &[weight]].concat();
        self.frame(PRIORITY, 0, stream, &payload)
    }

    pub(super) fn reset(self, stream: u32, code: u32) -> Self {
        self.frame(RST_STREAM, 0, stream, &code.to_be_bytes())
    }

    pub(super) fn settings(self, settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        self.frame(SETTINGS, 0, 0, &payload)
    }

    pub(super) fn ping(self) -> Self {
        self.frame(PING, 0, 0, &OPAQUE)
    }

    pub(super) fn goaway(self, stream: u32, code: u32) -> Self {
        let payload = [[0; 4], code.to_be_bytes()].concat();
        self.frame(GOAWAY, 0, stream, &payload)
    }

    pub(super) fn window(self, stream: u32, increment: u32) -> Self {
        self.frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
    }

    /// Plays it. The error: what came instead.
    pub(super) async fn play(self, stream: &mut TcpStream) -> Result<(), String> {
        let mut heard = Vec::new();
        for step in self.0 {
            match step {
                Step::Say(bytes) => {
                    // The other end may be gone by then.
                    let _said = stream.write_all(&bytes).await;
                }
                Step::Hear(expected) => {
                    let expecting = expect(stream, expected, &mut heard);
                    let met = timeout(PATIENCE, expecting).await;
                    let met = met.unwrap_or_else(|_elapsed| Err("nothing more".to_owned()));
                    met.map_err(|got| format!("{expected:?}, but {got} after {heard:?}"))?;
                }
            }
        }
        Ok(())
    }
}

async fn expect(
    stream: &mut TcpStream,
    expected: Expect,
    heard: &mut Vec<Frame>,
) -> Result<(), String> {
    loop {
        let Some(frame) = read(stream).await else {
            return match expected {
                Expect::End(_) | Expect::Reset(_) | Expect::PongOrEnd => Ok(()),
                Expect::Answer(_)
                | Expect::Told(_)
                | Expect::Pong
                | Expect::Ack
                | Expect::Data(_)
                | Expect::Settings => Err("the end".to_owned()),
            };
        };
        let met = frame.meets(expected);
        if let Some(met) = met {
            return if met { Ok(()) } else { Err(frame.to_string()) };
        }
        heard.push(frame);
    }
}

/// `None`: the end, in order or not.
pub(super) async fn read(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; 9];
    let _count = stream.read_exact(&mut head).await.ok()?;
    let [length @ .., kind, flags, _, _, _, _] = head;
    let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    let _count = stream.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind,
        flags,
        stream: number(&head[5..]),
        payload,
    })
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

impl Frame {
    /// Whether it is what is expected; `None`: it says nothing of it.
    fn meets(&self, expected: Expect) -> Option<bool> {
        let is_pong = self.kind == PING && self.flags == ACK && self.payload == OPAQUE;
        match (expected, self.kind) {
            (Expect::Settings, kind) => Some(kind == SETTINGS && self.flags == 0),
            (Expect::End(codes) | Expect::Told(codes) | Expect::Reset(codes), GOAWAY) => {
                Some(codes.contains(&number(&self.payload[4..])))
            }
            (Expect::Reset(codes), RST_STREAM) => Some(codes.contains(&number(&self.payload))),
            (Expect::PongOrEnd, GOAWAY) => Some(true),
            (Expect::Pong | Expect::PongOrEnd, PING) => Some(is_pong),
            (Expect::Ack, SETTINGS) if self.flags == ACK => Some(true),
            (Expect::Answer(stream), HEADERS) if self.stream == stream => Some(self.is_ok()),
            (Expect::Data(length), DATA) => Some(self.payload.len() == length),
            // Of a reset, an answer of our own, where a request can't be passed on.
            (Expect::Pong | Expect::Ack | Expect::Data(_) | Expect::Answer(_), GOAWAY)
            | (Expect::Reset(_), HEADERS)
            | (Expect::Data(_) | Expect::Answer(_), RST_STREAM) => Some(false),
            _ => None,
        }
    }

    /// Its first field is `:status: 200` of the static table; an update of the dynamic
    /// table's size may come before.
    fn is_ok(&self) -> bool {
        let mut fields = self.payload.iter().skip_while(|byte| **byte >> 5 == 1);
        fields.next() == Some(&0x88)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            flags,
            stream,
            payload,
        } = self;
        let payload = payload.escape_ascii();
        write!(f, "type {kind} flags {flags} stream {stream} {payload}")
    }
}
