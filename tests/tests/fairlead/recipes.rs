//! The recipes of docs/l7.md on two nodes, with curl and servers in Python.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::{PodSpec, Process, until};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{Mesh, SOON, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("recipes::versions_copies_and_sessions", routes).with(&["curl", "python3"]),
    Test::node("recipes::retries_limits_and_faults", policies).with(&["curl", "python3"]),
];

const PAGE: &str = include_str!("../../../docs/l7.md");
const SERVICE: &str = "10.96.0.10";
/// Says its name and how many requests it has seen; `/flaky/N` is 503 to the first N.
const SERVER: &str = r#"
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
seen = 0
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        global seen
        if self.path == "/seen":
            status = 200
        else:
            seen += 1
            flaky = self.path.startswith("/flaky/") and seen <= int(self.path.split("/")[2])
            status = 503 if flaky else 200
        body = f"{sys.argv[3]} {seen}".encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("", int(sys.argv[2])), Handler).serve_forever()
"#;

/// Service `web` of the page, which has no endpoint of its own: `v1` is on the client's
/// node, `v2` on the other.
struct Shop {
    mesh: Mesh,
    _servers: [Process; 2],
}

fn shop() -> Result<Shop> {
    let mesh = Mesh::up(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("a", "shop", "v1"),
        PodSpec::new("b", "shop", "v2"),
    ])?;
    let service = |name: &str, ip: &str, app: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"clusterIP": ip, "selector": {"app": app}, "ports": [{"port": 80}]},
        })
    };
    let manifests = mesh.world.manifests();
    manifests.apply(&service("web", SERVICE, "nobody"))?;
    manifests.apply(&service("web-v1", "10.96.0.11", "v1"))?;
    manifests.apply(&service("web-v2", "10.96.0.12", "v2"))?;
    let servers = [
        serve_python(mesh.pod("v1"), SERVER, 80, &["v1"])?,
        serve_python(mesh.pod("v2"), SERVER, 80, &["v2"])?,
    ];
    Ok(Shop {
        mesh,
        _servers: servers,
    })
}

/// What curl has heard: status, headers by name, body.
struct Heard {
    status: String,
    headers: Value,
    body: String,
}

impl Heard {
    fn header(&self, name: &str) -> &str {
        self.headers[name][0].as_str().unwrap_or_default()
    }

    fn server(&self) -> &str {
        self.body.split(' ').next().unwrap_or_default()
    }
}

impl Shop {
    /// Applies the example of a section.
    fn example(&self, section: &str) -> Result<()> {
        let (_, text) = PAGE
            .split_once(&format!("\n## {section}\n"))
            .context("no section")?;
        let (_, yaml) = text.split_once("```yaml\n").context("no example")?;
        let (yaml, _) = yaml.split_once("```\n").context("no end")?;
        self.mesh
            .world
            .manifests()
            .apply(&serde_yaml_ng::from_str(yaml)?)
    }

    fn ask(&self, path: &str, arguments: &[&str]) -> Result<Heard> {
        self.ask_at(&format!("http://{SERVICE}{path}"), arguments)
    }

    fn ask_at(&self, url: &str, arguments: &[&str]) -> Result<Heard> {
        let fixed = [
            "curl",
            "-sS",
            "--max-time",
            "10",
            "-w",
            "\n@ %{http_code}\n%{header_json}",
        ];
        let command = [&fixed[..], arguments, &[url]].concat();
        let said = self.mesh.pod("client").run(&command)?.ok()?.stdout;
        // The proxy's own answers end with a line.
        let (body, rest) = said.rsplit_once("\n@ ").context("too little")?;
        let (status, headers) = rest.split_once('\n').context("no status")?;
        Ok(Heard {
            status: status.to_owned(),
            headers: serde_json::from_str(headers)?,
            body: body.to_owned(),
        })
    }

    /// Asks until the answer is as wanted: the example is in force.
    fn until(
        &self,
        what: &str,
        (path, arguments): (&str, &[&str]),
        wanted: impl Fn(&Heard) -> bool,
    ) -> Result<Heard> {
        until(what, SOON, || {
            self.ask(path, arguments).ok().filter(|heard| wanted(heard))
        })
    }

    /// How many requests a version has seen.
    fn seen(&self, ip: &str) -> Result<u32> {
        let heard = self.ask_at(&format!("http://{ip}/seen"), &[])?;
        let (_, count) = heard.body.split_once(' ').context("no count")?;
        Ok(count.parse()?)
    }
}

fn routes() -> Result<()> {
    let shop = shop()?;
    shop.example("A/B by header")?;
    let group = ["-H", "x-group: b"];
    let heard = shop.until("A/B", ("/", &group), |heard| heard.status == "200")?;
    ensure!(heard.server() == "v2" && heard.header("x-served") == "group-b");
    ensure!(shop.ask("/", &[])?.server() == "v1");

    shop.example("Mirror")?;
    let heard = shop.until("the mirror", ("/", &group), |heard| heard.server() == "v1")?;
    ensure!(heard.status == "200");
    let before = shop.seen("10.96.0.12")?;
    ensure!(shop.ask("/", &["-d", "hello"])?.server() == "v1");
    until("the copy", SOON, || {
        shop.seen("10.96.0.12").ok().filter(|seen| *seen > before)
    })?;

    shop.example("Canary")?;
    let counted = |body: &str| body.starts_with("v1 ") || body.starts_with("v2 ");
    let _in_force = shop.until("the canary", ("/", &[]), |heard| heard.server() == "v2")?;
    let mut canaries = String::new();
    for _ in 0..50 {
        let heard = shop.ask("/", &[])?;
        ensure!(counted(&heard.body), "{}", heard.body);
        write!(canaries, "{} ", heard.server())?;
    }
    ensure!(canaries.matches("v1").count() > 30, "{canaries}");

    shop.example("Session")?;
    let begun = |heard: &Heard| heard.header("set-cookie").starts_with("seat=");
    let heard = shop.until("the session", ("/", &[]), begun)?;
    let cookie = heard
        .header("set-cookie")
        .split(';')
        .next()
        .context("a pair")?;
    for _ in 0..10 {
        let again = shop.ask("/", &["-H", &format!("cookie: {cookie}")])?;
        ensure!(
            again.server() == heard.server(),
            "{} after {}",
            again.body,
            heard.body
        );
    }
    Ok(())
}

fn policies() -> Result<()> {
    let shop = shop()?;
    shop.example("Retries")?;
    let heard = shop.until("retries", ("/flaky/2", &[]), |heard| heard.status == "200")?;
    ensure!(
        heard.header("fairlead-retries") == "2",
        "{:#}",
        heard.headers
    );

    shop.example("Fault")?;
    let chaos = ["-H", "x-chaos: on"];
    let heard = shop.until("the fault", ("/", &chaos), |heard| heard.status == "503")?;
    ensure!(
        heard.header("fairlead-reason") == "fault_injected",
        "{:#}",
        heard.headers
    );
    ensure!(shop.ask("/", &[])?.status == "200");

    shop.example("Rate limit")?;
    let limited = |heard: &Heard| heard.status == "429";
    let heard = shop.until("the limit", ("/", &["-d", ""]), limited)?;
    let reason = heard.header("fairlead-reason");
    ensure!(reason == "rate_limited; by shop/web#writes", "{reason}");
    ensure!(!heard.header("retry-after").is_empty());
    ensure!(shop.ask("/", &[])?.status == "200");

    // Whoever asks by the Service of one version has neither.
    ensure!(shop.ask_at("http://10.96.0.12/", &["-d", ""])?.status == "200");
    Ok(())
}
