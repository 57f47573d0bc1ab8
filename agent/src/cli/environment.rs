//! The environment: a variable that nobody reads is a mistake that must not pass unseen.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::Command;

const PREFIX: &str = "FAIRLEAD_";
/// What the project's own tests and tools are told by.
const TOOLS: [&str; 4] = [
    "FAIRLEAD_BIN",
    "FAIRLEAD_CI",
    "FAIRLEAD_PATIENCE",
    "FAIRLEAD_PYTHON",
];

/// Fails where a variable `FAIRLEAD_*` is set that no flag of any command has.
pub(super) fn reject_unknown(
    command: &Command,
    names: impl Iterator<Item = OsString>,
) -> anyhow::Result<()> {
    let known = known(command);
    let unknown: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| {
            name.starts_with(PREFIX)
                && !known.contains(name)
                && !TOOLS.contains(&&**name)
                && !injected(name)
        })
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    anyhow::bail!(
        "unknown variables in the environment: {}; remove them, or see `fairlead help` for the flags that there are",
        unknown.join(", ")
    )
}

/// The names of all variables.
pub(super) fn names() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name)
}

fn known(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|it| it.get_env());
    let own = own.filter_map(|name| name.to_str()).map(str::to_owned);
    own.chain(command.get_subcommands().flat_map(known))
        .collect()
}

/// Kubernetes sets these for every Service whose name begins with `fairlead`.
fn injected(name: &str) -> bool {
    let parts: Vec<&str> = name.split('_').collect();
    parts.ends_with(&["SERVICE", "HOST"])
        || parts.windows(2).any(|it| it == ["SERVICE", "PORT"])
        || parts.contains(&"PORT")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::Cli;
    use super::reject_unknown;

    #[track_caller]
    fn check(name: &str, accepted: bool) {
        let result = reject_unknown(&Cli::command(), [name.into()].into_iter());
        assert_eq!(result.is_ok(), accepted, "{name}: {result:?}");
    }

    #[test]
    fn a_misspelt_variable_is_rejected() {
        check("FAIRLEAD_RUN_DIR", true);
        check("FAIRLEAD_METRICS_ADDR", true);
        check("FAIRLEAD_RUNDIR", false);
        check("PATH", true);
    }

    #[test]
    fn what_kubernetes_injects_is_none_of_ours() {
        check("FAIRLEAD_CA_SERVICE_HOST", true);
        check("FAIRLEAD_CA_SERVICE_PORT_GRPC", true);
        check("FAIRLEAD_CA_PORT_15012_TCP_ADDR", true);
    }
}
