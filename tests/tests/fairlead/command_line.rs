//! What the program says where there is no agent.

use std::process::Command;

use anyhow::{Result, ensure};
use fairlead_tests::binary;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::pure("command_line::no_agent_is_exit_code_3", no_agent),
    Test::pure("command_line::wrong_usage_is_exit_code_2", wrong_usage),
];

fn fairlead() -> Result<Command> {
    let mut command = Command::new(binary()?);
    // The agent refuses variables that it does not know.
    for name in ["FAIRLEAD_BIN", "FAIRLEAD_CI", "FAIRLEAD_PYTHON"] {
        command.env_remove(name);
    }
    Ok(command)
}

fn no_agent() -> Result<()> {
    let output = fairlead()?
        .args(["status", "--run-dir", "/nonexistent/fairlead"])
        .output()?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    let text = String::from_utf8(output.stderr)?;
    ensure!(
        text.contains("/nonexistent/fairlead"),
        "it names the socket: {text}"
    );
    let reason = "No such file or directory";
    ensure!(text.matches(reason).count() == 1, "said once: {text}");
    Ok(())
}

fn wrong_usage() -> Result<()> {
    let output = fairlead()?.args(["status", "--no-such-flag"]).output()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}
