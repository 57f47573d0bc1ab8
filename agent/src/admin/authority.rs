//! What a certificate authority tells of itself as metrics.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType::{Counter, Gauge};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// What there is to tell at one moment.
#[derive(Clone, Debug)]
pub struct AuthorityFigures {
    /// Certificates that were signed.
    pub issued: u64,
    /// Requests that were refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// When the authority's own certificate expires, where it has one.
    pub authority_ends: Option<SystemTime>,
    /// This replica keeps the root; `None` where nobody has to.
    pub leader: Option<bool>,
}

/// Writes the metrics `fairlead_ca_*`, made anew at each scrape.
pub(super) struct AuthorityMetrics(Box<dyn Fn() -> AuthorityFigures + Send + Sync>);

impl AuthorityMetrics {
    pub(super) fn of(figures: impl Fn() -> AuthorityFigures + Send + Sync + 'static) -> Self {
        Self(Box::new(figures))
    }
}

impl fmt::Debug for AuthorityMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityMetrics").finish_non_exhaustive()
    }
}

impl Collector for AuthorityMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let figures = (self.0)();
        let help = "Certificates that were signed";
        let issued =
            encoder.encode_descriptor("fairlead_ca_certificates_issued", help, None, Counter)?;
        ConstCounter::new(figures.issued).encode(issued)?;
        let help = "Requests for certificates that were refused, by reason";
        let mut refused =
            encoder.encode_descriptor("fairlead_ca_requests_refused", help, None, Counter)?;
        for (reason, count) in figures.refused {
            let labels = [("reason", reason)];
            ConstCounter::new(count).encode(refused.encode_family(&labels)?)?;
        }
        if let Some(ends) = figures.authority_ends {
            let name = "fairlead_ca_root_expiry_timestamp_seconds";
            let help = "When the authority's certificate expires, in seconds since 1970";
            let metric = encoder.encode_descriptor(name, help, None, Gauge)?;
            let seconds = ends
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs();
            ConstGauge::new(i64::try_from(seconds).unwrap_or(i64::MAX)).encode(metric)?;
        }
        if let Some(leader) = figures.leader {
            let help = "1 where this replica keeps the root and publishes it";
            let metric = encoder.encode_descriptor("fairlead_ca_leader", help, None, Gauge)?;
            ConstGauge::new(i64::from(leader)).encode(metric)?;
        }
        Ok(())
    }
}
