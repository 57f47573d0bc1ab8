//! The thread that writes.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use super::AccessCounts;
use crate::flow::FlowEvent;

/// So much is written at a time, where so much waits.
const BATCH: usize = 64 << 10;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogTo {
    /// The standard output.
    Stdout,
    /// The end of a file. One that was moved away or removed is made anew.
    File(PathBuf),
}

/// Writes the lines. Made to have a thread of its own: it waits for the disk, or for whoever
/// reads.
#[derive(Debug)]
pub struct AccessLogWriter {
    lines: Receiver<Box<FlowEvent>>,
    sink: Sink,
    counts: AccessCounts,
    /// The last lines could not be written, which was said.
    failing: bool,
}

#[derive(Debug)]
struct Sink {
    file: File,
    /// Where it is to be; `None`: it was handed over by whoever started the process.
    path: Option<PathBuf>,
}

impl AccessLogWriter {
    pub(super) fn open(
        lines: Receiver<Box<FlowEvent>>,
        to: &AccessLogTo,
        counts: AccessCounts,
    ) -> io::Result<Self> {
        let sink = match to {
            // Not by its lock, which the command line holds for as long as the agent runs.
            AccessLogTo::Stdout => Sink {
                file: io::stdout().as_fd().try_clone_to_owned()?.into(),
                path: None,
            },
            AccessLogTo::File(path) => Sink {
                file: open(path)?,
                path: Some(path.clone()),
            },
        };
        Ok(Self {
            lines,
            sink,
            counts,
            failing: false,
        })
    }

    /// Writes until the hub has gone.
    pub fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while let Ok(first) = self.lines.recv() {
            let mut count = 0;
            let mut next = Some(first);
            while let Some(event) = next {
                add(&mut batch, &event);
                count += 1;
                let more = batch.len() < BATCH;
                next = more.then(|| self.lines.try_recv().ok()).flatten();
            }
            self.write(&batch, count);
            batch.clear();
        }
    }

    fn write(&mut self, batch: &[u8], count: u64) {
        // What was written of the last batch may end within a line.
        let mended = if self.failing { &b"\n"[..] } else { b"" };
        match self.sink.write(mended, batch) {
            Ok(()) => {
                let _before = self.counts.written.inc_by(count);
                self.failing = false;
            }
            Err(error) => {
                let _before = self.counts.dropped.inc_by(count);
                if !self.failing {
                    tracing::warn!(%error, "the access log can't be written: lines are lost");
                }
                self.failing = true;
            }
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let _before = self.counts.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}

impl Sink {
    fn write(&mut self, mended: &[u8], batch: &[u8]) -> io::Result<()> {
        if let Some(path) = &self.path
            && !self.is_at(path)?
        {
            self.file = open(path)?;
        } else if !mended.is_empty() {
            self.file.write_all(mended)?;
        }
        self.file.write_all(batch)
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        let is_ours = |there: Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        Ok(std::fs::metadata(path).is_ok_and(is_ours))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).open(path)
}

fn add(batch: &mut Vec<u8>, event: &FlowEvent) {
    // Its texts and numbers always have a form in JSON, and a vector takes it.
    if serde_json::to_writer(&mut *batch, event).is_ok() {
        batch.push(b'\n');
    }
}
