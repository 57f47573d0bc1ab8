//! A browser in a pod.

use anyhow::{Result, ensure};

use crate::Test;
use crate::mesh::{LONG, Mesh, client_and_server, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("browser::loads_a_page_and_talks_websocket", talks).with(&["python3", "chromium"]),
];

const SITE: &str = include_str!("../../scripts/browser_site.py");

/// Nothing but the page: no look for news of the browser itself, no sandbox, which needs
/// more than a pod of these tests has.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--dump-dom",
];

/// What the page says that it has seen, in this order.
const SEEN: [&str; 6] = [
    "open",
    "the server spoke first",
    "bytes are the same",
    "/said?by-the-browser",
    "closed 4001 as you wish",
    "loaded: True",
];

fn talks() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    for [browser, site] in [["client", "server"], ["server", "client"]] {
        let (browser, site) = (mesh.pod(browser), mesh.pod(site));
        let _site = serve_python(site, SITE, 8080, &[])?;
        let profile = mesh.data(&browser.name);
        let profile = format!("--user-data-dir={}", profile.display());
        for host in [site.ip4.to_string(), format!("[{}]", site.ip6)] {
            let url = format!("http://{host}:8080/");
            let command = [&["chromium"], &FLAGS[..], &[&profile, &url]].concat();
            let page = browser.run_for(LONG, &command)?.ok()?.stdout;
            let mut rest = page.as_str();
            for text in SEEN {
                let item = format!("<li>{text}</li>");
                let (_before, after) = rest.split_once(&item).unwrap_or_default();
                ensure!(!after.is_empty(), "{host}: no {item} in its place: {page}");
                rest = after;
            }
        }
    }
    let flows = mesh.agent("a").cli.json(&["flows", "--last", "100"])?;
    let upgraded = flows.iter().map(ToString::to_string);
    let upgraded = upgraded.filter(|flow| flow.contains("/socket") && flow.contains("101"));
    ensure!(upgraded.count() >= 2, "{flows:?}");
    Ok(())
}
