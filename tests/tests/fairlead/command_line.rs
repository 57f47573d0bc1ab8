//! What the program says where there is no agent.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::binary;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::pure("command_line::no_agent_is_exit_code_3", no_agent),
    Test::pure("command_line::wrong_usage_is_exit_code_2", wrong_usage),
    Test::pure("command_line::lint_finds_before_the_mesh_does", lint),
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

fn lint() -> Result<()> {
    let good = "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: \
                {name: p, namespace: shop}\nspec: {action: DENY, rules: [{}]}\n";
    let output = lint_of(good, &["--file", "-"])?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    let output = lint_of(&good.replace("action", "acton"), &["-o", "json", "-f", "-"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(found[0]["level"] == "problem", "{found}");
    ensure!(found[0]["object"] == "shop/p", "{found}");
    ensure!(found[0]["field"] == "spec.acton", "{found}");
    ensure!(found[0]["line"] == 4, "{found}");
    Ok(())
}

/// `fairlead lint` with this as its standard input.
fn lint_of(text: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = fairlead()?;
    let command = command.arg("lint").args(arguments);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its standard input is piped")?;
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    Ok(child.wait_with_output()?)
}
