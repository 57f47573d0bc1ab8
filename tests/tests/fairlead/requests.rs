//! Policies on requests, with unmodified clients and servers across nodes.

use std::fs;

use anyhow::{Result, ensure};
use fairlead_tests::{Output, Pod, PodSpec, servers, until};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{Mesh, SOON, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node(
        "requests::rules_by_method_and_path_hold_on_open_connections",
        rules,
    )
    .with(&["python3", "curl"]),
    Test::node("requests::no_spelling_of_a_path_reaches_nginx", spellings).with(&["nginx", "curl"]),
    Test::node("requests::tokens_of_an_issuer_in_the_mesh", tokens).with(&["python3", "curl"]),
    Test::node("requests::a_judge_in_another_language", judge).with(&["python3", "curl"]),
    Test::node("requests::a_global_limit_of_another_language", global_limit)
        .with(&["python3", "curl"]),
];

const MIRROR: &str = include_str!("../../scripts/mirror.py");
const JUDGE: &str = include_str!("../../scripts/judge.py");
const KEYS: &str = include_str!("../../fixtures/jwt/jwks.json");
const JOE: &str = include_str!("../../fixtures/jwt/joe.jwt");
const ANN: &str = include_str!("../../fixtures/jwt/ann.jwt");
const OLD: &str = include_str!("../../fixtures/jwt/old.jwt");

/// A client on a, a server and a neighbour of it on b, and one more on each.
fn mesh() -> Result<Mesh> {
    Mesh::up(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("b", "shop", "server"),
        PodSpec::new("b", "shop", "neighbour"),
        PodSpec::new("a", "shop", "other"),
    ])
}

/// What curl says: the status, and the text with the head before it.
fn get(pod: &Pod, url: &str, more: &[&str]) -> Result<(u16, String)> {
    let limit = fairlead_tests::patient(SOON).as_secs().to_string();
    let fixed = ["curl", "-sSi", "--path-as-is", "--max-time", &limit];
    let output: Output = pod.run(&[&fixed, more, &[url]].concat())?.ok()?;
    let status = output.stdout.split(' ').nth(1).unwrap_or_default();
    Ok((status.parse()?, output.stdout))
}

#[track_caller]
fn soon(pod: &Pod, url: &str, more: &[&str], expected: u16) -> Result<String> {
    let mut last = String::new();
    until(&format!("{expected} of {url}"), SOON, || {
        let (status, text) = get(pod, url, more).ok()?;
        last = text;
        (status == expected).then_some(())
    })?;
    Ok(last)
}

fn authorization(mesh: &Mesh, name: &str, spec: &Value) -> Result<()> {
    let mut spec = spec.clone();
    spec["selector"] = json!({"matchLabels": {"app": "server"}});
    mesh.world.manifests().apply(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": name},
        "spec": spec,
    }))
}

/// Asks over one connection until the answer is another.
const HOLD: &str = "import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], 8080, timeout=20)
connection.connect()
first = connection.sock
while True:
    connection.request('GET', '/public')
    answer = connection.getresponse()
    answer.read()
    if connection.sock is not first:
        sys.exit('the connection was closed')
    print(answer.status, flush=True)
    if answer.status == 403:
        break
    time.sleep(0.05)
";

fn rules() -> Result<()> {
    let mesh = mesh()?;
    let server = mesh.pod("server");
    let _mirror = serve_python(server, MIRROR, 8080, &[])?;
    let url = |path: &str| format!("http://{}:8080{path}", server.ip4);
    let rule = json!({"to": [{"operation": {"methods": ["GET"], "paths": ["/public*"]}}]});
    authorization(&mesh, "readers", &json!({"rules": [rule]}))?;
    for pod in ["client", "neighbour"] {
        let pod = mesh.pod(pod);
        let text = soon(pod, &url("/admin"), &[], 403)?;
        ensure!(
            text.contains("fairlead-reason: policy_denied; by shop/readers"),
            "{text}"
        );
        let (status, text) = get(pod, &url("/public/x"), &[])?;
        ensure!(
            status == 200 && text.contains("GET /public/x HTTP/1.1"),
            "{text}"
        );
        let (status, _) = get(pod, &url("/public/x"), &["-X", "PUT"])?;
        ensure!(status == 403, "PUT: {status}");
    }
    let address = server.ip4.to_string();
    let mut held = Vec::new();
    for pod in ["client", "neighbour"] {
        let arguments = ["python3", "-uc", HOLD, &address];
        let mut process = mesh.pod(pod).spawn("hold", &arguments)?;
        process.wait_for("200", SOON)?;
        held.push(process);
    }
    let rule = json!({"to": [{"operation": {"paths": ["/private"]}}]});
    authorization(&mesh, "readers", &json!({"rules": [rule]}))?;
    for process in &mut held {
        process.wait_for("403", SOON)?;
    }
    let arguments = ["flows", "--verdict", "denied", "--last", "1"];
    let flows = mesh.agent("b").cli.json(&arguments)?;
    let last = flows.last().map(ToString::to_string).unwrap_or_default();
    ensure!(
        last.contains("shop/readers") && last.contains("\"status\":403"),
        "{last}"
    );
    Ok(())
}

