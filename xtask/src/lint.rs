//! `cargo xtask lint`: everything about the sources that a machine can hold.

use anyhow::{Result, bail};

use crate::{codegen, tidy, ui, workspace};

/// The task. Every check runs, also after one has failed.
pub(crate) fn run() -> Result<()> {
    let format = || {
        let mut command = workspace::cargo();
        ui::step("rustfmt", command.args(["fmt", "--all", "--check"]))?;
        let manifest = workspace::root().join("ebpf/Cargo.toml");
        if !manifest.exists() {
            return Ok(());
        }
        let mut command = workspace::cargo();
        let command = command
            .args(["fmt", "--check", "--manifest-path"])
            .arg(manifest);
        ui::step("rustfmt (ebpf)", command)
    };
    let clippy = || {
        let mut command = workspace::cargo();
        let command = command
            .args(["clippy", "--workspace", "--all-targets", "--quiet"])
            .args(["--", "--deny", "warnings"]);
        ui::step("clippy", command)
    };
    let documentation = || {
        let mut command = workspace::cargo();
        let command = command
            .args([
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--quiet",
            ])
            .env(
                "RUSTDOCFLAGS",
                "--deny warnings --allow rustdoc::private-intra-doc-links",
            );
        ui::step("rustdoc", command)
    };
    let generated = || {
        codegen::run(true)?;
        ui::already("generated code");
        Ok(())
    };
    let checks: [(&str, &dyn Fn() -> Result<()>); 9] = [
        ("format", &format),
        ("module edges", &tidy::layers::check),
        ("owners of outside systems", &tidy::owners::check),
        ("words", &tidy::words::check),
        ("sizes", &tidy::sizes::report),
        ("generated code", &generated),
        ("dependencies", &tidy::dependencies::check),
        ("clippy", &clippy),
        ("documentation", &documentation),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            ui::line(format_args!("{} {name}: {error:#}", ui::red("✗")));
            failed.push(name);
        }
    }
    if failed.is_empty() {
        ui::already("lint");
        return Ok(());
    }
    bail!("lint: {}", failed.join(", "))
}
