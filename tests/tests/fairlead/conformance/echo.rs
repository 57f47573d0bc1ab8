//! One request and what is expected of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fairlead_tests::until_ok;
use serde_json::Value;

use super::stage::Stage;

/// Routes take effect within this, on a slow and busy machine too.
const EFFECT: Duration = Duration::from_secs(30);

/// One request and what is expected of it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    consumer: bool,
    method: &'static str,
    to: &'static str,
    port: u16,
    path: String,
    sent: Vec<(&'static str, &'static str)>,
    status: u16,
    backend: Option<&'static str>,
    /// Headers of the request as the server saw it; `None`: not there.
    received: Vec<(&'static str, Option<&'static str>)>,
    /// Headers of the answer.
    answered: Vec<(&'static str, Option<&'static str>)>,
    seen_path: Option<&'static str>,
}

/// What curl printed.
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Option<Value>,
}

/// To the Service `echo` at port 80, answered by this pod.
pub(super) fn get(path: &str, backend: &'static str) -> Case {
    Case {
        backend: Some(backend),
        ..refused(path, 200)
    }
}

/// To the Service `echo` at port 80, answered by the mesh itself.
pub(super) fn refused(path: &str, status: u16) -> Case {
    Case {
        consumer: false,
        method: "GET",
        to: "echo",
        port: 80,
        path: path.to_owned(),
        sent: Vec::new(),
        status,
        backend: None,
        received: Vec::new(),
        answered: Vec::new(),
        seen_path: None,
    }
}

impl Case {
    /// From the other namespace.
    pub(super) fn of_consumer(mut self) -> Self {
        self.consumer = true;
        self
    }

    pub(super) fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    /// To another Service, or to `pod/NAME`.
    pub(super) fn to(mut self, to: &'static str, port: u16) -> Self {
        (self.to, self.port) = (to, port);
        self
    }

    pub(super) fn send(mut self, name: &'static str, value: &'static str) -> Self {
        self.sent.push((name, value));
        self
    }

    /// The server sees this header; several values with a comma between them.
    pub(super) fn receives(mut self, name: &'static str, value: &'static str) -> Self {
        self.received.push((name, Some(value)));
        self
    }

    pub(super) fn receives_no(mut self, name: &'static str) -> Self {
        self.received.push((name, None));
        self
    }

    /// The answer has this header.
    pub(super) fn answers(mut self, name: &'static str, value: &'static str) -> Self {
        self.answered.push((name, Some(value)));
        self
    }

    pub(super) fn answers_no(mut self, name: &'static str) -> Self {
        self.answered.push((name, None));
        self
    }

    /// The server sees another path.
    pub(super) fn sees(mut self, path: &'static str) -> Self {
        self.seen_path = Some(path);
        self
    }

    /// Asks until the answer is the expected one, for as long as a change may take.
    pub(super) fn check(&self, stage: &Stage) -> Result<()> {
        until_ok("the expected answer", EFFECT, || self.once(stage)).with_context(|| {
            format!(
                "{} {}:{}{} {:?}",
                self.method, self.to, self.port, self.path, self.sent
            )
        })
    }

    fn once(&self, stage: &Stage) -> Result<()> {
        let answer = self.ask(stage)?;
        ensure!(
            answer.status == self.status,
            "{} instead of {} {:?}",
            answer.status,
            self.status,
            answer.headers.get("fairlead-reason")
        );
        for (name, expected) in &self.answered {
            let found = answer.headers.get(*name).map(String::as_str);
            ensure!(found == *expected, "the answer's {name} is {found:?}");
        }
        let Some(backend) = self.backend else {
            return Ok(());
        };
        let body = answer.body.context("the body is no JSON")?;
        ensure!(body["pod"] == backend, "{} answered", body["pod"]);
        let path = self.seen_path.unwrap_or(&self.path);
        ensure!(body["path"] == path, "the server saw {}", body["path"]);
        for (name, expected) in &self.received {
            let values = body["headers"][*name].as_array();
            let found = values.map(|values| {
                let values: Vec<_> = values.iter().filter_map(Value::as_str).collect();
                values.join(",")
            });
            ensure!(
                found.as_deref() == *expected,
                "the server saw {name} {found:?}"
            );
        }
        Ok(())
    }

    fn ask(&self, stage: &Stage) -> Result<Answer> {
        let host = self.to.trim_start_matches("pod/");
        let resolve = format!("{host}:{}:{}", self.port, stage.address(self.to)?);
        let url = format!("http://{host}:{}{}", self.port, self.path);
        let mut command = vec!["curl", "-sS", "-i", "--max-time", "5", "--path-as-is"];
        command.extend(["--resolve", &resolve, "-X", self.method]);
        let headers: Vec<String> = self
            .sent
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        for header in &headers {
            command.extend(["-H", header]);
        }
        command.push(&url);
        let output = stage.client(self.consumer).run(&command)?.ok()?;
        parse(&output.stdout)
    }
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let Some(status) = status.and_then(|status| status.parse().ok()) else {
        bail!("no status in {head}");
    };
    let mut headers = BTreeMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let values: &mut String = headers.entry(name.to_lowercase()).or_default();
        if !values.is_empty() {
            values.push(',');
        }
        values.push_str(value.trim_end());
    }
    Ok(Answer {
        status,
        headers,
        body: serde_json::from_str(body).ok(),
    })
}