/// Every way of writing `/admin/secret` that a server may read as that.
const SPELLINGS: [&str; 22] = [
    "/admin/secret",
    "/%61dmin/secret",
    "/%61%64%6d%69%6e/%73ecret",
    "//admin/secret",
    "/admin//secret",
    "/./admin/./secret",
    "/public/../admin/secret",
    "/public/%2e%2e/admin/secret",
    "/public/%2E./admin/secret",
    "/public/..%2fadmin/secret",
    "/public%2f..%2fadmin/secret",
    "/admin%2fsecret",
    "/public/..%5cadmin/secret",
    "/public\\..\\admin\\secret",
    "/public/..;/admin/secret",
    "/admin;x=1/secret",
    "/../admin/secret",
    "/%c0%ae%c0%ae/admin/secret",
    "/%252e%252e/admin/secret",
    "/admin/secret%00",
    "/admin/secret?x",
    "/admin/secret#x",
];

fn spellings() -> Result<()> {
    let mesh = mesh()?;
    let server = mesh.pod("server");
    let data = mesh.data("nginx");
    let _nginx = servers::nginx(server, &data)?;
    for (file, text) in [
        ("admin/secret", "the secret\n"),
        ("public/page", "the page\n"),
    ] {
        let file = data.join("www").join(file);
        fs::create_dir_all(file.parent().expect("it is in a directory"))?;
        fs::write(file, text)?;
    }
    let url = |path: &str| format!("http://{}{path}", server.ip4);
    for pod in ["client", "neighbour"] {
        let (_, text) = get(mesh.pod(pod), &url("//public/../admin/./%73ecret"), &[])?;
        ensure!(
            text.contains("the secret"),
            "without a rule it is there: {text}"
        );
    }
    let deny = json!({
        "action": "DENY",
        "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}],
    });
    authorization(&mesh, "no-admin", &deny)?;
    for pod in ["client", "neighbour"] {
        let pod = mesh.pod(pod);
        drop(soon(pod, &url("/admin/secret"), &[], 403)?);
        for path in SPELLINGS {
            let (status, text) = get(pod, &url(path), &[])?;
            let refused = matches!(status, 400 | 403 | 404);
            ensure!(refused && !text.contains("the secret"), "{path}: {text}");
            let absolute = ["--request-target", &url(path)];
            let (status, text) = get(pod, &url("/public/page"), &absolute)?;
            let refused = matches!(status, 400 | 403 | 404);
            ensure!(refused && !text.contains("the secret"), "{path}: {text}");
        }
        let (status, text) = get(pod, &url("/x//../public/%70age"), &[])?;
        ensure!(status == 200 && text.contains("the page"), "{text}");
    }
    Ok(())
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

fn tokens() -> Result<()> {
    let mesh = mesh()?;
    let (server, issuer) = (mesh.pod("server"), mesh.pod("other"));
    let _mirror = serve_python(server, MIRROR, 8080, &[])?;
    let directory = mesh.data("keys");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("keys.json"), KEYS)?;
    let path = directory.display().to_string();
    let arguments = ["python3", "-m", "http.server", "8000", "--directory", &path];
    let _issuer = issuer.spawn("issuer", &arguments)?;
    issuer.wait_listening(8000, SOON)?;
    let addresses = ["10.96.0.20", "fd00:96::20"];
    mesh.world
        .manifests()
        .service(("shop", "other"), &addresses, 8000)?;
    // Nobody gets at the keys but by mTLS: they are fetched as the server's pod would.
    mesh.world
        .manifests()
        .mtls("shop", Some("other"), "STRICT")?;
    mesh.world.manifests().apply(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
        "metadata": {"namespace": "shop", "name": "users"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "jwt": {"providers": [{
                "issuer": "https://issuer.example",
                "audiences": ["shop"],
                "jwksUri": "http://other.shop:8000/keys.json",
                "outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}],
            }]},
        },
    }))?;
    let rule = json!({
        "from": [{"source": {"requestPrincipals": ["https://issuer.example/*"]}}],
        "when": [{"key": "request.auth.claims[groups]", "values": ["admin"]}],
    });
    let anyone = json!({"to": [{"operation": {"paths": ["/open"]}}]});
    authorization(&mesh, "admins", &json!({"rules": [rule, anyone]}))?;
    let url = |path: &str| format!("http://{}:8080{path}", server.ip4);
    for pod in ["client", "neighbour"] {
        let pod = mesh.pod(pod);
        let joe = bearer(JOE);
        // Before the policies are in force anything is permitted.
        soon(pod, &url("/users"), &[], 401)?;
        let text = soon(
            pod,
            &url("/users"),
            &["-H", &joe, "-H", "X-User: root"],
            200,
        )?;
        ensure!(
            text.contains("\nx-user: joe") && !text.contains("root"),
            "{text}"
        );
        ensure!(
            !text.contains("authorization:"),
            "the token was forwarded: {text}"
        );
        let (status, text) = get(pod, &url("/users"), &[])?;
        ensure!(
            status == 401 && text.contains("fairlead-reason: jwt_missing"),
            "{text}"
        );
        ensure!(text.contains("www-authenticate: Bearer"), "{text}");
        let (status, text) = get(pod, &url("/users"), &["-H", &bearer(ANN)])?;
        ensure!(status == 403, "not in the group: {text}");
        let (status, text) = get(pod, &url("/open"), &["-H", "X-User: root"])?;
        ensure!(status == 200 && !text.contains("root"), "{text}");
        let forged = JOE.replace(JOE.rsplit_once('.').map_or("", |(_, s)| s), "AAAA");
        for (token, why) in [
            (OLD, "expired"),
            (&*forged, "signature wrong"),
            ("x", "malformed"),
        ] {
            let (status, text) = get(pod, &url("/open"), &["-H", &bearer(token)])?;
            ensure!(status == 401, "{why}: {text}");
            ensure!(
                text.contains(&format!("fairlead-reason: jwt_invalid; {why}")),
                "{text}"
            );
        }
    }
    Ok(())
}

