//! The feed from an API server: one watch for each kind, one state of all of them.
//!
//! ```text
//!  API server ─► Watcher (pages or streamed list, then events) ─► Reflector ─► Changes ─┐
//!             ─► ..  one for each kind                                                  ├─► Writer ─► watch
//!             ─► ..                                                                     ┘  (a few ms
//!                                                                                          together)
//! ```
//!
//! Only what [`crate::cluster::convert`] makes of an object is kept, and that by the state.
//! Nothing is published before every kind has been read once. From then on what was read
//! stays in force until the API server says otherwise: one that is away changes nothing
//! but the [`Health`](crate::cluster::source::Health).

mod away;
mod backoff;
mod failure;
mod health;
mod kind;
mod reflector;
mod server;
mod watcher;
mod wire;

#[cfg(test)]
mod tests;

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::Client;
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::cluster::source::{Source, log};
use crate::model::TrustDomain;
use crate::state::{ObjectKind, Snapshot, Writer};
use health::Watches;
use kind::{KINDS, Kind};
use server::Server;
use watcher::{Report, Watcher};

/// Changes that come within this time are published together.
const TOGETHER: Duration = Duration::from_millis(5);
/// Pieces of watches that may wait for the state.
const REPORTS: usize = 64;

/// What the feed needs to know.
#[derive(Debug)]
pub(super) struct Config {
    /// How it is called: `kube:https://10.0.0.1:6443`.
    pub(super) name: String,
    /// Of the identities that pods have.
    pub(super) trust_domain: TrustDomain,
    /// The kinds that are wanted.
    pub(super) kinds: &'static [ObjectKind],
    /// The blocks of which external addresses of Services may be.
    pub(super) external_ips: Vec<IpNet>,
}

/// Starts the feed. Nothing happens unless the future is polled; it never ends.
pub(super) fn start(
    client: &Client,
    config: Config,
) -> (Source, impl Future<Output = ()> + Send + 'static + use<>) {
    let Config {
        name,
        trust_domain,
        kinds,
        external_ips,
    } = config;
    let wanted = KINDS.iter().filter(|it| kinds.contains(&it.object));
    let kinds: Vec<&'static Kind> = wanted.collect();
    let states = Watches::new(name, &kinds);
    let (snapshots, snapshot_receiver) = watch::channel(Snapshot::default());
    let (health, health_receiver) = watch::channel(states.health(0));
    let (open_stage, stage) = watch::channel(states.open_stage());
    let (reports_in, reports) = mpsc::channel(REPORTS);
    let watchers = kinds.into_iter().enumerate().map(|kind| {
        let converter = Converter::new(trust_domain.clone(), NetnsFrom::Node);
        let server = Server(client.clone());
        Watcher::new(kind, server, converter, reports_in.clone()).run(stage.clone())
    });
    let mut watchers: FuturesUnordered<_> = watchers.collect();
    let feed = Feed {
        watches: states,
        writer: Writer::with_external_ips(external_ips),
        snapshots,
        health,
        open_stage,
    };
    let source = Source {
        snapshots: snapshot_receiver,
        health: health_receiver,
    };
    let run = async move {
        // Neither ends before the other.
        tokio::join!(
            async { while watchers.next().await.is_some() {} },
            feed.run(reports)
        );
    };
    (source, run)
}

/// Where the watches come together.
struct Feed {
    watches: Watches,
    writer: Writer,
    snapshots: watch::Sender<Snapshot>,
    health: watch::Sender<crate::cluster::source::Health>,
    open_stage: watch::Sender<usize>,
}

impl Feed {
    async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        while let Some(first) = reports.recv().await {
            self.take(first);
            let end = Instant::now() + TOGETHER;
            while Instant::now() < end
                && let Ok(Some(report)) = timeout_at(end, reports.recv()).await
            {
                self.take(report);
            }
            self.publish();
        }
    }

    fn take(&mut self, report: Report) {
        for change in report.changes {
            self.writer.apply(change);
        }
        self.watches.count(report.index, report.objects);
        if let Some(news) = report.news {
            self.watches.hear(report.index, news, Timestamp::now());
        }
    }

    fn publish(&mut self) {
        let stage = self.watches.open_stage();
        self.open_stage
            .send_if_modified(|open| std::mem::replace(open, stage) != stage);
        if self.watches.complete()
            && let Some(snapshot) = self.writer.publish()
        {
            log(&self.snapshots.borrow(), &snapshot);
            self.snapshots.send_replace(snapshot);
        }
        let problems = self.snapshots.borrow().problems.len();
        self.health.send_replace(self.watches.health(problems));
    }
}
