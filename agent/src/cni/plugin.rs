//! The plugin: one call, from the runtime's words to the agent's and back.

use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::DECISIONS;
use super::decisions::Decisions;
use super::protocol::{Command, MAX_LINE_BYTES, PodRef, Reply, Request, SOCKET, Verdict};
use super::spec::{Failure, Invocation, Verb, code};

/// How long a pod that is to be meshed waits for the agent, unless the configuration says
/// otherwise. The kubelet gives up after two minutes, and tries again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long anything else waits for an agent that is there and does not answer.
const BRIEF: Duration = Duration::from_secs(2);
/// Between two attempts to reach an agent that is away.
const AGAIN: Duration = Duration::from_millis(100);

/// Does what the environment and `input` ask. The answer for standard output, and whether
/// it is one of success.
pub fn run(variable: impl Fn(&str) -> Option<String>, mut input: impl io::Read) -> (String, bool) {
    let mut text = String::new();
    let read = input.read_to_string(&mut text).map_err(|error| {
        let text = format!("cannot read the network configuration: {error}");
        Failure::new(code::IO, text)
    });
    let call = read.and_then(|_| Invocation::read(variable, &text));
    let version = call.as_ref().map_or_else(
        |_| version_of(&text),
        |call| call.config.version().to_owned(),
    );
    match call.and_then(|call| execute(&call)) {
        Ok(answer) => (answer.map_or_else(String::new, |it| it.to_string()), true),
        Err(failure) => (failure.json(&version).to_string(), false),
    }
}

/// The version in which to say that the rest makes no sense.
fn version_of(text: &str) -> String {
    let config: Option<Value> = serde_json::from_str(text).ok();
    let version = config.and_then(|config| Some(config["cniVersion"].as_str()?.to_owned()));
    version.unwrap_or_else(|| "1.0.0".to_owned())
}

fn execute(call: &Invocation) -> Result<Option<Value>, Failure> {
    match call.verb {
        Verb::Version => Ok(Some(call.versions())),
        // It can always add some pod: those that are not to be meshed. To say otherwise
        // would take the whole node out of service where only the agent is away.
        Verb::Status => Ok(None),
        Verb::Add => add(call).map(Some),
        Verb::Check => check(call).map(|()| None),
        Verb::Del | Verb::Gc => {
            tell(call);
            Ok(None)
        }
    }
}

fn add(call: &Invocation) -> Result<Value, Failure> {
    let Some(pod) = &call.pod else {
        return Ok(call.config.passed_on());
    };
    let netns = std::fs::File::open(&call.netns).map_err(|error| {
        let text = format!("cannot open the network namespace {}: {error}", call.netns);
        Failure::new(code::IO, text)
    })?;
    let mut must_wait = decisions(call).must_wait(pod);
    let patience = call
        .config
        .timeout_seconds
        .map_or(PATIENCE, Duration::from_secs);
    let request = Request {
        command: Command::Add,
        netns: call.netns.clone(),
        ips: call.config.ips(&call.interface),
        ..request(call, patience)
    };
    let socket = socket(call);
    let end = now() + patience;
    let answer = loop {
        let first = must_wait.map_or_else(|| end.min(now() + BRIEF), |_| end);
        let mut limits = (first, end);
        let answer = ask(&socket, &request, Some(netns.as_fd()), &mut limits);
        if limits.0 > first {
            must_wait = Some("it is to be meshed");
        }
        match answer {
            Err(error) if must_wait.is_some() && is_away(&error) && now() + AGAIN < end => {
                std::thread::sleep(AGAIN);
            }
            other => break other,
        }
    };
    match (answer, must_wait) {
        (
            Ok(Reply {
                verdict: Verdict::Refused,
                message,
            }),
            _,
        ) => {
            let text = format!("fairlead: {} is not started: {message}", name(pod));
            Err(Failure::new(code::TRY_AGAIN, text))
        }
        (Ok(_), _) | (Err(_), None) => Ok(call.config.passed_on()),
        (Err(error), Some(reason)) => Err(away(pod, reason, &socket, &error)),
    }
}

