//! Where answers are written, and in which form.

use std::io::{self, IsTerminal as _, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// For scripts; its shape is kept stable.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The flag that chooses it.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct FormatFlag {
    /// How to print the answer.
    #[arg(
        short,
        long,
        env = "FAIRLEAD_OUTPUT",
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub(super) output: Format,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a text means; its colour follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// Nothing special.
    Plain,
    /// As it should be.
    Good,
    /// Needs a look.
    Warn,
    /// Wrong, or refused.
    Bad,
    /// Less important than the rest.
    Dim,
    /// A heading.
    Strong,
}

/// Paints, or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Styles {
    coloured: bool,
}

impl Styles {
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self { coloured: false };

    pub(super) fn of_stdout(colour: Colour) -> Self {
        Self::choose(colour, io::stdout().is_terminal())
    }

    pub(super) fn of_stderr(colour: Colour) -> Self {
        Self::choose(colour, io::stderr().is_terminal())
    }

    fn choose(colour: Colour, terminal: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let coloured = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal && !dumb && !set("NO_COLOR"),
        };
        Self { coloured }
    }

    /// The text in the colour of its meaning.
    pub(super) fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "31",
            Paint::Dim => "2",
            Paint::Strong => "1",
            Paint::Plain => return text.to_owned(),
        };
        if self.coloured && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Writes an answer.
#[derive(Debug)]
pub(super) struct Printer<W> {
    out: W,
    pub(super) styles: Styles,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(out: W, styles: Styles) -> Self {
        Self { out, styles }
    }

    /// One line.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// As it is, such as a terminal's commands.
    pub(super) fn raw(&mut self, text: &str) -> io::Result<()> {
        write!(self.out, "{text}")
    }

    /// One line in one colour.
    pub(super) fn painted(&mut self, paint: Paint, text: &str) -> io::Result<()> {
        let text = self.styles.paint(paint, text);
        self.line(&text)
    }

    /// The value as JSON, indented, or as YAML.
    pub(super) fn value(&mut self, format: Format, value: &impl Serialize) -> anyhow::Result<()> {
        match format {
            Format::Yaml => write!(self.out, "{}", serde_yaml_ng::to_string(value)?)?,
            Format::Json | Format::Table => {
                self.line(&serde_json::to_string_pretty(value)?)?;
            }
        }
        Ok(())
    }

    /// Shows what was written so far.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// What it wrote to.
    #[cfg(test)]
    pub(super) fn into_inner(self) -> W {
        self.out
    }
}

/// The text without characters that could move a terminal's cursor or change its
/// colours: names and reasons come from elsewhere.
pub(super) fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// A number of bytes as people read it.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut tenths = u128::from(count) * 10;
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = "B";
    for next in UNITS {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A time span in its two largest units.
pub(super) fn span(milliseconds: u64) -> String {
    let (seconds, minutes) = (milliseconds / 1000, milliseconds / 60_000);
    let (hours, days) = (minutes / 60, minutes / 1440);
    match () {
        () if milliseconds < 1000 => format!("{milliseconds}ms"),
        () if seconds < 10 => format!("{seconds}.{}s", milliseconds % 1000 / 100),
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m{}s", seconds % 60),
        () if days == 0 => format!("{hours}h{}m", minutes % 60),
        () => format!("{days}d{}h", hours % 24),
    }
}