fn judge() -> Result<()> {
    let mesh = mesh()?;
    let (server, other) = (mesh.pod("server"), mesh.pod("other"));
    let _mirror = serve_python(server, MIRROR, 8080, &[])?;
    let judge = serve_python(other, JUDGE, 9000, &[])?;
    let addresses = ["10.96.0.20", "fd00:96::20"];
    mesh.world
        .manifests()
        .service(("shop", "other"), &addresses, 9000)?;
    mesh.world
        .manifests()
        .mtls("shop", Some("other"), "STRICT")?;
    let custom = |fail_open: bool| {
        json!({
            "action": "CUSTOM",
            "provider": {"service": "other", "port": 9000, "timeout": "2s", "failOpen": fail_open},
            "rules": [{"to": [{"operation": {"notPaths": ["/free"]}}]}],
        })
    };
    authorization(&mesh, "judged", &custom(false))?;
    let url = |path: &str| format!("http://{}:8080{path}", server.ip4);
    for name in ["client", "neighbour"] {
        let pod = mesh.pod(name);
        let text = soon(pod, &url("/x"), &["-H", "x-judge: deny"], 401)?;
        ensure!(
            text.contains("x-why: judged") && text.ends_with("no\n"),
            "{text}"
        );
        ensure!(
            text.contains("fairlead-reason: ext_authz_denied; by shop/judged#0"),
            "{text}"
        );
        let (status, text) = get(pod, &url("/x?y"), &["-H", "x-judged: me"])?;
        let judged = format!("x-judged: GET /x?y spiffe://cluster.local/ns/shop/sa/{name}");
        ensure!(status == 200 && text.contains(&judged), "{text}");
        let (status, text) = get(pod, &url("/x"), &["-H", "x-judge: slow"])?;
        ensure!(
            status == 503 && text.contains("ext_authz_unavailable"),
            "{text}"
        );
        let (status, text) = get(pod, &url("/free"), &["-H", "x-judge: deny"])?;
        ensure!(status == 200 && !text.contains("x-judged"), "{text}");
    }
    drop(judge);
    let client = mesh.pod("client");
    drop(soon(client, &url("/x"), &[], 503)?);
    authorization(&mesh, "judged", &custom(true))?;
    drop(soon(client, &url("/x"), &[], 200)?);
    Ok(())
}

fn global_limit() -> Result<()> {
    let mesh = mesh()?;
    let (server, other) = (mesh.pod("server"), mesh.pod("other"));
    let _mirror = serve_python(server, MIRROR, 8080, &[])?;
    let _judge = serve_python(other, JUDGE, 9000, &[])?;
    for (name, addresses, port) in [
        ("server", ["10.96.0.21", "fd00:96::21"], 8080),
        ("other", ["10.96.0.20", "fd00:96::20"], 9000),
    ] {
        // A port named tcp would not be HTTP.
        mesh.world.manifests().apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {
                "clusterIP": addresses[0], "clusterIPs": addresses,
                "selector": {"app": name},
                "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            },
        }))?;
    }
    let url = "http://10.96.0.21:8080/x";
    drop(soon(mesh.pod("client"), url, &[], 200)?);
    mesh.world.manifests().apply(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "counted"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "server"}],
            "rateLimits": [{"name": "all", "global": {
                "service": {"name": "other", "port": 9000},
                "domain": "shop",
                "timeout": "5s",
                "onFailure": "DENY",
                "descriptors": [{"entries": [{"key": "user", "header": "x-user"}]}],
            }}],
        },
    }))?;
    let client = mesh.pod("client");
    let text = soon(client, url, &["-H", "x-user: ann"], 429)?;
    ensure!(
        text.contains("fairlead-reason: rate_limited; by shop/counted#all"),
        "{text}"
    );
    // Each user has a count, and who has no name has none.
    let (status, text) = get(client, url, &["-H", "x-user: joe"])?;
    ensure!(status == 200, "the first of joe: {text}");
    let (status, text) = get(client, url, &["-H", "x-user: joe"])?;
    ensure!(status == 429, "the second of joe: {text}");
    let (status, text) = get(client, url, &[])?;
    ensure!(status == 200, "without a user: {text}");
    Ok(())
}
