//! What is measured: the cases, and how one is run once against one contender.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::contender::Contender;
use super::lab::Lab;
use super::peer::{Connects, Stream};
use super::process;
use super::report::Metric;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Case {
    /// Memory: idle, and with 1,000 idle connections.
    Idle,
    /// Requests for 1 KiB on 1 kept-alive connection.
    #[value(name = "1k-c1")]
    Small1,
    /// Requests for 1 KiB on 16 kept-alive connections.
    #[value(name = "1k-c16")]
    Small16,
    /// Requests for 1 KiB on 64 kept-alive connections.
    #[value(name = "1k-c64")]
    Small64,
    /// Requests for 64 KiB on 16 kept-alive connections.
    #[value(name = "64k-c16")]
    Large16,
    /// A new connection for each request, 16 at a time.
    #[value(name = "connect-c16")]
    Connect16,
    /// One stream from the client to the server.
    Upload,
    /// One stream from the server to the client.
    Download,
}

/// How many clients open connections at a time in [`Case::Connect16`].
const CONNECTING_CLIENTS: usize = 16;

/// The result of one case against one contender in one round.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Each goes to its own row.
    pub(super) values: Vec<(Metric, f64)>,
    /// Requests, connections or streams that failed, in words.
    pub(super) failure: Option<String>,
}

impl Case {
    /// All of them, in the order in which they are run.
    pub(super) const ALL: [Self; 8] = [
        Self::Idle,
        Self::Small1,
        Self::Small16,
        Self::Small64,
        Self::Large16,
        Self::Connect16,
        Self::Upload,
        Self::Download,
    ];

    /// Its name in JSON and on the command line.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Small1 => "1k-c1",
            Self::Small16 => "1k-c16",
            Self::Small64 => "1k-c64",
            Self::Large16 => "64k-c16",
            Self::Connect16 => "connect-c16",
            Self::Upload => "upload",
            Self::Download => "download",
        }
    }

    /// Its name for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Idle => "memory",
            Self::Small1 => "1 KiB, 1 connection",
            Self::Small16 => "1 KiB, 16 connections",
            Self::Small64 => "1 KiB, 64 connections",
            Self::Large16 => "64 KiB, 16 connections",
            Self::Connect16 => "new connection each, 16 clients",
            Self::Upload => "one stream up",
            Self::Download => "one stream down",
        }
    }

    /// Runs it once. Not for [`Case::Idle`], which needs all contenders together.
    pub(super) fn measure(
        self,
        lab: &Lab,
        contender: Contender,
        length: Duration,
    ) -> Result<Measured> {
        let run = Run {
            lab,
            contender,
            length,
        };
        match self {
            Self::Small1 => run.requests(1, "1k"),
            Self::Small16 => run.requests(16, "1k"),
            Self::Small64 => run.requests(64, "1k"),
            Self::Large16 => run.requests(16, "64k"),
            Self::Connect16 => run.connects(),
            Self::Upload => run.stream("upload"),
            Self::Download => run.stream("download"),
            Self::Idle => bail!("memory is not measured one contender at a time"),
        }
        .with_context(|| format!("{}: {}", self.title(), contender.title()))
    }
}

/// One load on one contender.
#[derive(Clone, Copy)]
struct Run<'a> {
    lab: &'a Lab,
    contender: Contender,
    length: Duration,
}

/// What `wrk` tells through the script that the lab gives it.
#[derive(Deserialize)]
struct Wrk {
    requests: u64,
    microseconds: f64,
    p50_microseconds: f64,
    p99_microseconds: f64,
    errors: u64,
}

