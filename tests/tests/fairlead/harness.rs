//! The worlds themselves: without an agent, everything reaches everything.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{Capture, PodSpec, World, WorldOptions};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("world::pods_reach_each_other", pods_reach_each_other).with(&["nginx", "curl"]),
    Test::node("world::leaves_nothing", leaves_nothing),
    Test::node("world::is_swept_when_its_creator_is_dead", is_swept),
];

const SOON: Duration = Duration::from_secs(30);

fn pods_reach_each_other() -> Result<()> {
    let mut options = WorldOptions::nodes(&["a", "b"]);
    options.cubic = true;
    let world = World::create(&options)?;
    let client = world.pod(&PodSpec::new("a", "shop", "client"))?;
    let server = world.pod(&PodSpec::new("b", "shop", "server"))?;
    let script = "import http.server, socket
class Dual(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'hello from the marker')
Dual(('::', 8080), Handler).serve_forever()";
    let _server = server.spawn("web", &["python3", "-c", script])?;
    server.wait_listening(8080, SOON)?;
    let (node, device) = world.link("a", "b");
    let capture = Capture::start(&world, node, &device, "plain")?;
    for host in [server.ip4.to_string(), format!("[{}]", server.ip6)] {
        let url = format!("http://{host}:8080/");
        let output = client
            .run(&["curl", "-sS", "--max-time", "5", &url])?
            .ok()?;
        ensure!(
            output.stdout == "hello from the marker",
            "{}",
            output.stdout
        );
    }
    let traffic = capture.stop()?;
    ensure!(traffic.contains("the marker"), "the capture missed it");
    ensure!(traffic.tls_records_to(8080) == 0, "there was no TLS");
    ensure!(traffic.plaintext_streams().len() == 4, "{traffic:?}");
    Ok(())
}

fn leaves_nothing() -> Result<()> {
    let world = World::create(&WorldOptions::nodes(&["a"]))?;
    let pod = world.pod(&PodSpec::new("a", "shop", "client"))?;
    let sleeper = pod.spawn("sleeper", &["sleep", "1000"])?;
    let paths = [
        pod.netns(),
        pod.cgroup().to_owned(),
        world.directory().to_owned(),
    ];
    for path in &paths {
        ensure!(path.exists(), "{} is missing", path.display());
    }
    let process = format!("/proc/{}", sleeper.pid());
    drop(world);
    for path in &paths {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    drop(sleeper);
    ensure!(!Path::new(&process).exists(), "the process is left");
    Ok(())
}

fn is_swept() -> Result<()> {
    // No process has a number beyond the kernel's limit.
    let mut options = WorldOptions::nodes(&["a"]);
    options.id = Some(format!("4999999-{}", std::process::id()));
    let mut world = World::create(&options)?;
    let directory = world.directory().to_owned();
    world.keep();
    drop(world);
    ensure!(directory.exists(), "it was to be kept");
    fairlead_tests::sweep()?;
    ensure!(!directory.exists(), "it was to be swept");
    Ok(())
}
