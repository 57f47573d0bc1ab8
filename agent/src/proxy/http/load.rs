//! What a request is to the endpoint that answers it, until the answer has ended.

use std::time::Duration;

use http::{HeaderValue, Response};
use tokio::time::Instant;

use crate::policy::balance::{Outcome, Picked, RetryGuard};

/// A request in flight at an endpoint. The endpoint's balancer is told how it went: by the
/// head of the answer, or in gRPC by the status at its end.
#[derive(Debug)]
pub(super) struct Load {
    picked: Picked,
    _retry: Option<RetryGuard>,
    /// From the request to the head, for as long as the balancer was not told.
    untold: Option<Duration>,
}

impl Load {
    /// The head of an answer has come.
    pub(super) fn answered<B>(
        picked: Picked,
        retry: Option<RetryGuard>,
        response: &Response<B>,
        grpc: bool,
        latency: Duration,
    ) -> Self {
        let mut load = Self {
            picked,
            _retry: retry,
            untold: Some(latency),
        };
        let status = response.headers().get("grpc-status").map(grpc_status);
        match status {
            Some(status) if grpc => load.tell(Outcome::of_grpc(status)),
            None if grpc && response.status().is_success() => {}
            _ => load.tell(Outcome::of_status(response.status())),
        }
        load
    }

    /// The answer has ended as it should, in gRPC with this status.
    pub(super) fn ended(&mut self, grpc: Option<u16>) {
        // Without a status a call of gRPC has failed, whatever came of it.
        self.tell(grpc.map_or(Outcome::Failed, Outcome::of_grpc));
    }

    /// The endpoint broke off its answer.
    pub(super) fn broken(&mut self) {
        self.tell(Outcome::Failed);
    }

    fn tell(&mut self, outcome: Outcome) {
        if let Some(latency) = self.untold.take() {
            let now = Instant::now().into_std();
            self.picked.sample(outcome, latency, now);
        }
    }
}

fn grpc_status(value: &HeaderValue) -> u16 {
    // What is no number is status 2, UNKNOWN.
    value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2)
}
