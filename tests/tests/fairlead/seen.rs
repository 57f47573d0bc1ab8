//! Requests as people see them: `flows`, `tap`, metrics, and `explain`, which must say
//! before what happens then.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::{Pod, Process, servers, until};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{Mesh, SOON, client_and_server};

pub(crate) const TESTS: &[Test] = &[
    Test::node("seen::requests_are_recorded_and_counted", recorded).with(&["curl", "nginx"]),
    Test::node("seen::explain_says_what_happens", explained).with(&["curl", "nginx"]),
    Test::node("seen::a_route_is_seen_on_its_way", routed).with(&["curl", "nginx"]),
    Test::node("seen::tap_shows_live_requests_without_secrets", tapped).with(&["curl", "nginx"]),
    Test::node("seen::what_a_policy_asks_for_is_written", logged).with(&["curl", "nginx"]),
];

const SERVICE: &str = "10.96.0.10";
const SECRET: &str = "hunter2";

/// The Service `server` with HTTP on port 80, nginx behind it on the other node, and a
/// policy that keeps clients out of `/admin`.
fn mesh() -> Result<(Mesh, Process)> {
    let mesh = Mesh::up(&client_and_server())?;
    let manifests = mesh.world.manifests();
    manifests.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "server"},
        "spec": {
            "clusterIP": SERVICE, "selector": {"app": "server"},
            "ports": [{"name": "http", "port": 80}],
        },
    }))?;
    manifests.apply(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": "no-admin"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}}, "action": "DENY",
            "rules": [{"to": [{"operation": {"paths": ["/admin/*"]}}]}],
        },
    }))?;
    let data = mesh.data("nginx");
    let nginx = servers::nginx(mesh.pod("server"), &data)?;
    fs::create_dir_all(data.join("www/api"))?;
    fs::write(data.join("www/api/items"), "seven\n")?;
    for agent in &mesh.agents {
        until("the Service and the policy", SOON, || {
            let services = agent.cli.json(&["get", "services"]).ok()?;
            let policies = agent.cli.json(&["get", "policies"]).ok()?;
            let known = format!("{services:?}{policies:?}");
            (known.contains(SERVICE) && known.contains("no-admin")).then_some(())
        })?;
    }
    Ok((mesh, nginx))
}

/// Asks the Service for a path; status and reason of the answer.
fn ask(client: &Pod, path: &str, arguments: &[&str]) -> Result<(String, String)> {
    let url = format!("http://{SERVICE}{path}");
    let format = "%{http_code} %header{fairlead-reason}";
    let fixed = [
        "curl",
        "-sS",
        "--path-as-is",
        "--max-time",
        "10",
        "-o",
        "/dev/null",
        "-w",
        format,
    ];
    let answer = client.run(&[&fixed[..], arguments, &[url.as_str()]].concat())?;
    let answer = answer.ok()?.stdout;
    let (status, reason) = answer.split_once(' ').context("no status")?;
    Ok((status.to_owned(), reason.to_owned()))
}

/// The records of requests of a node, once there are so many.
fn requests(mesh: &Mesh, node: &str, count: usize) -> Result<Vec<Value>> {
    until("records of requests", SOON, || {
        let cli = &mesh.agent(node).cli;
        let flows = cli.json(&["flows", "--kind", "request"]).ok()?;
        (flows.len() >= count).then_some(flows)
    })
}