impl Run<'_> {
    fn requests(self, connections: u32, file: &str) -> Result<Measured> {
        let endpoint = self.lab.endpoint(self.contender);
        let arguments = [
            "wrk".to_owned(),
            "-t1".to_owned(),
            format!("-c{connections}"),
            format!("-d{}s", self.length.as_secs()),
            "-s".to_owned(),
            self.lab.wrk_script().display().to_string(),
            format!("http://{}/{file}", endpoint.http),
        ];
        let (wrk, cpu): (Wrk, f64) = self.load(&arguments)?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "requests are far fewer than 2^52"
        )]
        let requests = wrk.requests as f64;
        if wrk.requests == 0 {
            bail!("no request succeeded");
        }
        Ok(Measured {
            values: self.with_cpu(
                vec![
                    (Metric::RequestsPerSecond, requests / wrk.microseconds * 1e6),
                    (Metric::MedianSeconds, wrk.p50_microseconds / 1e6),
                    (Metric::P99Seconds, wrk.p99_microseconds / 1e6),
                ],
                (Metric::CpuSecondsPer10k, cpu / requests * 1e4),
            ),
            failure: (wrk.errors > 0)
                .then(|| format!("{} of {} requests failed", wrk.errors, wrk.requests)),
        })
    }

    fn connects(self) -> Result<Measured> {
        let server = self.lab.endpoint(self.contender).http;
        let arguments = self.peer(
            "connect",
            &[
                server.to_string(),
                self.seconds(),
                CONNECTING_CLIENTS.to_string(),
            ],
        );
        let (result, cpu): (Connects, f64) = self.load(&arguments)?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "connections are far fewer than 2^52"
        )]
        let connections = result.connections as f64;
        if result.connections == 0 {
            bail!(
                "no connection was served: {}",
                result.first_error.unwrap_or_default()
            );
        }
        Ok(Measured {
            values: self.with_cpu(
                vec![
                    (Metric::ConnectionsPerSecond, connections / result.seconds),
                    (Metric::MedianSeconds, result.p50_seconds),
                    (Metric::P99Seconds, result.p99_seconds),
                ],
                (Metric::CpuSecondsPer10k, cpu / connections * 1e4),
            ),
            failure: result.first_error.map(|first| {
                format!(
                    "{} of {} connections failed, the first: {first}",
                    result.errors, connections
                )
            }),
        })
    }

    fn stream(self, direction: &str) -> Result<Measured> {
        let endpoint = self.lab.endpoint(self.contender);
        let server = if direction == "upload" {
            endpoint.upload
        } else {
            endpoint.download
        };
        let arguments = self.peer(direction, &[server.to_string(), self.seconds()]);
        let (stream, cpu): (Stream, f64) = self.load(&arguments)?;
        #[expect(clippy::cast_precision_loss, reason = "bytes are far fewer than 2^52")]
        let bytes = stream.bytes as f64;
        Ok(Measured {
            values: self.with_cpu(
                vec![(Metric::BitsPerSecond, bytes * 8.0 / stream.seconds)],
                (Metric::CpuSecondsPerGb, cpu / bytes * 1e9),
            ),
            failure: None,
        })
    }

    /// Runs a load to its end; its result, and the proxies' processor time meanwhile.
    fn load<T: DeserializeOwned>(self, arguments: &[String]) -> Result<(T, f64)> {
        let pids = self.lab.proxies(self.contender);
        let before = process::cpu_time(&pids)?;
        let limit = self.length + Duration::from_secs(20);
        let output = self
            .lab
            .client(self.contender)
            .run_for(limit, arguments)?
            .ok()?;
        let cpu = process::cpu_time(&pids)?.saturating_sub(before);
        let line = output.stdout.lines().rfind(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("no result in:\n{}", output.stdout))?;
        Ok((serde_json::from_str(line)?, cpu.as_secs_f64()))
    }

    fn with_cpu(self, mut values: Vec<(Metric, f64)>, cpu: (Metric, f64)) -> Vec<(Metric, f64)> {
        if self.contender != self.contender.base() {
            values.push(cpu);
        }
        values
    }

    fn peer(self, role: &str, arguments: &[String]) -> Vec<String> {
        let mut all = self.lab.peer(role);
        all.extend_from_slice(arguments);
        all
    }

    fn seconds(self) -> String {
        self.length.as_secs_f64().to_string()
    }
}
