//! A tiny agent: this test program, started again with `redirect-agent`.
//!
//! It has only the kernel's side of the real one. What a pod dials is answered
//! with one line, `<original destination> <client>`, and then echoed; ports 8080 to
//! 8089 are relayed. What is steered in is relayed to the application. It is told
//! what to do over a unix socket, one JSON value a line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use fairlead::model::{ClientAddr, NamespacedName, NodeName, SpiffeId, TrustDomain};
use fairlead::redirect::{self, Enrolled, Kubelet, Network, Redirector};
use fairlead::state::{Pod, PodPhase};
use serde_json::{Value, json};
use socket2::{SockAddr, Socket};

/// Connections that came to an outbound listener with no destination.
static STRAYS: AtomicU64 = AtomicU64::new(0);

/// What the events said, as text.
static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs until it is killed.
pub(crate) fn main(arguments: &[String]) -> Result<()> {
    let [socket, node, cgroup, bpffs, debug, kubelet] = arguments else {
        anyhow::bail!("redirect-agent SOCKET NODE CGROUP BPFFS DEBUG KUBELET");
    };
    let mut redirector = Redirector::start(redirect::Config {
        node: NodeName(node.as_str().into()),
        cgroup: cgroup.into(),
        bpffs: bpffs.into(),
        debug: debug == "true",
        kubelet: match kubelet.as_str() {
            "" => Kubelet::Nowhere,
            "find" => Kubelet::Find,
            path => Kubelet::At(path.into()),
        },
    })?;
    watch(&mut redirector)?;
    let listener = UnixListener::bind(socket)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut line = String::new();
        let _length = BufReader::new(&stream).read_line(&mut line)?;
        let command: Value = serde_json::from_str(&line)?;
        let answer = match obey(&mut redirector, &command) {
            Ok(answer) => json!({ "ok": answer }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        writeln!(stream, "{answer}")?;
    }
    Ok(())
}

/// Tells a running agent to do something.
pub(crate) fn tell(socket: &Path, command: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot reach the agent at {}", socket.display()))?;
    writeln!(stream, "{command}")?;
    let mut line = String::new();
    let _length = BufReader::new(stream).read_line(&mut line)?;
    let mut answer: Value = serde_json::from_str(&line).context("the agent hung up")?;
    match answer.get_mut("ok") {
        Some(value) => Ok(value.take()),
        None => anyhow::bail!("{}", answer["error"].as_str().unwrap_or("no answer")),
    }
}

fn events_so_far() -> MutexGuard<'static, Vec<String>> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(redirector: &mut Redirector) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let entered = runtime.enter();
    let mut events = redirector.events().context("events are taken once")??;
    let logs = redirector.logs();
    drop(entered);
    drop(thread::spawn(move || {
        runtime.block_on(async move {
            drop(logs.map(tokio::spawn));
            while let Ok(event) = events.next().await {
                let pod = event.pod.map(|pod| pod.name.to_string());
                let (local, remote) = (event.local, event.remote);
                let text = format!("{:?} {pod:?} {local:?} {remote:?}", event.kind);
                events_so_far().push(text);
            }
        });
    }));
    Ok(())
}

fn obey(redirector: &mut Redirector, command: &Value) -> Result<Value> {
    let argument = &command["argument"];
    Ok(match command["do"].as_str().context("what to do")? {
        "enrol" => {
            let pod = pod(argument)?;
            let place = redirector.locate([&pod]).remove(&pod.name);
            let enrolled = redirector.enrol(&pod, &place.context("it was looked for")??)?;
            let unseen = redirector.unseen().remove(&pod.name).unwrap_or_default();
            let answer = json!({
                "existing": enrolled.existing,
                "closed": enrolled.closed,
                "unseen": unseen,
            });
            serve(enrolled);
            answer
        }
        "update" => json!(redirector.update(&pod(argument)?)?),
        "unenrol" => {
            redirector.unenrol(&name(argument))?;
            Value::Null
        }
        "hold" => {
            redirector.hold(&name(argument));
            Value::Null
        }
        "follow kubelet" => {
            redirector.follow_kubelet().transpose()?;
            Value::Null
        }
        "tidy" => json!(redirector.tidy()?),
        "take over" => {
            redirector.take_over(&[])?;
            Value::Null
        }
        "vanished" => json!(redirector.vanished()),
        "status" => serde_json::to_value(redirector.status())?,
        "strays" => json!(STRAYS.load(Ordering::Relaxed)),
        "events" => json!(*events_so_far()),
        other => anyhow::bail!("cannot {other}"),
    })
}

fn name(value: &Value) -> NamespacedName {
    NamespacedName::new("test", value["name"].as_str().unwrap_or_default())
}

