//! The programs that a bench runs inside pods, as a hidden subcommand of this binary: `cargo xtask`
//! starts itself there, so that nothing else has to be installed. One JSON line is their result.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::{l7, scale};

/// As iperf3 writes.
const BLOCK: usize = 128 * 1024;

/// No answer at all within this time counts as a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to be.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Role {
    /// Serve streams: read to the end and tell the number of bytes, or send until nobody reads.
    Serve {
        /// Where clients upload to.
        upload: SocketAddr,
        /// Where clients download from.
        download: SocketAddr,
    },
    /// One stream to the server.
    Upload { server: SocketAddr, seconds: f64 },
    /// One stream from the server.
    Download { server: SocketAddr, seconds: f64 },
    /// Connections without end, each for one HTTP request.
    Connect {
        server: SocketAddr,
        seconds: f64,
        clients: usize,
    },
    /// Connections that idle after one HTTP request, until this process is ended.
    Hold {
        server: SocketAddr,
        connections: usize,
    },
    /// Serve HTTP/1.1 and gRPC.
    ServeRequests(l7::ServerOptions),
    /// Requests without end, each connection so many at a time.
    Requests(l7::LoadOptions),
    /// An API server with a large cluster, told on its input what to do.
    ApiServer(scale::ServerOptions),
}

/// The result of a stream.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Stream {
    /// Bytes that arrived.
    pub(super) bytes: u64,
    /// From the connection's first byte to its last.
    pub(super) seconds: f64,
}

/// The result of [`Role::Connect`].
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Connects {
    /// Connections that were served in full.
    pub(super) connections: u64,
    /// Connections that were not.
    pub(super) errors: u64,
    /// What went wrong first.
    pub(super) first_error: Option<String>,
    pub(super) seconds: f64,
    /// From before `connect` to the end of the answer.
    pub(super) p50_seconds: f64,
    pub(super) p99_seconds: f64,
}

/// What [`Role::Hold`] says once all connections idle.
pub(super) const HOLDING: &str = "holding";

/// Plays a role to its end.
pub(crate) fn run(role: Role) -> Result<()> {
    match role {
        Role::Serve { upload, download } => serve(upload, download),
        Role::Upload { server, seconds } => say(&upload(server, seconds)?),
        Role::Download { server, seconds } => say(&download(server, seconds)?),
        Role::Connect {
            server,
            seconds,
            clients,
        } => say(&connect(server, seconds, clients)?),
        Role::Hold {
            server,
            connections,
        } => hold(server, connections),
        Role::ServeRequests(options) => l7::serve(&options),
        Role::Requests(options) => say(&l7::load(&options)?),
        Role::ApiServer(options) => scale::serve(&options),
    }
}

fn say(result: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(result)?;
    line.push('\n');
    std::io::stdout().write_all(line.as_bytes())?;
    Ok(())
}

fn serve(upload: SocketAddr, download: SocketAddr) -> Result<()> {
    let uploads = listen(upload)?;
    let downloads = listen(download)?;
    let sending = thread::spawn(move || each(&downloads, send_until_closed));
    each(&uploads, count_until_end)?;
    sending
        .join()
        .map_err(|_panic| anyhow::anyhow!("the sending thread panicked"))?
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

fn each(listener: &TcpListener, serve: fn(TcpStream) -> std::io::Result<()>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A client that goes away is no concern of the others.
        let _client = thread::spawn(move || drop(serve(stream)));
    }
}

fn count_until_end(mut stream: TcpStream) -> std::io::Result<()> {
    let total = read_to_end(&mut stream, None)?;
    stream.write_all(&total.to_be_bytes())
}

fn send_until_closed(mut stream: TcpStream) -> std::io::Result<()> {
    let block = vec![b'x'; BLOCK];
    loop {
        stream.write_all(&block)?;
    }
}

/// Reads until the end, or until the deadline.
fn read_to_end(stream: &mut TcpStream, deadline: Option<Instant>) -> std::io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    loop {
        match stream.read(&mut block) {
            Ok(0) => return Ok(total),
            Ok(count) => total += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(total);
        }
    }
}