fn recorded() -> Result<()> {
    let (mesh, _nginx) = mesh()?;
    let client = mesh.pod("client");
    let query = format!("/api/items?token={SECRET}");
    ensure!(ask(client, &query, &[])?.0 == "200");
    ensure!(ask(client, "/none", &[])?.0 == "404");
    let (status, reason) = ask(client, "/admin/users", &[])?;
    ensure!(
        status == "403" && reason.contains("shop/no-admin"),
        "{status} {reason}"
    );
    for (node, direction, reporter) in
        [("a", "outbound", "source"), ("b", "inbound", "destination")]
    {
        let flows = requests(&mesh, node, 3)?;
        ensure!(flows.len() == 3, "each request has one record: {flows:#?}");
        let text = format!("{flows:?}");
        ensure!(!text.contains(SECRET), "a query was recorded: {text}");
        let statuses: Vec<_> = flows
            .iter()
            .map(|it| it["http"]["status"].as_u64())
            .collect();
        ensure!(
            statuses == [Some(200), Some(404), Some(403)],
            "{statuses:?}"
        );
        let first = &flows[0];
        for (field, expected) in [
            ("/direction", direction),
            ("/protocol", "http"),
            ("/tls", "mtls"),
            ("/verdict", "forwarded"),
            ("/source/pod", "client"),
            ("/destination/pod", "server"),
            ("/http/method", "GET"),
            ("/http/path", "/api/items"),
            ("/http/host", SERVICE),
        ] {
            let found = first.pointer(field).and_then(Value::as_str);
            ensure!(found == Some(expected), "{node} {field}: {first:#}");
        }
        ensure!(first["bytes_received"] == 6, "{first:#}");
        let page = mesh.agent(node).page("/metrics")?;
        let counted = |line: &&str| {
            line.starts_with(&format!("fairlead_requests_total{{reporter=\"{reporter}\""))
                && line.contains("source_workload=\"client\"")
                && line.contains("destination_workload=\"server\"")
                && line.contains("request_protocol=\"http\"")
                && line.contains("connection_security_policy=\"mutual_tls\"")
                && line.contains("response_code=\"200\"")
                && line.ends_with(" 1")
        };
        ensure!(page.lines().any(|line| counted(&line)), "{node}: {page}");
        let timed = "fairlead_request_duration_seconds_count{";
        ensure!(page.contains(timed), "{node}: {page}");
    }
    let only = |arguments: &[&str]| -> Result<Vec<u64>> {
        let arguments = [&["flows"], arguments].concat();
        let found = mesh.agent("a").cli.json(&arguments)?;
        let statuses = found.iter().filter_map(|it| it["http"]["status"].as_u64());
        Ok(statuses.collect())
    };
    ensure!(only(&["--status", "4xx"])? == [404, 403]);
    ensure!(only(&["--path", "/api"])? == [200]);
    ensure!(only(&["--path", "/*s", "--method", "get"])? == [200, 403]);
    ensure!(only(&["--min-latency", "1h"])?.is_empty());
    let connections = until("the record of a connection", SOON, || {
        let arguments = ["flows", "--kind", "connection", "--protocol", "http"];
        let found = mesh.agent("a").cli.json(&arguments).ok()?;
        (found.len() == 3).then_some(found)
    })?;
    ensure!(
        connections.iter().all(|it| it.get("http").is_none()),
        "{connections:#?}"
    );
    Ok(())
}

fn explained() -> Result<()> {
    let (mesh, _nginx) = mesh()?;
    let client = mesh.pod("client");
    let cases = [
        ("/api/items", "200", "permitted"),
        ("/admin/users", "403", "denied"),
        ("/x/%2e%2e/%61dmin//users", "403", "denied"),
        ("/..%2fadmin/users", "400", "answered"),
    ];
    for (path, status, verdict) in cases {
        let arguments = ["explain", "shop/client", "shop/server:80", "--path", path];
        for node in ["a", "b"] {
            let said = mesh.agent(node).cli.json(&arguments)?;
            let said = said.first().context("no explanation")?;
            ensure!(
                said["outcome"]["verdict"] == verdict,
                "{node} {path}: {said:#}"
            );
            let steps = &said["request"];
            let share = &steps["backends"][0]["percent"];
            ensure!(*share == 100, "{node} {path}: {steps:#}");
        }
        let (answer, reason) = ask(client, path, &[])?;
        ensure!(answer == status, "{path}: {answer} {reason}");
    }
    let text = mesh.agent("a").cli.run(&[
        "explain",
        "shop/client",
        "shop/server:80",
        "--path",
        "/admin/users",
        "-H",
        "x-a: b",
    ])?;
    ensure!(text.code() == 1, "{text:?}");
    ensure!(
        text.stdout.contains("decided by shop/no-admin#0"),
        "{text:?}"
    );
    Ok(())
}

fn routed() -> Result<()> {
    let (mesh, _nginx) = mesh()?;
    let client = mesh.pod("client");
    mesh.world.manifests().apply(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": "server"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "server"}],
            "rules": [{
                "name": "items",
                "matches": [{"path": {"value": "/v1"}}],
                "filters": [{"type": "URLRewrite", "urlRewrite": {
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/api"},
                }}],
                "backendRefs": [{"name": "server", "port": 80}],
            }],
        },
    }))?;
    let rule = "HTTPRoute shop/server#items";
    let cli = &mesh.agent("a").cli;
    until("the route", SOON, || {
        let routes = cli.json(&["get", "routes"]).ok()?;
        format!("{routes:?}")
            .contains("/v1 and below")
            .then_some(())
    })?;
    for (path, status, verdict, taken) in [
        ("/v1/items", "200", "permitted", true),
        ("/v1/../admin/users", "403", "denied", true),
        ("/other", "404", "answered", false),
    ] {
        let arguments = ["explain", "shop/client", "shop/server:80", "--path", path];
        let said = cli.json(&arguments)?;
        let outcome = &said[0]["outcome"];
        ensure!(outcome["verdict"] == verdict, "{path}: {:#}", said[0]);
        let first = &said[0]["request"]["rules"][0];
        ensure!(
            first["rule"] == rule && first["chosen"] == taken,
            "{path}: {first:#}"
        );
        let (answer, reason) = ask(client, path, &[])?;
        ensure!(answer == status, "{path}: {answer} {reason}");
        if !taken {
            ensure!(outcome["status"] == 404, "{path}: {outcome:#}");
            ensure!(reason.starts_with("no_route"), "{path}: {reason}");
        }
    }
    let flows = requests(&mesh, "a", 3)?;
    ensure!(flows[0]["http"]["route"] == rule, "{flows:#?}");
    ensure!(flows[0]["http"]["path"] == "/v1/items", "{flows:#?}");
    ensure!(
        flows[2]["reason"]
            .as_str()
            .is_some_and(|it| it.starts_with("no_route"))
    );
    let inbound = requests(&mesh, "b", 2)?;
    ensure!(inbound.len() == 2, "{inbound:#?}");
    ensure!(inbound[0]["http"]["path"] == "/api/items", "{inbound:#?}");
    let endpoints = cli.json(&["get", "endpoints", "-n", "shop"])?;
    let all = endpoints[0].as_array().context("no list")?;
    let mut known = all.iter().filter(|it| it["health"] == "healthy");
    let used = known.find(|it| it["requests"] == 2);
    ensure!(
        used.is_some_and(|it| it["seen_by"] == "a"),
        "{endpoints:#?}"
    );
    Ok(())
}