fn pod(value: &Value) -> Result<Arc<Pod>> {
    let list = |key: &str| value[key].as_array().cloned().unwrap_or_default();
    let ports = |key: &str| -> Box<[u16]> {
        let ports = list(key).into_iter();
        ports
            .filter_map(|port| u16::try_from(port.as_u64()?).ok())
            .collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = name(value);
    Ok(Arc::new(Pod {
        uid: "".into(),
        node: None,
        ips: list("ips")
            .iter()
            .map(|ip| text(ip).parse())
            .collect::<Result<_, _>>()?,
        identity: SpiffeId::new(TrustDomain("t".into()), "test", "test"),
        labels: fairlead::state::Dict::default(),
        workload: Arc::clone(&name.name),
        name,
        phase: PodPhase::Running,
        ready: true,
        host_network: value["host_network"].as_bool().unwrap_or(false),
        enrolled: true,
        container_ports: fairlead::state::Dict::default(),
        terminating: false,
        netns: value["netns"].as_str().map(PathBuf::from),
        runtime_class: None,
        static_uid: None,
        exclude_outbound_ports: ports("exclude_outbound_ports"),
        exclude_outbound_cidrs: list("exclude_outbound_cidrs")
            .iter()
            .map(|block| text(block).parse())
            .collect::<Result<_, _>>()?,
        exclude_inbound_ports: ports("exclude_inbound_ports"),
        opaque_ports: Box::default(),
        close_existing: value["close_existing"].as_bool().unwrap_or(false),
    }))
}

fn serve(enrolled: Enrolled) {
    let Enrolled {
        listeners, network, ..
    } = enrolled;
    for listener in listeners.outbound {
        accept(listener, network.clone(), outbound);
    }
    for listener in listeners.inbound {
        accept(listener, network.clone(), inbound);
    }
    for listener in listeners.tunnel {
        accept(listener, network.clone(), |_, mut accepted, client| {
            writeln!(accepted, "tunnel {} {client}", accepted.local_addr()?)?;
            // What is unread at the close would be a reset, which overtakes the line.
            io::copy(&mut accepted, &mut io::sink()).map(drop)
        });
    }
}

fn accept(
    listener: TcpListener,
    network: Network,
    handle: impl Fn(&Network, TcpStream, SocketAddr) -> io::Result<()> + Clone + Send + 'static,
) {
    drop(thread::spawn(move || {
        drop(listener.set_nonblocking(false));
        while let Ok((accepted, client)) = listener.accept() {
            let (network, handle) = (network.clone(), handle.clone());
            let small = thread::Builder::new().stack_size(128 * 1024);
            drop(small.spawn(move || {
                if let Err(error) = handle(&network, accepted, client) {
                    drop(writeln!(io::stderr(), "{client}: {error}"));
                }
            }));
        }
    }));
}

fn outbound(network: &Network, mut accepted: TcpStream, client: SocketAddr) -> io::Result<()> {
    let Some(destination) = network.original_destination(accepted.as_fd())? else {
        let _before = STRAYS.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    };
    if (8080..8090).contains(&destination.0.port()) {
        let socket = network.socket(destination.0.is_ipv4())?;
        return relay(accepted, connect(socket.into(), destination.0)?);
    }
    writeln!(accepted, "{destination} {client}")?;
    let mut echo = accepted.try_clone()?;
    let _bytes = io::copy(&mut accepted, &mut echo)?;
    echo.shutdown(Shutdown::Write)
}

fn inbound(network: &Network, mut accepted: TcpStream, client: SocketAddr) -> io::Result<()> {
    if network.is_probe(accepted.as_fd())? {
        writeln!(accepted, "kubelet")?;
        let mut echo = accepted.try_clone()?;
        let _bytes = io::copy(&mut accepted, &mut echo)?;
        return echo.shutdown(Shutdown::Write);
    }
    let application = accepted.local_addr()?;
    if application.is_ipv6() && !network.is_listening(application) {
        return Socket::from(accepted).set_linger(Some(std::time::Duration::ZERO));
    }
    let socket = network.socket(application.is_ipv4())?;
    network.present_client(socket.as_fd(), ClientAddr(client))?;
    match connect(socket.into(), application) {
        Ok(upstream) => relay(accepted, upstream),
        Err(error) => {
            network.forget_listener(application.port());
            Socket::from(accepted).set_linger(Some(std::time::Duration::ZERO))?;
            Err(error)
        }
    }
}

fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.set_nonblocking(false)?;
    socket.connect(&SockAddr::from(to))?;
    Ok(socket.into())
}

fn relay(left: TcpStream, right: TcpStream) -> io::Result<()> {
    let (mut from_left, mut to_right) = (left.try_clone()?, right.try_clone()?);
    let forward = thread::spawn(move || pump(&mut from_left, &mut to_right));
    let (mut from_right, mut to_left) = (right, left);
    pump(&mut from_right, &mut to_left)?;
    forward
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a relay panicked")))
}

fn pump(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            length => to.write_all(&buffer[..length])?,
        }
    }
    to.shutdown(Shutdown::Write)
}
