//! Real servers, each in a pod, with their data in the world's directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::pod::Pod;
use crate::process::{self, Process};
use crate::wait;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);

/// nginx on port 80, both families, that serves the files of `<data>/www`.
pub fn nginx(pod: &Pod, data: &Path) -> Result<Process> {
    let www = data.join("www");
    fs::create_dir_all(&www)?;
    let root = data.display();
    let configuration = format!(
        "daemon off; master_process off; worker_processes 1; pid {root}/nginx.pid;
        error_log {root}/error.log;
        events {{ worker_connections 4096; }}
        http {{
            access_log off; sendfile on; keepalive_requests 1000000;
            client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
            fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi;
            scgi_temp_path {root}/scgi;
            client_max_body_size 0;
            server {{
                listen 80 backlog=4096; listen [::]:80 backlog=4096; root {root}/www;
                location = /whoami {{ default_type text/plain; return 200 \"$remote_addr\\n\"; }}
            }}
        }}"
    );
    let file = data.join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = pod.command("nginx");
    let _: &mut Command = command.arg("-c").arg(&file).env("PATH", system_path());
    let process = pod.start("nginx", &mut command)?;
    pod.wait_listening(80, START)
        .with_context(|| process.output())?;
    Ok(process)
}

/// PostgreSQL on port 5432, for anyone, as the user `postgres`.
pub fn postgres(pod: &Pod, data: &Path) -> Result<Process> {
    let programs = postgres_programs()?;
    fs::create_dir_all(data)?;
    drop(crate::system::tool(
        "chown",
        &["postgres:".as_ref(), data.as_os_str()],
    )?);
    let cluster = data.join("cluster");
    let as_postgres = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let mut create = Command::new("setpriv");
    let _: &mut Command = create
        .args(as_postgres)
        .arg(programs.join("initdb"))
        .args([
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--locale=C",
            "-E",
            "UTF8",
        ])
        .arg("--pgdata")
        .arg(&cluster)
        .current_dir(data);
    drop(process::run(&mut create, START)?.ok()?);
    fs::write(
        cluster.join("pg_hba.conf"),
        "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n",
    )?;
    let mut serve = pod.command("setpriv");
    let _: &mut Command = serve
        .args(as_postgres)
        .arg(programs.join("postgres"))
        .arg("-D")
        .arg(&cluster)
        .args(["-c", "listen_addresses=*", "-c", "unix_socket_directories="])
        .args(["-c", "fsync=off", "-c", "max_connections=200"])
        .current_dir(data);
    let process = pod.start("postgres", &mut serve)?;
    wait::until_ok("PostgreSQL", START, || {
        anyhow::ensure!(process.output().contains("ready to accept connections"));
        Ok(())
    })
    .with_context(|| process.output())?;
    Ok(process)
}

/// Redis on port 6379, for anyone, that keeps nothing.
pub fn redis(pod: &Pod, data: &Path) -> Result<Process> {
    fs::create_dir_all(data)?;
    let directory = data.display().to_string();
    let arguments = [
        "redis-server",
        "--port",
        "6379",
        "--bind",
        "*",
        "-::*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        &directory,
    ];
    let process = pod.spawn("redis", &arguments)?;
    pod.wait_listening(6379, START)
        .with_context(|| process.output())?;
    Ok(process)
}

/// `PATH` with the folders where Debian keeps servers.
fn system_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

/// The newest PostgreSQL's programs, which Debian keeps out of `PATH`.
fn postgres_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            let programs = entry.path().join("bin");
            programs
                .join("postgres")
                .exists()
                .then_some((version, programs))
        })
        .collect();
    found.sort_unstable();
    let (_, newest) = found
        .pop()
        .context("PostgreSQL's server is not installed")?;
    Ok(newest)
}
