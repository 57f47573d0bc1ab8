//! Checks of the sources that no compiler makes.

pub(crate) mod dependencies;
pub(crate) mod layers;
pub(crate) mod owners;
pub(crate) mod sizes;
mod source;
pub(crate) mod words;

use std::fmt;

use anyhow::{Result, bail};

use crate::ui;

/// Something wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Prints what was found; anything is an error.
fn conclude(check: &str, findings: &[Finding]) -> Result<()> {
    if findings.is_empty() {
        ui::already(check);
        return Ok(());
    }
    for finding in findings {
        ui::line(finding);
    }
    bail!("{} found", findings.len())
}
