//! Requests: what the data path does with HTTP.

mod deadline;
mod filter;
mod reason;
mod replay;
mod timed;
