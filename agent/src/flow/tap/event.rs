//! What is asked of a tap, and what it answers.

use serde::{Deserialize, Serialize};

use crate::flow::{Filter, FlowEvent};

/// Which requests somebody wants to see, and how much of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TapWish {
    /// Only those that match. [`Filter::since`] and [`Filter::last`] say nothing here.
    pub filter: Filter,
    /// With their headers.
    pub headers: bool,
    /// Also when they begin, if the filter asks for nothing that is known at the end only. Not
    /// of a sample.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub begin: bool,
    /// One of so many of those that match.
    pub sample: u32,
    /// At most so many in a second.
    pub rate: u32,
    /// Headers whose values are hidden, beside those that always are; in lower case.
    pub redact: Vec<String>,
}

impl Default for TapWish {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            headers: false,
            begin: false,
            sample: 1,
            rate: 100,
            redact: Vec::new(),
        }
    }
}

/// A request that has ended, or begun, with its headers where they were asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapEvent {
    /// Its record.
    #[serde(flatten)]
    pub flow: FlowEvent,
    /// It has only begun: where it goes, its answer and its end are still to come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
    /// Its query: the names of its parameters, with their values hidden.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Of the request, as the client sent them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<TapHeader>,
    /// Of the answer, as the client got them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<TapHeader>,
}

/// One header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapHeader {
    /// In lower case.
    pub name: String,
    /// `***` where it may be secret.
    pub value: String,
}
