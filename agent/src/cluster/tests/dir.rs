//! A real directory, watched. Time is real here, since inotify's is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::cluster::Source;
use crate::cluster::dir::{Config, start};

fn pod(name: &str, ip: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nstatus:\n  podIP: {ip}\n")
}

/// Runs `test` beside the source.
async fn with_source(path: &Path, test: impl AsyncFnOnce(&mut Source)) {
    let config = Config {
        path: path.to_owned(),
        trust_domain: trust_domain(),
        external_ips: Vec::new(),
    };
    let (mut source, task) = start(config);
    tokio::select! {
        // The test first, so that it sees a source that has done nothing yet.
        biased;
        () = test(&mut source) => {}
        () = task => panic!("the source ended"),
    }
}

/// Waits for a snapshot with exactly these pods.
#[track_caller]
fn pods<'a>(source: &'a mut Source, expected: &'a [&str]) -> impl Future<Output = Snapshot> + 'a {
    let names = |snapshot: &Snapshot| -> Vec<String> {
        snapshot
            .pods
            .keys()
            .map(|name| name.name.to_string())
            .collect()
    };
    async move {
        let wait = source
            .snapshots
            .wait_for(|snapshot| snapshot.revision > 0 && names(snapshot) == expected);
        let snapshot = timeout(Duration::from_secs(20), wait).await;
        let snapshot = snapshot.unwrap_or_else(|_| panic!("expected {expected:?}"));
        snapshot.expect("the source runs").clone()
    }
}

#[tokio::test]
async fn files_come_change_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yaml"), pod("a", "10.0.0.1")).unwrap();
    fs::write(file("ignored.txt"), pod("no", "10.0.0.2")).unwrap();
    fs::write(file(".hidden.yaml"), pod("no", "10.0.0.3")).unwrap();
    with_source(directory.path(), async |source| {
        pods(source, &["a"]).await;
        fs::write(
            file("b.json"),
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}"#,
        )
        .unwrap();
        let snapshot = pods(source, &["a", "b"]).await;
        assert_eq!(snapshot.problems.len(), 1);
        // As careful writers do it.
        fs::write(file(".c.tmp"), pod("c", "10.0.0.4")).unwrap();
        fs::rename(file(".c.tmp"), file("a.yaml")).unwrap();
        pods(source, &["b", "c"]).await;
        fs::remove_file(file("b.json")).unwrap();
        pods(source, &["c"]).await;
        let health = source
            .health
            .wait_for(|health| health.problems == 0)
            .await
            .unwrap();
        assert!(health.healthy && health.last_sync.is_some());
        assert_eq!(health.objects["Pod"], 1);
    })
    .await;
}

#[tokio::test]
async fn an_empty_directory_is_a_state_too() {
    let directory = tempfile::tempdir().unwrap();
    with_source(directory.path(), async |source| {
        assert_eq!(source.snapshots.borrow().revision, 0);
        let snapshot = pods(source, &[]).await;
        assert_eq!(snapshot.revision, 1);
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("manifests");
    with_source(&path, async |source| {
        let health = source
            .health
            .wait_for(|health| health.last_error.is_some())
            .await;
        let health = health.unwrap().clone();
        assert!(!health.healthy && health.last_sync.is_none());
        let message = health.last_error.unwrap().message;
        assert!(message.contains("manifests: No such file"), "{message}");
        assert_eq!(source.snapshots.borrow().revision, 0);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
        pods(source, &["a"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_goes_leaves_the_state_as_it_is() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
    with_source(&path, async |source| {
        pods(source, &["a"]).await;
        fs::rename(&path, parent.path().join("away")).unwrap();
        let unhealthy = source.health.wait_for(|health| !health.healthy);
        timeout(Duration::from_secs(30), unhealthy)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(source.snapshots.borrow().pods.len(), 1);
        // Another one in its place is watched in turn.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("b.yaml"), pod("b", "10.0.0.2")).unwrap();
        pods(source, &["b"]).await;
        fs::write(path.join("c.yaml"), pod("c", "10.0.0.3")).unwrap();
        pods(source, &["b", "c"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_no_text_or_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
    with_source(path, async |source| {
        pods(source, &["a"]).await;
        fs::write(path.join("a.yaml"), b"\xff\xfe").unwrap();
        fs::create_dir(path.join("b.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", path.join("c.yaml")).unwrap();
        fs::write(path.join("d.yaml"), pod("d", "10.0.0.2")).unwrap();
        pods(source, &["a", "d"]).await;
        let snapshot = source
            .snapshots
            .wait_for(|snapshot| snapshot.problems.len() == 2)
            .await;
        let problems = problems(&snapshot.unwrap());
        assert!(
            problems[0].starts_with("a.yaml:0 : is not UTF-8"),
            "{problems:?}"
        );
        assert!(
            problems[1].starts_with("b.yaml:0 : is not a file"),
            "{problems:?}"
        );
    })
    .await;
}
