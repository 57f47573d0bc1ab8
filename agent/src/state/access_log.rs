//! What is written to the access log.

use std::fmt;

use serde::Serialize;

use super::traffic::Share;

/// `spec.accessLog` of a MeshPolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// Which requests and connections.
    pub mode: AccessLogMode,
    /// `percent`: how many of them.
    pub share: Share,
}

/// Which requests and connections are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AccessLogMode {
    /// Each.
    All,
    /// Those that went wrong.
    #[serde(rename_all = "camelCase")]
    Errors {
        /// An answer from this status on is an error.
        min_status: u16,
    },
    /// None.
    None,
}

impl AccessLog {
    /// Something of what happens is written.
    pub fn is_on(&self) -> bool {
        self.mode != AccessLogMode::None && self.share.0 > 0
    }
}

impl fmt::Display for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            AccessLogMode::All => f.write_str("ALL")?,
            AccessLogMode::Errors { min_status } => write!(f, "ERRORS from {min_status}")?,
            AccessLogMode::None => f.write_str("NONE")?,
        }
        if self.share < Share::ALL {
            write!(f, ", {}%", f64::from(self.share.0) / 10_000.0)?;
        }
        Ok(())
    }
}
