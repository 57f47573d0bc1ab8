//! What the tasks print: progress on a terminal, plain lines elsewhere.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How often a running step is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often a step without a terminal says that it goes on.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How many of the last lines a failed step shows.
const TAIL: usize = 60;

/// Prints a line to standard output. A reader that is gone is no error.
pub(crate) fn line(text: impl Display) {
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// Text in bold, on a terminal.
pub(crate) fn bold(text: impl Display) -> String {
    styled("1", &text)
}

/// Text in grey, on a terminal.
pub(crate) fn dim(text: impl Display) -> String {
    styled("2", &text)
}

/// Text in green, on a terminal.
pub(crate) fn green(text: impl Display) -> String {
    styled("32", &text)
}

/// Text in red, on a terminal.
pub(crate) fn red(text: impl Display) -> String {
    styled("31", &text)
}

/// Text in cyan, on a terminal.
pub(crate) fn cyan(text: impl Display) -> String {
    styled("36", &text)
}

fn styled(code: &str, text: &dyn Display) -> String {
    if colours() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_string()
    }
}

/// Standard output is a terminal that nobody asked to be plain.
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A duration as people read it.
pub(crate) fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole >= 60 {
        return format!("{} min {:02} s", whole / 60, whole % 60);
    }
    format!("{:.1} s", duration.as_secs_f64())
}

/// Runs a command with its output in a log file, showing the last line while it
/// runs. If it fails, the end of the log is printed.
pub(crate) fn step(title: &str, command: &mut Command) -> Result<()> {
    let path = log_path(title)?;
    let log = File::create(&path)?;
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let progress = Progress::start(title);
    let mut beat = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.show(&last_line(&path));
        if beat.elapsed() > HEARTBEAT {
            progress.heartbeat(&last_line(&path), start.elapsed());
            beat = Instant::now();
        }
        std::thread::sleep(TICK);
    };
    progress.finish(status.success(), start.elapsed());
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    for text in &lines[lines.len().saturating_sub(TAIL)..] {
        line(format_args!("    {text}"));
    }
    bail!("{title}: {status}; the whole log is {}", path.display())
}

/// Says that a step had nothing to do.
pub(crate) fn already(title: &str) {
    line(format_args!("{} {title}", green("✓")));
}

struct Progress {
    title: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn start(title: &str) -> Self {
        let bar = colours().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template(
                "{spinner:.cyan} {prefix} {elapsed:.dim} {wide_msg:.dim}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        if bar.is_none() {
            line(format_args!("- {title} ..."));
        }
        Self {
            title: title.to_owned(),
            bar,
        }
    }

    fn show(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    fn heartbeat(&self, text: &str, elapsed: Duration) {
        if self.bar.is_none() {
            line(format_args!(
                "  {} ({}): {text}",
                self.title,
                seconds(elapsed)
            ));
        }
    }

    fn finish(self, success: bool, elapsed: Duration) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let mark = if success { green("✓") } else { red("✗") };
        let time = dim(format_args!("({})", seconds(elapsed)));
        line(format_args!("{mark} {} {time}", self.title));
    }
}

fn log_path(title: &str) -> Result<PathBuf> {
    let directory = crate::workspace::target().join("xtask-logs");
    fs::create_dir_all(&directory)?;
    let name: String = title
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    Ok(directory.join(format!("{name}.log")))
}

fn last_line(path: &Path) -> String {
    let mut text = String::new();
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(400)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    if let Ok(bytes) = read() {
        let tail = String::from_utf8_lossy(&bytes);
        let last = tail
            .split(['\n', '\r'])
            .rfind(|line| !line.trim().is_empty());
        text.push_str(last.unwrap_or_default().trim());
    }
    text
}
