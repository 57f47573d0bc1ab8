//! How the demo speaks: scenes, commands with their output, and what has to hold.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fairlead_tests::{Cli, Output, Place};

use crate::ui;

/// How long a command of the demo may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How many lines of output are shown.
const LINES: usize = 40;

/// Collects what held and what did not.
#[derive(Debug)]
pub(super) struct Show {
    start: Instant,
    scenes: usize,
    checks: Vec<(String, bool)>,
}

impl Show {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            scenes: 0,
            checks: Vec::new(),
        }
    }

    /// Begins a scene.
    pub(super) fn scene(&mut self, title: &str, words: &str) {
        self.scenes += 1;
        let title = format!("{}. {title}", self.scenes);
        ui::line(format_args!("\n{}", ui::bold(ui::cyan(title))));
        for text in words.lines() {
            ui::line(ui::dim(format_args!("   {}", text.trim())));
        }
    }

    /// Something that has to hold.
    pub(super) fn check(&mut self, what: impl Display, holds: bool) {
        let mark = if holds {
            ui::green("✓")
        } else {
            ui::red("✗")
        };
        ui::line(format_args!("   {mark} {what}"));
        self.checks.push((what.to_string(), holds));
    }

    /// The scene could not be played to its end.
    pub(super) fn interrupted(&mut self) {
        self.check(
            format!("scene {} could be played to its end", self.scenes),
            false,
        );
    }

    /// The summary; an error where anything did not hold.
    pub(super) fn conclude(&self) -> Result<()> {
        let failed = self.checks.iter().filter(|(_, holds)| !holds).count();
        let time = ui::seconds(self.start.elapsed());
        ui::line(format_args!("\n{}", ui::bold("Summary")));
        for (what, holds) in &self.checks {
            let mark = if *holds {
                ui::green("✓")
            } else {
                ui::red("✗")
            };
            ui::line(format_args!("  {mark} {what}"));
        }
        let held = self.checks.len() - failed;
        ui::line(format_args!(
            "  {held} of {} hold, in {time}",
            self.checks.len()
        ));
        if failed > 0 || self.checks.is_empty() {
            bail!("{failed} did not hold");
        }
        Ok(())
    }
}

/// Says something.
pub(super) fn say(text: impl Display) {
    for text in text.to_string().lines() {
        ui::line(format_args!("   {text}"));
    }
}

/// Runs a command in a pod, showing it and what it prints.
pub(super) fn run_in(name: &str, place: &Place, arguments: &[&str]) -> Result<Output> {
    prompt(name, &shown(arguments));
    let output = place.run_for(LIMIT, arguments)?;
    print(&output);
    Ok(output)
}

/// Runs a command of Fairlead's own.
pub(super) fn fairlead(node: &str, cli: &Cli, arguments: &[&str]) -> Result<Output> {
    prompt(node, &format!("fairlead {}", shown(arguments)));
    let colour = if ui::colours() { "always" } else { "never" };
    let output = cli.run(&[&["--color", colour], arguments].concat())?;
    print(&output);
    Ok(output)
}

fn prompt(place: &str, text: &str) {
    say(format_args!(
        "{} {text}",
        ui::bold(format_args!("{place} $"))
    ));
}

fn print(output: &Output) {
    let lines: Vec<&str> = output.stdout.lines().chain(output.stderr.lines()).collect();
    for text in lines.iter().take(LINES) {
        say(format_args!("  {text}"));
    }
    if lines.len() > LINES {
        say(format_args!("  ... {} more lines", lines.len() - LINES));
    }
}

/// Arguments as one would type them.
fn shown(arguments: &[&str]) -> String {
    let quoted = arguments.iter().map(|argument| {
        if argument.contains([' ', '*', ';', '\'']) {
            format!("\"{argument}\"")
        } else {
            (*argument).to_owned()
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}
