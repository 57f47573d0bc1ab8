//! `fairlead check -A`: does what is installed work?

use futures_util::future::join_all;
use tokio::time::timeout;

use super::agents::{ANSWER, NodeAgent, agents};
use super::check::{Finding, Topic, chain, server};
use super::rollout;
use super::{AGENT, CA, NAMESPACE};
use crate::admin::Severity;
use crate::cluster::kube::{self as api, Access, Client, Place};

/// So many names of nodes and pods are told before the rest is only counted.
const NAMED: usize = 5;

/// Looks at everything that belongs to the installation; changes nothing.
pub async fn installed(access: &Access) -> Vec<Finding> {
    let client = match api::client(access).await {
        Ok(client) => client,
        Err(error) => {
            return vec![Finding::error(
                "API server",
                Topic::ApiServer,
                chain(&error),
            )];
        }
    };
    let mut findings = vec![server(&client).await];
    findings.push(kinds(&client).await);
    findings.push(pods(&client, "Authority", "Deployment", CA, Topic::Authority).await);
    findings.push(bundle(&client).await);
    findings.push(pods(&client, "Agents", "DaemonSet", AGENT, Topic::Agents).await);
    match agents(access).await {
        Ok(agents) => findings.extend(answers(agents).await),
        Err(error) => {
            let detail = format!("{error:#}");
            findings.push(Finding::error(
                "Answers of the agents",
                Topic::NoAnswer,
                detail,
            ));
        }
    }
    findings
}

async fn kinds(client: &Client) -> Finding {
    const NAME: &str = "Kinds";
    let mut missing = Vec::new();
    for kind in ["authorizationpolicies", "meshpolicies", "trafficpolicies"] {
        let name = format!("{kind}.fairlead.dev");
        let place = Place::new(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            None,
            &name,
        );
        match api::find(client, &place).await {
            Err(error) => return Finding::unknown(NAME, &error),
            Ok(None) => missing.push(name),
            Ok(Some(_)) => {}
        }
    }
    if missing.is_empty() {
        return Finding::ok(NAME, "all of fairlead.dev");
    }
    Finding::error(
        NAME,
        Topic::Kinds,
        format!("missing: {}", missing.join(", ")),
    )
}

async fn pods(
    client: &Client,
    name: &'static str,
    kind: &str,
    object: &str,
    topic: Topic,
) -> Finding {
    let place = Place::new("apps/v1", kind, Some(NAMESPACE), object);
    let found = match api::find(client, &place).await {
        Err(error) => return Finding::unknown(name, &error),
        Ok(found) => found,
    };
    let Some(found) = found else {
        return Finding::error(name, topic, format!("there is no {place}"));
    };
    let state = rollout::of(&place, &found);
    let count = format!("{} of {} pods ready", state.ready, state.wanted);
    if state.complete {
        return Finding::ok(name, count);
    }
    let component = if object == CA { "ca" } else { "agent" };
    let reasons = rollout::reasons(client, NAMESPACE, component).await;
    let reasons = few(&reasons.unwrap_or_default());
    let detail = format!("{count}; {reasons}");
    if state.ready == 0 {
        Finding::error(name, topic, detail)
    } else {
        Finding::warning(name, topic, detail)
    }
}

async fn bundle(client: &Client) -> Finding {
    const NAME: &str = "Roots that are trusted";
    let place = Place::new("v1", "ConfigMap", Some(NAMESPACE), "fairlead-ca-root-cert");
    match api::find(client, &place).await {
        Err(error) => Finding::unknown(NAME, &error),
        Ok(None) => Finding::error(
            NAME,
            Topic::Roots,
            format!("the authority has not made {place}"),
        ),
        Ok(Some(object)) => {
            let text = object["data"]["root-cert.pem"].as_str();
            match text
                .unwrap_or_default()
                .matches("BEGIN CERTIFICATE")
                .count()
            {
                0 => Finding::error(NAME, Topic::Roots, format!("{place} has no certificate")),
                1 => Finding::ok(NAME, "one"),
                count => Finding::ok(NAME, format!("{count}: the root is being rotated")),
            }
        }
    }
}

/// What the agents themselves say.
async fn answers(agents: Vec<NodeAgent>) -> Vec<Finding> {
    let asked = agents.into_iter().map(|agent| async move {
        let status = match agent.client {
            Ok(mut client) => match timeout(ANSWER, client.status()).await {
                Ok(status) => status.map_err(|error| error.to_string()),
                Err(_elapsed) => Err(format!("no answer within {ANSWER:?}")),
            },
            Err(error) => Err(error),
        };
        (agent.node, status)
    });
    let answers = join_all(asked).await;
    let (mut silent, mut unready, mut failing) = (Vec::new(), Vec::new(), Vec::new());
    let mut versions = std::collections::BTreeSet::new();
    for (node, answer) in &answers {
        match answer {
            Err(error) => silent.push(format!("{node}: {error}")),
            Ok(status) => {
                let _new = versions.insert(status.version.clone());
                unready.extend(status.not_ready.iter().map(|it| format!("{node}: {it}")));
                let errors = status.problems.iter();
                let errors = errors.filter(|it| it.severity == Severity::Error);
                failing.extend(errors.map(|it| format!("{}: {}", it.subject, it.message)));
            }
        }
    }
    // An object that is wrong is wrong for each agent.
    failing.sort();
    failing.dedup();
    let count = answers.len();
    vec![
        told("Answers of the agents", Topic::NoAnswer, &silent, || {
            format!("all {count}")
        }),
        told("Readiness of the agents", Topic::NotReady, &unready, || {
            "all that answer".to_owned()
        }),
        told("Problems", Topic::Problems, &failing, || "none".to_owned()),
        if versions.len() > 1 {
            let all: Vec<String> = versions.into_iter().collect();
            Finding::warning("Versions", Topic::Versions, all.join(", "))
        } else {
            Finding::ok("Versions", versions.pop_first().unwrap_or_default())
        },
    ]
}

fn told(
    name: &'static str,
    topic: Topic,
    wrong: &[String],
    well: impl FnOnce() -> String,
) -> Finding {
    if wrong.is_empty() {
        Finding::ok(name, well())
    } else {
        Finding::error(name, topic, few(wrong))
    }
}

fn few(all: &[String]) -> String {
    let mut text = all
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if all.len() > NAMED {
        text = format!("{text}; and {} more", all.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::few;

    #[test]
    fn many_are_counted() {
        let all: Vec<String> = (0..7).map(|it| it.to_string()).collect();
        assert_eq!(few(&all), "0; 1; 2; 3; 4; and 2 more");
        assert_eq!(few(&all[..2]), "0; 1");
    }
}
