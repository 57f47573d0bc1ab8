//! The API server in a process of its own, and the pipe by which it is told what to do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_tests::Place;
use fairlead_tests::apiserver::{ADMIN_TOKEN, ApiServer, Options};
use serde::{Deserialize, Serialize};

use super::cluster::Cluster;

/// What the process is to be.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerOptions {
    /// Where it listens.
    pub(super) listen: SocketAddr,
    /// How many pods its cluster has.
    pub(super) pods: usize,
    /// Where the kubeconfig is written to.
    pub(super) kubeconfig: PathBuf,
}

/// What the process is told, one line each.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Order {
    /// Endpoint changes a second from now on; 0 for none.
    Churn(u32),
    /// The probed Service has a ready endpoint, or has none.
    Probe(bool),
    /// Tell what clients cost since the last report.
    Report,
}

/// What clients cost since the last report.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Cost {
    /// Requests by verb.
    pub(super) requests: BTreeMap<String, usize>,
    /// Watches that are open.
    pub(super) watches: usize,
    /// Bytes of answers.
    pub(super) bytes: u64,
    /// Endpoint changes that were made.
    pub(super) changes: u64,
}

/// The process. It ends when dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts it in a place, and returns once all objects are there.
    pub(super) fn start(place: &Place, pods: usize, kubeconfig: &Path) -> Result<Self> {
        let mut child = place
            .command(std::env::current_exe()?)
            .args(["bench-peer", "api-server", "127.0.0.1:6443"])
            .arg(pods.to_string())
            .arg(kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the API server")?;
        let orders = child.stdin.take().context("stdin is a pipe")?;
        let answers = child.stdout.take().context("stdout is a pipe")?;
        let mut server = Self {
            child,
            orders,
            answers: BufReader::new(answers).lines(),
        };
        let _loaded: Cost = server.answer()?;
        Ok(server)
    }

    pub(super) fn churn(&mut self, rate: u32) -> Result<()> {
        self.order(Order::Churn(rate)).map(drop)
    }

    pub(super) fn probe(&mut self, ready: bool) -> Result<()> {
        self.order(Order::Probe(ready)).map(drop)
    }

    pub(super) fn report(&mut self) -> Result<Cost> {
        self.order(Order::Report)
    }

    fn order(&mut self, order: Order) -> Result<Cost> {
        let line = serde_json::to_string(&order)?;
        writeln!(self.orders, "{line}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Cost> {
        let Some(line) = self.answers.next() else {
            bail!("the API server's process has ended");
        };
        Ok(serde_json::from_str(&line?)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The process itself; it ends with its input.
pub(crate) fn run(options: &ServerOptions) -> Result<()> {
    let server = ApiServer::start(Options {
        address: options.listen,
        ..Options::default()
    })?;
    let server = Arc::new(server);
    let cluster = Arc::new(Cluster::new(options.pods));
    cluster.load(&server)?;
    server.write_kubeconfig(&options.kubeconfig, ADMIN_TOKEN)?;
    server.reset_requests();
    let changes = Arc::new(AtomicU64::new(0));
    say(&Cost::default())?;
    let mut churn: Option<Churn> = None;
    for line in std::io::stdin().lines() {
        let mut cost = Cost::default();
        match serde_json::from_str(&line?)? {
            Order::Churn(0) => churn = None,
            Order::Churn(rate) => {
                let of = (Arc::clone(&server), Arc::clone(&cluster));
                churn = Some(Churn::start(of, rate, &changes));
            }
            Order::Probe(ready) => Cluster::put_probe(&server, ready)?,
            Order::Report => cost = report(&server, &changes),
        }
        say(&cost)?;
    }
    drop(churn);
    Ok(())
}

fn report(server: &ApiServer, changes: &AtomicU64) -> Cost {
    let mut cost = Cost {
        changes: changes.swap(0, Ordering::Relaxed),
        ..Cost::default()
    };
    for request in server.requests() {
        *cost.requests.entry(request.verb.to_owned()).or_default() += 1;
        cost.watches += usize::from(request.open && request.verb == "watch");
        cost.bytes += request.sent_bytes;
    }
    server.reset_requests();
    cost
}

fn say(cost: &Cost) -> Result<()> {
    let line = serde_json::to_string(cost)?;
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// Changes at a rate, until dropped.
struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    fn start(
        (server, cluster): (Arc<ApiServer>, Arc<Cluster>),
        rate: u32,
        changes: &Arc<AtomicU64>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, changes) = (Arc::clone(&stop), Arc::clone(changes));
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let pause = Duration::from_secs(1) / rate;
            for step in 0_u32.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // Everywhere in the cluster, each pod first unready and then ready again.
                let number = (step / 2) as usize * 7919 % cluster.pods;
                if cluster.change(&server, number, step % 2 == 1).is_err() {
                    break;
                }
                changes.fetch_add(1, Ordering::Relaxed);
                let due = start + pause * (step + 1);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // One that panicked has said so.
        drop(self.thread.take().map(JoinHandle::join));
    }
}