fn tapped() -> Result<()> {
    let (mesh, _nginx) = mesh()?;
    let client = mesh.pod("client");
    let tap = |node: &str, filter: &str| -> Result<Process> {
        let line = mesh
            .agent(node)
            .cli
            .line(&format!("tap -o json --limit 1 {filter}"));
        let arguments: Vec<&str> = line.split(' ').collect();
        let host = &mesh.world.node(node).host;
        host.spawn("tap", &arguments)
    };
    let filter = "--headers --path /api --status 200";
    let (mut tap, mut far) = (tap("a", filter)?, tap("b", filter)?);
    let authorization = format!("authorization: Bearer {SECRET}");
    let path = format!("/api/items?token={SECRET}");
    let headers = [
        authorization.as_str(),
        "x-mine: 17",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1",
        "baggage: user=7",
    ];
    let headers: Vec<&str> = headers.iter().flat_map(|it| ["-H", *it]).collect();
    // Until the taps have begun they see nothing.
    until("a tapped request on each node", SOON, || {
        let (status, _) = ask(client, &path, &headers).ok()?;
        assert_eq!(status, "200");
        ask(client, "/none", &[]).ok()?;
        tap.ended().ok()??;
        far.ended().ok()?
    })?;
    // What the applications trace by goes through as it is.
    let event: Value = serde_json::from_str(far.output().trim())?;
    let arrived = event["request_headers"].to_string();
    for header in headers.iter().skip(4) {
        let Some((name, value)) = header.split_once(": ") else {
            continue;
        };
        let expected = json!({"name": name, "value": value}).to_string();
        ensure!(
            arrived.contains(&expected),
            "{expected} is not in {arrived}"
        );
    }
    let output = tap.output();
    ensure!(!output.contains(SECRET), "{output}");
    let event: Value = serde_json::from_str(output.trim()).with_context(|| output.clone())?;
    ensure!(event["http"]["path"] == "/api/items", "{event:#}");
    ensure!(event["query"] == "token=***", "{event:#}");
    let header = |headers: &str, name: &str| {
        let all = event[headers].as_array().into_iter().flatten();
        let mut named = all.filter(|it| it["name"] == name);
        named.next().map(|it| it["value"].clone())
    };
    ensure!(
        header("request_headers", "authorization") == Some("***".into()),
        "{event:#}"
    );
    ensure!(
        header("request_headers", "x-mine") == Some("17".into()),
        "{event:#}"
    );
    let server = header("response_headers", "server").unwrap_or_default();
    ensure!(
        server.as_str().is_some_and(|it| it.starts_with("nginx")),
        "{event:#}"
    );
    let quiet = mesh
        .agent("a")
        .cli
        .json(&["flows", "--path", "/api", "--last", "1"])?;
    ensure!(quiet[0].get("request_headers").is_none(), "{quiet:#?}");
    Ok(())
}

/// Each node writes what its pod was asked or has asked, to its agent's standard output.
fn logged() -> Result<()> {
    let (mesh, _nginx) = mesh()?;
    mesh.world.manifests().apply(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
        "metadata": {"namespace": "shop", "name": "log"},
        "spec": {"accessLog": {"mode": "ALL"}},
    }))?;
    let path = format!("/api/items?password={SECRET}");
    let asked = |line: &&str| line.starts_with("{\"time\":") && line.contains("\"/api/items\"");
    until("a line of each node", SOON, || {
        let _answer = ask(mesh.pod("client"), &path, &[]).ok()?;
        let outputs = mesh.agents.iter().map(|agent| agent.process.output());
        let outputs: Vec<String> = outputs.collect();
        let logs = |output: &String| output.lines().any(|line| asked(&line));
        outputs.iter().all(logs).then_some(())
    })?;
    for agent in &mesh.agents {
        let output = agent.process.output();
        ensure!(!output.contains(SECRET), "{output}");
    }
    Ok(())
}
