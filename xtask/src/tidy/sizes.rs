//! How long the files are. Long functions are clippy's business, and fail.

use anyhow::Result;

use super::source::{self, Source};
use crate::ui;

/// Lines of code that a file should not exceed.
const AIM: usize = 400;
/// Lines of code from which a file is more than one thing, surely.
const LIMIT: usize = 700;

/// Names the long files; fails for those beyond all measure.
pub(crate) fn report() -> Result<()> {
    let mut files: Vec<(usize, String)> = source::files(".", ".rs")?
        .into_iter()
        .filter(|file| !file.path.contains("/generated/"))
        .map(|file| (lines_of_code(&file), file.path))
        .filter(|(lines, _)| *lines > AIM)
        .collect();
    files.sort_unstable_by(|left, right| right.cmp(left));
    for (lines, path) in &files {
        ui::line(format_args!("  {path}: {lines} lines of code, over {AIM}"));
    }
    if files.first().is_some_and(|(lines, _)| *lines > LIMIT) {
        anyhow::bail!("a file has over {LIMIT} lines of code");
    }
    ui::already("sizes");
    Ok(())
}

/// Neither blank nor comment nor test.
fn lines_of_code(file: &Source) -> usize {
    file.code()
        .filter(|(_, code)| !code.trim().is_empty())
        .count()
}
