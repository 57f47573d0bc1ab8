//! The steps of a request, of `fairlead explain`.

use std::io::Write;

use super::explain::{Steps, candidates};
use super::output::Paint;
use crate::admin::{BackendStep, RequestSteps};

pub(super) fn explain_request<W: Write>(
    of: &RequestSteps,
    step: &mut Steps<'_, W>,
) -> anyhow::Result<()> {
    step.head(&format!("Request {} {} of {}", of.method, of.path, of.host))?;
    step.say(Paint::Plain, &sentence(&of.protocol))?;
    step.head("Route")?;
    step.say(Paint::Plain, &sentence(&of.routes))?;
    for rule in &of.rules {
        let paint = if rule.chosen { Paint::Good } else { Paint::Dim };
        let sign = if rule.chosen { "=>" } else { "  " };
        let text = format!("{sign} {} ({}): {}", rule.rule, rule.wants, rule.why);
        step.say(paint, &text)?;
    }
    if of.more_rules > 0 {
        let text = format!("   and {} more, for other requests", of.more_rules);
        step.say(Paint::Dim, &text)?;
    }
    for said in &of.filters {
        step.say(Paint::Plain, &sentence(said))?;
    }
    for backend in &of.backends {
        explain_backend(backend, step)?;
    }
    Ok(())
}

fn explain_backend<W: Write>(of: &BackendStep, step: &mut Steps<'_, W>) -> anyhow::Result<()> {
    let name = match &of.service {
        Some(service) => format!("{service}:{}", of.port),
        None => "that is not there".to_owned(),
    };
    step.head(&format!("Back end {name}, {} % of requests", of.percent))?;
    if let Some(invalid) = &of.invalid {
        let text = format!("Its requests are answered with 500: {invalid}.");
        return step.say(Paint::Bad, &text);
    }
    for said in &of.filters {
        step.say(Paint::Plain, &sentence(said))?;
    }
    if let Some(traffic) = &of.traffic {
        let policies: Vec<String> = traffic.policies.iter().map(ToString::to_string).collect();
        let text = if policies.is_empty() {
            "No TrafficPolicy is for it; the defaults are:".to_owned()
        } else {
            format!("With TrafficPolicy {}:", policies.join(", "))
        };
        step.say(Paint::Plain, &text)?;
        for setting in &traffic.settings {
            step.say(Paint::Dim, &format!("  {setting}"))?;
        }
    }
    candidates(&of.candidates, step)
}

/// With a capital and a full stop.
pub(super) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|it| it.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}
