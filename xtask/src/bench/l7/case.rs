//! What is measured: the cases, and how one is run once against one contender.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::lab::{Lab, MANY};
use super::load::{Protocol, Requests};
use crate::bench::case::Measured;
use crate::bench::contender::Contender;
use crate::bench::report::Metric;

/// Connections, pools and the processors' clocks are as they stay after this.
const WARM_UP: f64 = 0.5;

/// Bytes of small and of large answers.
const SMALL: usize = 1024;
const LARGE: usize = 64 * 1024;

/// Connections of the cases.
const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    protocol: Protocol,
    size: usize,
    connections: usize,
    /// Requests at a time on each.
    streams: usize,
    routes: usize,
}

impl Case {
    /// All of them, in the order in which they are run.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for protocol in [Protocol::Http1, Protocol::Grpc] {
            for (size, routes) in [(SMALL, 1), (LARGE, 1), (SMALL, MANY)] {
                let case = |connections| Self {
                    protocol,
                    size,
                    connections,
                    streams: 1,
                    routes,
                };
                all.extend(CONNECTIONS.map(case));
                if protocol == Protocol::Grpc {
                    all.push(Self {
                        streams: 64,
                        ..case(1)
                    });
                }
            }
        }
        all
    }

    /// Its name in JSON and on the command line.
    pub(super) fn key(&self) -> String {
        let protocol = match self.protocol {
            Protocol::Http1 => "http1",
            Protocol::Grpc => "grpc",
        };
        let streams = match self.streams {
            1 => String::new(),
            count => format!("x{count}"),
        };
        let (size, connections, routes) = (self.size / 1024, self.connections, self.routes);
        format!("{protocol}-{size}k-c{connections}{streams}-r{routes}")
    }

    /// Its name for people.
    pub(super) fn title(&self) -> String {
        let protocol = match self.protocol {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Grpc => "gRPC",
        };
        let connections = match (self.connections, self.streams) {
            (1, 1) => "1 connection".to_owned(),
            (1, streams) => format!("1 connection, {streams} calls at a time"),
            (count, _) => format!("{count} connections"),
        };
        let routes = match self.routes {
            1 => String::new(),
            count => format!(", {count} routes"),
        };
        let size = self.size / 1024;
        format!("{protocol}, {size} KiB, {connections}{routes}")
    }

    /// Runs it once.
    pub(super) fn measure(
        &self,
        lab: &Lab,
        contender: Contender,
        length: Duration,
    ) -> Result<Measured> {
        let run = || {
            let result = self.run(lab, contender, length)?;
            if result.answered == 0 {
                bail!("no answer: {}", result.first_error.unwrap_or_default());
            }
            Ok(measured(result, contender))
        };
        run().with_context(|| format!("{}: {}", self.title(), contender.title()))
    }

    fn run(&self, lab: &Lab, contender: Contender, length: Duration) -> Result<Requests> {
        let mut arguments = lab.peer("requests");
        arguments.extend([
            lab.endpoint(contender, self.protocol, self.routes)
                .to_string(),
            match self.protocol {
                Protocol::Http1 => "http1",
                Protocol::Grpc => "grpc",
            }
            .to_owned(),
        ]);
        let mut option = |name: &str, value: String| {
            arguments.extend([format!("--{name}"), value]);
        };
        option("size", self.size.to_string());
        option("connections", self.connections.to_string());
        option("streams", self.streams.to_string());
        option("routes", self.routes.to_string());
        option("warm-up", WARM_UP.to_string());
        option("seconds", length.as_secs_f64().to_string());
        for pid in lab.proxies(contender) {
            option("pid", pid.to_string());
        }
        let limit = length + Duration::from_secs(30);
        let output = lab.client(contender).run_for(limit, &arguments)?.ok()?;
        let line = output.stdout.lines().rfind(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("no result in:\n{}", output.stdout))?;
        Ok(serde_json::from_str(line)?)
    }
}

fn measured(result: Requests, contender: Contender) -> Measured {
    #[expect(
        clippy::cast_precision_loss,
        reason = "requests and bytes are far fewer than 2^52"
    )]
    let (requests, resident) = (result.answered as f64, result.resident_bytes as f64);
    let mut values = vec![
        (Metric::RequestsPerSecond, requests / result.seconds),
        (Metric::MedianSeconds, result.p50_seconds),
        (Metric::P99Seconds, result.p99_seconds),
    ];
    if contender != contender.base() {
        values.extend([
            (
                Metric::CpuSecondsPer10k,
                result.cpu_seconds / requests * 1e4,
            ),
            (Metric::ResidentBytes, resident),
        ]);
    }
    Measured {
        values,
        failure: result.first_error.map(|first| {
            format!(
                "{} of {requests} requests failed, the first: {first}",
                result.errors
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let all = Case::all();
        let keys: BTreeSet<_> = all.iter().map(Case::key).collect();
        let titles: BTreeSet<_> = all.iter().map(Case::title).collect();
        assert_eq!((keys.len(), titles.len()), (all.len(), all.len()));
        assert!(keys.contains("http1-1k-c1-r1"));
        assert!(keys.contains("grpc-1k-c1x64-r1000"));
    }
}