fn upload(server: SocketAddr, seconds: f64) -> Result<Stream> {
    let mut stream = dial(server)?;
    let block = vec![b'x'; BLOCK];
    let start = Instant::now();
    let deadline = start + Duration::from_secs_f64(seconds);
    let mut sent = 0;
    while Instant::now() < deadline {
        stream.write_all(&block)?;
        sent += block.len() as u64;
    }
    // What the proxies still hold counts once the server has it.
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream
        .read_exact(&mut total)
        .context("the server did not tell what it received")?;
    let bytes = u64::from_be_bytes(total);
    if bytes != sent {
        bail!("{sent} bytes were sent and {bytes} received");
    }
    Ok(Stream {
        bytes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn download(server: SocketAddr, seconds: f64) -> Result<Stream> {
    let mut stream = dial(server)?;
    let start = Instant::now();
    let bytes = read_to_end(&mut stream, Some(start + Duration::from_secs_f64(seconds)))?;
    Ok(Stream {
        bytes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn dial(server: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn connect(server: SocketAddr, seconds: f64, clients: usize) -> Result<Connects> {
    let start = Instant::now();
    let deadline = start + Duration::from_secs_f64(seconds);
    let threads: Vec<_> = (0..clients)
        .map(|_| thread::spawn(move || connect_until(server, deadline)))
        .collect();
    let mut times = Vec::new();
    let mut errors = 0;
    let mut first_error = None;
    for client in threads {
        let (durations, failures) = client
            .join()
            .map_err(|_panic| anyhow::anyhow!("a client panicked"))?;
        times.extend(durations);
        errors += failures.len() as u64;
        first_error = first_error.or(failures.into_iter().next());
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Ok(Connects {
        connections: times.len() as u64,
        errors,
        first_error,
        seconds,
        p50_seconds: percentile(&times, 50),
        p99_seconds: percentile(&times, 99),
    })
}

fn connect_until(server: SocketAddr, deadline: Instant) -> (Vec<f64>, Vec<String>) {
    let (mut times, mut errors) = (Vec::new(), Vec::new());
    while Instant::now() < deadline {
        let start = Instant::now();
        match request(server, "close").and_then(|mut stream| read_answer_to_end(&mut stream)) {
            Ok(()) => times.push(start.elapsed().as_secs_f64()),
            Err(error) => {
                errors.push(format!("{error:#}"));
                // So that a server that refuses does not turn this into a loop.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    (times, errors)
}

fn request(server: SocketAddr, connection: &str) -> Result<TcpStream> {
    let mut stream = dial(server)?;
    stream.set_nodelay(true)?;
    let request = format!("GET /1k HTTP/1.1\r\nHost: bench\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn read_answer_to_end(stream: &mut TcpStream) -> Result<()> {
    let mut answer = Vec::with_capacity(4096);
    stream.read_to_end(&mut answer)?;
    check(&answer)
}

fn check(answer: &[u8]) -> Result<()> {
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        bail!("the answer is not 200");
    }
    if answer.len() < 1024 {
        bail!("the answer is cut off after {} bytes", answer.len());
    }
    Ok(())
}

/// The value below which `percent` of the sorted values are; the default of none.
pub(super) fn percentile<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

fn hold(server: SocketAddr, connections: usize) -> Result<()> {
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = request(server, "keep-alive")?;
        let mut answer = Vec::with_capacity(4096);
        let mut block = [0; 4096];
        // The headers of the answer are less than the rest of this.
        while !ends_with_body(&answer) {
            let count = stream.read(&mut block).context("no answer")?;
            if count == 0 {
                bail!("connection {} was closed", held.len());
            }
            answer.extend_from_slice(&block[..count]);
        }
        check(&answer)?;
        held.push(stream);
    }
    say(&HOLDING)?;
    loop {
        thread::park();
    }
}

/// The headers and the 1,024 bytes of the body.
fn ends_with_body(answer: &[u8]) -> bool {
    let headers = answer.windows(4).position(|window| window == b"\r\n\r\n");
    headers.is_some_and(|headers| answer.len() >= headers + 4 + 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values() {
        assert_eq!(percentile::<u32>(&[], 50), 0);
        assert_eq!(percentile(&[1], 99), 1);
        assert_eq!(percentile(&[1, 2, 3, 4], 50), 3);
    }

    #[test]
    fn streams_count_what_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _server = thread::spawn(move || each(&listener, count_until_end));
        let result = upload(address, 0.05).unwrap();
        assert!(result.bytes > 0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _server = thread::spawn(move || each(&listener, send_until_closed));
        assert!(download(address, 0.05).unwrap().bytes > 0);
    }
}
