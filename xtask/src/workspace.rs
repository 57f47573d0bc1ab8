//! Where things are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |path| root().join(path))
}

/// The program that the release build makes.
pub(crate) fn agent() -> PathBuf {
    target().join("release/fairlead")
}

/// Programs of the tests that are no package of the system.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// Python packages of tests and demo, apart from those of the system.
pub(crate) fn python_packages() -> PathBuf {
    target().join("python")
}

/// The cargo that runs this task, in the root of the repository.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}
