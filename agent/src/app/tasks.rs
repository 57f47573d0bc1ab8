//! The process's tasks: all owned by one set, so that none outlives it unseen.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinSet};

/// The tasks of the process.
#[derive(Debug, Default)]
pub(super) struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Tasks {
    /// Starts a task. A process whose task ends, with an error or without, stops.
    pub(super) fn start(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let _handle = self.0.spawn(async move { (name, task.await) });
    }

    /// Starts a task that can't fail.
    pub(super) fn keep(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.start(name, async move {
            task.await;
            Ok(())
        });
    }

    /// The name and end of the next task that ends. Cancel safe.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match self.0.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the task \"{name}\" ended"),
            Some(Ok((name, Err(error)))) => error.context(format!("the task \"{name}\" failed")),
            Some(Err(error)) => panicked(&error),
            None => anyhow::anyhow!("there is no task"),
        }
    }
}

fn panicked(error: &JoinError) -> anyhow::Error {
    anyhow::anyhow!("a task panicked: {error}")
}

/// The signals that ask the process to stop.
#[derive(Debug)]
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on these signals do not kill the process.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one's name. Cancel safe.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
