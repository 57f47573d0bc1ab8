//! Requests: what the data path does with HTTP.

mod deadline;
mod filter;
mod limit;
mod reason;
mod replay;
mod retry;
mod timed;
