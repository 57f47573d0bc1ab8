//! A rule of a route with everything that it names resolved.

use std::sync::Arc;

use crate::model::{NamespacedName, below};
use crate::state::{
    Cors, HeaderChange, Redirect, Rewrite, RouteRetry, RouteTimeouts, SessionPersistence,
};

/// A rule of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledRule {
    /// How flows call it: `HTTPRoute shop/web#0`, or its name in place of its number.
    pub label: Arc<str>,
    /// What happens to requests and responses.
    pub filters: Vec<Filter>,
    /// Where requests go.
    pub backends: Vec<Backend>,
    /// `timeouts`.
    pub timeouts: RouteTimeouts,
    /// `retry`.
    pub retry: Option<RouteRetry>,
    /// `sessionPersistence`.
    pub session: Option<SessionPersistence>,
    /// What of it was not understood: it answers 500.
    pub invalid: Option<Arc<str>>,
}

/// A back end of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its share, of the sum of all.
    pub weight: u32,
    /// What it is.
    pub target: BackendTarget,
    /// What happens to the requests that it gets, and to their responses.
    pub filters: Vec<Filter>,
}

/// What a back end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTarget {
    /// A port of a Service.
    Service {
        /// The Service.
        service: NamespacedName,
        /// Its port.
        port: u16,
    },
    /// Nothing, and why: its share of the requests gets 500.
    Invalid(Arc<str>),
}

/// What happens to requests and responses on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Changes the headers of requests.
    RequestHeaders(Arc<HeaderChange>),
    /// Changes the headers of responses.
    ResponseHeaders(Arc<HeaderChange>),
    /// Sends clients elsewhere.
    Redirect(Arc<Redirect>),
    /// Changes host and path.
    Rewrite(Arc<Rewrite>),
    /// Lets browsers call from other origins.
    Cors(Arc<Cors>),
    /// Copies requests.
    Mirror(Mirror),
}

/// Where copies of requests go, and of how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The back end of the copies; none are made where it is invalid.
    pub target: BackendTarget,
    /// So many ..
    pub numerator: u32,
    /// .. of so many.
    pub denominator: u32,
}

impl CompiledRule {
    /// The back end of a request; `random` is spread over the sum of all weights. `None`
    /// where no back end has one: such a request gets 500.
    pub fn choose(&self, random: u64) -> Option<&Backend> {
        self.choose_index(random).map(|index| &self.backends[index])
    }

    /// As [`Self::choose`]: its place among the back ends.
    pub fn choose_index(&self, random: u64) -> Option<usize> {
        let mut left = below(random, self.sum());
        self.backends.iter().position(|backend| {
            let weight = u64::from(backend.weight);
            let here = left < weight;
            left = left.saturating_sub(weight);
            here
        })
    }

    /// What is left of `random` once [`Self::choose`] has used it: nothing of the choice can
    /// be told from it, so that it serves for another one.
    pub fn left_of(&self, random: u64) -> u64 {
        random.wrapping_mul(self.sum())
    }

    fn sum(&self) -> u64 {
        self.backends.iter().map(|it| u64::from(it.weight)).sum()
    }
}
