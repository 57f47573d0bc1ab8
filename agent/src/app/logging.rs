//! Log output.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use super::args::{LogArgs, LogFormat};

/// Sends everything that is logged from now on to the standard error. Only the first
/// call of a process succeeds.
pub(super) fn start(args: &LogArgs) -> Result<(), TryInitError> {
    let registry = tracing_subscriber::registry().with(filter(&args.log_level));
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            registry.with(layer.with_ansi(colours)).try_init()
        }
        LogFormat::Json => registry
            .with(layer.json().flatten_event(true).with_current_span(false))
            .try_init(),
    }
}

/// As told. The Kubernetes library logs every request that fails as an error, which here
/// is said once, with its reason: it is left out where nothing is said of it.
fn filter(text: &str) -> EnvFilter {
    let filter = EnvFilter::new(text);
    let quiet = "kube_client::client::builder=off".parse();
    match quiet {
        Ok(quiet) if !text.contains("kube_client") => filter.add_directive(quiet),
        Ok(_) | Err(_) => filter,
    }
}
