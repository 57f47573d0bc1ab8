//! libFuzzer around one of the agent's targets: see `cargo xtask fuzz --help`.
//!
//! One program for all of them, since linking the agent takes longer than anything else.

#![no_main]

use std::env;
use std::sync::LazyLock;

use fairlead::fuzzing::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

/// Names the target.
const VARIABLE: &str = "FAIRLEAD_FUZZ_TARGET";

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var(VARIABLE).unwrap_or_default();
    let target = TARGETS.into_iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("{VARIABLE} is {name:?}, which is no target"))
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