fn check(call: &Invocation) -> Result<(), Failure> {
    let Some(pod) = &call.pod else {
        return Ok(());
    };
    let request = Request {
        command: Command::Check,
        ..request(call, BRIEF)
    };
    let socket = socket(call);
    match (
        ask(&socket, &request, None, &mut briefly()),
        decisions(call).must_wait(pod),
    ) {
        (
            Ok(Reply {
                verdict: Verdict::Refused,
                message,
            }),
            _,
        ) => {
            let text = format!("fairlead: {}: {message}", name(pod));
            Err(Failure::new(code::NOT_ENROLLED, text))
        }
        (Ok(_), _) | (Err(_), None) => Ok(()),
        (Err(error), Some(reason)) => Err(away(pod, reason, &socket, &error)),
    }
}

/// Tells the agent what it would find out by itself in time: a sandbox must go, whether
/// the agent hears of it or not.
fn tell(call: &Invocation) {
    let command = match (call.verb, call.config.valid()) {
        (Verb::Gc, None) => return,
        (Verb::Gc, Some(_)) => Command::Gc,
        _ => Command::Del,
    };
    let request = Request {
        command,
        valid: call.config.valid().unwrap_or_default(),
        ..request(call, BRIEF)
    };
    drop(ask(&socket(call), &request, None, &mut briefly()));
}

fn request(call: &Invocation, patience: Duration) -> Request {
    Request {
        command: Command::Check,
        container: call.container.clone(),
        pod: call.pod.clone(),
        netns: String::new(),
        ips: Vec::new(),
        valid: Vec::new(),
        patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
    }
}

fn socket(call: &Invocation) -> PathBuf {
    Path::new(&call.config.run_dir).join(SOCKET)
}

fn decisions(call: &Invocation) -> Decisions {
    let beside = || Path::new(&call.config.run_dir).join(DECISIONS);
    Decisions::read(
        &call
            .config
            .decisions
            .as_ref()
            .map_or_else(beside, PathBuf::from),
    )
}

fn name(pod: &PodRef) -> String {
    format!("the pod {}/{}", pod.namespace, pod.name)
}

fn away(pod: &PodRef, reason: &str, socket: &Path, error: &io::Error) -> Failure {
    let pod = name(pod);
    let text = format!(
        "fairlead: {pod} is not started: {reason}, and the agent of this node does not answer on \
         {} ({error}); see `kubectl -n fairlead-system get pods -o wide`, or where Fairlead was \
         removed run `fairlead cleanup --cni-conf-dir /etc/cni/net.d` on this node",
        socket.display()
    );
    Failure::new(code::TRY_AGAIN, text)
}

/// Nobody is there, rather than somebody who fails.
fn is_away(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

/// One question, and the answer. It is waited for until `limits.0`, which becomes
/// `limits.1` as soon as the agent says that it is worth it.
fn ask(
    socket: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    limits: &mut (Duration, Duration),
) -> io::Result<Reply> {
    let left = |end: Duration| Some(end.saturating_sub(now()).max(Duration::from_millis(1)));
    let stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(left(limits.0))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    send(&stream, &line, netns)?;
    let most = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
    let mut answers = BufReader::new((&stream).take(most));
    loop {
        stream.set_read_timeout(left(limits.0))?;
        let mut answer = String::new();
        match answers.read_line(&mut answer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            other => drop(other?),
        }
        let reply: Reply = serde_json::from_str(&answer)?;
        match reply.verdict {
            Verdict::Wait => limits.0 = limits.1,
            Verdict::Enrolled | Verdict::NotMeshed | Verdict::Refused => return Ok(reply),
        }
    }
}

/// The descriptor goes with the first bytes.
fn send(stream: &UnixStream, line: &[u8], netns: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut sent = 0;
    while let Some(rest) = line.get(sent..).filter(|rest| !rest.is_empty()) {
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<BorrowedFd<'_>> = netns.into_iter().filter(|_| sent == 0).collect();
        if !descriptors.is_empty() {
            let _fits = beside.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let parts = [IoSlice::new(rest)];
        sent += rustix::net::sendmsg(stream, &parts, &mut beside, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

fn briefly() -> (Duration, Duration) {
    let end = now() + BRIEF;
    (end, end)
}

/// Of a clock that nobody sets.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::try_from(time).unwrap_or_default()
}
