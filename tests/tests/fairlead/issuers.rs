//! Keys of issuers over TLS, whose certificates lead to roots that the node trusts.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use fairlead_tests::{Agent, AgentOptions, PodSpec, until_ok};
use serde_json::json;

use crate::Test;
use crate::mesh::{Mesh, SOON, serve_python};

pub(crate) const TESTS: &[Test] = &[Test::node(
    "issuers::keys_come_over_tls_from_who_proves_to_be_the_host",
    over_tls,
)
.with(&["python3", "curl", "openssl"])];

const MIRROR: &str = include_str!("../../scripts/mirror.py");
const KEYS: &str = include_str!("../../fixtures/jwt/jwks.json");
const JOE: &str = include_str!("../../fixtures/jwt/joe.jwt");

/// Serves the files of a directory over TLS, with the certificate that is in it.
const FILES: &str = "import functools, http.server, ssl, sys
port, files = int(sys.argv[2]), sys.argv[3]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=files)
server = http.server.ThreadingHTTPServer(('', port), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f'{files}/cert.pem', f'{files}/key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
";

/// A root and a certificate of it for the Service `issuer`.
fn certificates(directory: &Path) -> Result<()> {
    let make = |more: &[&str]| -> Result<()> {
        let mut command = std::process::Command::new("openssl");
        command.current_dir(directory).args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]);
        fairlead_tests::run(command.args(more), SOON)?.ok()?;
        Ok(())
    };
    make(&[
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=issuers",
        "-addext",
        "keyUsage=critical,keyCertSign",
    ])?;
    make(&[
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=issuer",
        "-addext",
        "subjectAltName=DNS:issuer.shop",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ])
}

/// The node of an agent, and what it has against the certificate.
type Refusal = (&'static str, &'static str);

/// Pods whose users' tokens are checked, each with the URI of the keys, and why its agent
/// has none.
const SERVERS: [(&str, &str, Option<Refusal>); 3] = [
    ("trusting", "https://issuer.shop:8443/keys.json", None),
    (
        "misled",
        "https://issuer.shop.svc:8443/keys.json",
        Some(("b", "not valid for name")),
    ),
    // Its node does not know the root.
    (
        "distrusting",
        "https://issuer.shop:8443/keys.json",
        Some(("a", "UnknownIssuer")),
    ),
];

fn over_tls() -> Result<()> {
    let mut mesh = Mesh::down(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("a", "shop", "distrusting"),
        PodSpec::new("a", "shop", "issuer"),
        PodSpec::new("b", "shop", "trusting"),
        PodSpec::new("b", "shop", "misled"),
    ])?;
    let files = mesh.data("issuer");
    fs::create_dir_all(&files)?;
    fs::write(files.join("keys.json"), KEYS)?;
    certificates(&files)?;
    let roots = format!("SSL_CERT_FILE={}", files.join("ca.pem").display());
    for (node, wrapper) in [("a", vec![]), ("b", vec!["env".to_owned(), roots])] {
        let options = AgentOptions {
            wrapper,
            ..AgentOptions::default()
        };
        let agent = Agent::start(&mesh.world, mesh.world.node(node), &options)?;
        mesh.agents.push(agent);
    }
    mesh.wait_enrolled()?;
    let path = files.display().to_string();
    let _issuer = serve_python(mesh.pod("issuer"), FILES, 8443, &[&path])?;
    let addresses = ["10.96.0.40", "fd00:96::40"];
    mesh.world
        .manifests()
        .service(("shop", "issuer"), &addresses, 8443)?;
    let mut processes = Vec::new();
    for (name, uri, _) in SERVERS {
        processes.push(serve_python(mesh.pod(name), MIRROR, 8080, &[])?);
        mesh.world.manifests().apply(&json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "jwt": {"providers": [{
                    "issuer": "https://issuer.example",
                    "audiences": ["shop"],
                    "jwksUri": uri,
                    "outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}],
                }]},
            },
        }))?;
    }
    for (name, _, objection) in SERVERS {
        let expected = if objection.is_some() { 401 } else { 200 };
        let url = format!("http://{}:8080/", mesh.pod(name).ip4);
        let bearer = format!("Authorization: Bearer {JOE}");
        until_ok(name, SOON * 2, || {
            let command = ["curl", "-sSi", "--max-time", "15", "-H", &bearer, &url];
            let text = mesh.pod("client").run(&command)?.ok()?.stdout;
            let status = text.split(' ').nth(1).unwrap_or_default();
            ensure!(status == expected.to_string(), "{name}: {text}");
            let known = text.contains("\nx-user: joe");
            ensure!(known == (expected == 200), "{name}: {text}");
            ensure!(
                expected == 200 || text.contains("keys of the issuer not available"),
                "{name}: {text}"
            );
            Ok(())
        })?;
        if let Some((node, why)) = objection {
            let said = mesh.agent(node).process.output();
            let keys = said
                .lines()
                .filter(|line| line.contains("keys of an issuer"));
            let named = keys.filter(|line| line.contains(why)).count();
            ensure!(
                named > 0,
                "{name}: the agent of {node} does not say {why}: {said}"
            );
        }
    }
    Ok(())
}
