//! Rust sources as the checks see them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// One file of the repository.
#[derive(Debug)]
pub(super) struct Source {
    /// From the root.
    pub(super) path: String,
    /// As it is.
    pub(super) text: String,
}

impl Source {
    /// The lines of code with their numbers from 1: comments are cut away, and the
    /// file ends where its tests begin.
    pub(super) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .take_while(|line| line.trim() != "#[cfg(test)]")
            .enumerate()
            .map(|(at, line)| (at + 1, without_comment(line)))
    }

    /// Only compiled for tests and the fuzzer.
    pub(super) fn is_test(&self) -> bool {
        ["tests", "fuzzing"].iter().any(|name| {
            let (file, folder) = (format!("/{name}.rs"), format!("/{name}/"));
            self.path.ends_with(&file) || self.path.contains(&folder)
        })
    }
}

/// Files that git knows, or would, with this ending below this folder.
pub(super) fn files(below: &str, ending: &str) -> Result<Vec<Source>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            below,
        ])
        .current_dir(workspace::root())
        .output()
        .context("cannot start git")?;
    ensure!(output.status.success(), "git ls-files failed");
    let mut sources = Vec::new();
    for path in String::from_utf8(output.stdout)?.lines() {
        let absolute = workspace::root().join(path);
        if !path.ends_with(ending) || !absolute.is_file() {
            continue;
        }
        if let Some(source) = read(path, &absolute)? {
            sources.push(source);
        }
    }
    Ok(sources)
}

/// Pictures and the like are no text, and no check's business.
fn read(path: &str, absolute: &Path) -> Result<Option<Source>> {
    let bytes = fs::read(absolute)?;
    let source = String::from_utf8(bytes).ok().map(|text| Source {
        path: path.to_owned(),
        text,
    });
    Ok(source)
}

/// Cuts `//` and what follows, unless it is in a URL.
fn without_comment(line: &str) -> &str {
    let comment = line
        .match_indices("//")
        .find(|&(at, _)| !line[..at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

/// The first segment of each path that starts with `crate::` in a line, also of
/// groups such as `crate::{a, b::c}`.
pub(super) fn crate_modules(line: &str) -> Vec<&str> {
    let starts = line
        .match_indices("crate::")
        .filter(|&(at, _)| !ends_in_word(&line[..at]));
    starts
        .flat_map(|(at, found)| first_segments(&line[at + found.len()..]))
        .collect()
}

/// The line uses a path of this crate: `name::` with nothing before it that would
/// make it a part of something else.
pub(super) fn uses_crate(line: &str, name: &str) -> bool {
    let path = |(at, _): (usize, &str)| {
        let (before, after) = (&line[..at], &line[at + name.len()..]);
        let starts = !ends_in_word(before) && !before.ends_with("::") && !before.ends_with('.');
        let ends = after.starts_with("::")
            || (before.trim_end().ends_with("use") && after.starts_with([';', ' ']));
        starts && ends
    };
    line.match_indices(name).any(path)
}

fn ends_in_word(text: &str) -> bool {
    text.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn first_segments(rest: &str) -> Vec<&str> {
    let Some(group) = rest.strip_prefix('{') else {
        return word(rest).into_iter().collect();
    };
    let mut depth = 0;
    let mut segments = Vec::new();
    let mut start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                segments.extend(word(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    segments
}

fn word(text: &str) -> Option<&str> {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::{crate_modules, uses_crate, without_comment};

    #[test]
    fn finds_modules_of_paths_and_groups() {
        assert_eq!(crate_modules("use crate::model::NodeName;"), ["model"]);
        assert_eq!(
            crate_modules("pub(crate) fn f(x: crate::flow::X)"),
            ["flow"]
        );
        assert_eq!(
            crate_modules("use crate::{model::{A, B}, state};"),
            ["model", "state"]
        );
        assert!(crate_modules("use some_crate::model;").is_empty());
    }

    #[test]
    fn finds_crates_by_path_only() {
        assert!(uses_crate("use aya::Ebpf;", "aya"));
        assert!(uses_crate("    h2::server::handshake(io)", "h2"));
        assert!(!uses_crate("use crate::h2::X;", "h2"));
        assert!(!uses_crate("let himalaya::X = 1;", "aya"));
        assert!(!uses_crate("aya_log::init()", "aya"));
    }

    #[test]
    fn cuts_comments_but_no_urls() {
        assert_eq!(without_comment("a // b"), "a ");
        assert_eq!(without_comment("\"spiffe://x\""), "\"spiffe://x\"");
    }
}
