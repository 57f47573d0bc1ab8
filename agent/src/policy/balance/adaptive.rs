//! How many requests a Service takes at once, found out by their latency.
//!
//! `Gradient2Limit` of Netflix's concurrency-limits: the latency of now is compared with
//! that of a long time. While it is about the same the limit grows by a few requests; as
//! it rises, because requests queue somewhere, the limit shrinks by the ratio of the two.
//! Latencies are taken as averages of short windows, as its `WindowedLimit` does, so that
//! one slow request says nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::ewma::as_f64;
use super::nanos;
use crate::policy::traffic::AdaptiveConcurrency;

/// Requests beyond what is known to go well, by which the limit grows.
const QUEUE: f64 = 4.0;
/// How much of a new limit counts.
const SMOOTHING: f64 = 0.2;
/// Samples of the long average.
const LONG_WINDOW: f64 = 600.0;
/// At first the long average is the mean of so many samples.
const WARM_UP: u32 = 10;
/// A window is over after so long, once it has so many samples.
const WINDOW: Duration = Duration::from_millis(100);
const SAMPLES: u32 = 10;

/// The limit of one port of a Service.
#[derive(Debug)]
pub(super) struct Adaptive {
    limit: AtomicU32,
    window: Window,
    gradient: Mutex<Gradient>,
}

/// The samples since the limit was last worked out.
#[derive(Debug, Default)]
struct Window {
    ends: AtomicU64,
    samples: AtomicU32,
    latency: AtomicU64,
    most_in_flight: AtomicU32,
}

#[derive(Debug)]
struct Gradient {
    limit: f64,
    long: f64,
    warmed: u32,
}

impl Adaptive {
    pub(super) fn new(settings: &AdaptiveConcurrency) -> Self {
        Self {
            limit: AtomicU32::new(settings.initial),
            window: Window::default(),
            gradient: Mutex::new(Gradient {
                limit: f64::from(settings.initial),
                long: 0.0,
                warmed: 0,
            }),
        }
    }

    /// No more than these may be in flight.
    pub(super) fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// A request took so long, with so many in flight.
    pub(super) fn sample(
        &self,
        settings: &AdaptiveConcurrency,
        latency: Duration,
        in_flight: u32,
        now: u64,
    ) {
        let window = &self.window;
        let samples = window.samples.fetch_add(1, Relaxed) + 1;
        window.latency.fetch_add(nanos(latency), Relaxed);
        window.most_in_flight.fetch_max(in_flight, Relaxed);
        if samples < SAMPLES || now < window.ends.load(Relaxed) {
            return;
        }
        // Whoever comes while another works it out has its sample counted in the next window.
        let Ok(mut gradient) = self.gradient.try_lock() else {
            return;
        };
        let samples = window.samples.swap(0, Relaxed);
        let latency = window.latency.swap(0, Relaxed);
        let most = window.most_in_flight.swap(0, Relaxed);
        window
            .ends
            .store(now.saturating_add(nanos(WINDOW)), Relaxed);
        if samples > 0 {
            let mean = as_f64(latency) / f64::from(samples);
            self.limit
                .store(gradient.update(settings, mean, most), Relaxed);
        }
    }
}

impl Gradient {
    fn update(&mut self, settings: &AdaptiveConcurrency, short: f64, in_flight: u32) -> u32 {
        self.average(short);
        // The long average comes down faster than it would by itself after an overload.
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
        let (min, max) = (f64::from(settings.min), f64::from(settings.max));
        // Where it is the clients that send little, the latency says nothing of the limit.
        if f64::from(in_flight) >= self.limit / 2.0 {
            let tolerance = f64::from(settings.tolerance) / 100.0;
            let gradient = (tolerance * self.long / short).clamp(0.5, 1.0);
            let new = self.limit * gradient + QUEUE;
            self.limit = self.limit * (1.0 - SMOOTHING) + new * SMOOTHING;
        }
        self.limit = self.limit.clamp(min, max);
        rounded(self.limit)
    }

    fn average(&mut self, sample: f64) {
        if self.warmed < WARM_UP {
            self.warmed += 1;
            let share = 1.0 / f64::from(self.warmed);
            self.long = self.long * (1.0 - share) + sample * share;
        } else {
            let share = 2.0 / (LONG_WINDOW + 1.0);
            self.long = self.long * (1.0 - share) + sample * share;
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between the limits of the settings, which are of the type"
)]
fn rounded(limit: f64) -> u32 {
    limit as u32
}
