//! What connections cost in memory.

use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_tests::Process;

use super::case::Case;
use super::contender::Contender;
use super::lab::Lab;
use super::peer::HOLDING;
use super::process;
use super::report::{Metric, Report};

/// Connections that idle in each measurement.
const CONNECTIONS: u16 = 1000;

/// After this, a proxy idles that was just started.
const START: Duration = Duration::from_secs(5);

/// After this, what a proxy does after a connection's first request is done.
const SETTLE: Duration = Duration::from_secs(1);

/// Measures all proxies idle, then each with idle connections, those of the ones before it held
/// open: one agent takes part in two contenders, and memory that was used once would not show.
pub(super) fn measure(lab: &Lab, contenders: &[Contender], report: &mut Report) -> Result<()> {
    let proxied = || {
        contenders
            .iter()
            .copied()
            .filter(|contender| *contender != contender.base())
    };
    // What a start has used is given back by now.
    std::thread::sleep(START);
    let mut idle = Vec::new();
    for contender in proxied() {
        idle.push((contender, process::resident_bytes(&lab.proxies(contender))?));
    }
    let mut holders = Vec::new();
    for (contender, idle) in idle {
        let pids = lab.proxies(contender);
        let before = process::resident_bytes(&pids)?;
        holders.push(hold(lab, contender)?);
        std::thread::sleep(SETTLE);
        let grown = process::resident_bytes(&pids)?.saturating_sub(before);
        let mut record = |metric, value| {
            report.record(
                (Case::Idle.key(), Case::Idle.title()),
                metric,
                contender,
                value,
            );
        };
        record(Metric::IdleBytes, bytes(idle));
        record(Metric::LoadedBytes, bytes(idle + grown));
        record(
            Metric::BytesPerConnection,
            bytes(grown) / f64::from(CONNECTIONS),
        );
    }
    Ok(())
}

fn hold(lab: &Lab, contender: Contender) -> Result<Process> {
    let mut arguments = lab.peer("hold");
    arguments.extend([
        lab.endpoint(contender).http.to_string(),
        CONNECTIONS.to_string(),
    ]);
    let mut holder = lab
        .client(contender)
        .spawn(&format!("hold-{}", contender.key()), &arguments)?;
    holder
        .wait_for(HOLDING, Duration::from_secs(30))
        .with_context(|| format!("{CONNECTIONS} idle connections: {}", contender.title()))?;
    Ok(holder)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "memory is far less than 2^52 bytes"
)]
fn bytes(count: u64) -> f64 {
    count as f64
}
