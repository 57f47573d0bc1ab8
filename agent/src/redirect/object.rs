//! The kernel's programs, as `build.rs` embedded them.

use super::RedirectError;

/// The object, or why there is none.
static OBJECT: Result<&[u8], &str> = include!(concat!(env!("OUT_DIR"), "/object.in.rs"));

/// The object; an error that names the command where this build has none.
pub(super) fn object() -> Result<&'static [u8], RedirectError> {
    OBJECT.map_err(|reason| RedirectError::NotBuilt { reason })
}
