//! What people and machines ask an agent by: the socket and the metrics address. One agent
//! of a node holds both.
//!
//! ```text
//!            another agent puts its socket there
//!   serving ───────────────────────────────────► released ──► it took over ──► it ended:
//!      ▲                                             │                         an error
//!      └─────────────────────────────────────────────┘
//!            it ended before it had taken over
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::admin::{AdminServer, HttpServer, SocketListener, SocketPlace, View, is_served};
use crate::flow::{FlowMetrics, Flows};
use crate::redirect::{self, Tenure};

/// Between two looks at who holds the socket.
const LOOK: Duration = Duration::from_millis(500);
/// So many looks in a row must find nobody before the other agent counts as ended.
const LOOKS: u32 = 4;
/// How long the other agent may take to let go of the metrics address.
const RELEASE: Duration = Duration::from_secs(15);

/// Where an agent is asked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) run_dir: PathBuf,
    pub(super) metrics_addr: SocketAddr,
}

/// Both open.
#[derive(Debug)]
pub(super) struct Doors {
    socket: SocketListener,
    http: TcpListener,
}

impl Place {
    /// Opens both, in place of another agent or not.
    pub(super) async fn doors(
        &self,
        replace: bool,
        kernel: &redirect::Config,
    ) -> anyhow::Result<Doors> {
        if replace {
            self.take().await
        } else {
            refuse_second(kernel)?;
            self.open().await
        }
    }

    /// Opens both; fails where another agent has them.
    async fn open(&self) -> anyhow::Result<Doors> {
        let socket = SocketListener::bind(&self.run_dir)?;
        let http = self.bind().await?;
        Ok(Doors { socket, http })
    }

    /// Opens both, and waits for another agent that has them to let go.
    async fn take(&self) -> anyhow::Result<Doors> {
        let another = is_served(&self.run_dir);
        let socket = SocketListener::replace(&self.run_dir)?;
        if another {
            tracing::info!("taking over from the agent that runs here");
        }
        let end = Instant::now() + RELEASE;
        loop {
            match self.bind().await {
                Ok(http) => return Ok(Doors { socket, http }),
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => sleep(LOOK / 5).await,
            }
        }
    }

    async fn bind(&self) -> anyhow::Result<TcpListener> {
        let bound = TcpListener::bind(self.metrics_addr).await;
        bound.with_context(|| format!("--metrics-addr {}", self.metrics_addr))
    }
}

/// What answers.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) place: Place,
    pub(super) view: Arc<dyn View>,
    pub(super) flows: Flows,
    pub(super) metrics: FlowMetrics,
    pub(super) tenure: Tenure,
}

impl Desk {
    /// Answers, or lets another agent answer; ends where the pods have none any more.
    pub(super) async fn run(self, mut doors: Doors) -> anyhow::Result<()> {
        loop {
            let held = doors.socket.place();
            let admin = AdminServer::new(Arc::clone(&self.view), self.flows.clone());
            let http = HttpServer::new(doors.http, &self.metrics, Arc::clone(&self.view));
            tokio::select! {
                ended = admin.run(doors.socket) => return Ok(ended?),
                () = http.run() => bail!("the metrics address is not served any more"),
                () = lost(held) => {}
            }
            tracing::info!("another agent of this node answers from now on");
            doors = self.wait().await?;
            tracing::warn!("the agent that was to take over has ended; this one answers again");
        }
    }

    /// Waits for the other agent's end.
    async fn wait(&self) -> anyhow::Result<Doors> {
        let mut looks = 0;
        loop {
            sleep(LOOK).await;
            looks = if is_served(&self.place.run_dir) {
                0
            } else {
                looks + 1
            };
            if looks < LOOKS {
                continue;
            }
            if self.tenure.is_over() {
                bail!("the agent that took over has ended; start this one again");
            }
            if let Ok(doors) = self.place.open().await {
                return Ok(doors);
            }
        }
    }
}

/// Returns once another agent's socket is there.
async fn lost(held: SocketPlace) {
    while held.is_held() {
        sleep(LOOK).await;
    }
}

/// Two agents would take the pods of a node from each other. Known by the pins, which an
/// agent with another run directory has, too.
fn refuse_second(config: &redirect::Config) -> anyhow::Result<()> {
    let node = &config.node;
    match redirect::running_agents(&config.bpffs, Some(node))?.first() {
        None => Ok(()),
        Some(other) => anyhow::bail!(
            "an agent of the node {node} is already running, process {}; stop it, or take its \
             pods over with --replace",
            other.pid
        ),
    }
}
