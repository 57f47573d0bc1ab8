//! What is told of pods, and how often.

use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokio::time::{advance, sleep};

use super::*;
use crate::cluster::kube::fake::FakeApi;

fn fact(pod: &str, reason: PodFactReason, note: &str) -> PodFact {
    PodFact {
        pod: NamespacedName::new("shop", pod),
        uid: format!("uid of {pod}").into(),
        reason,
        note: note.to_owned(),
    }
}

fn failed(pod: &str) -> PodFact {
    fact(pod, PodFactReason::MeshEnrolFailed, "no namespace")
}

fn meshed(pod: &str) -> PodFact {
    fact(pod, PodFactReason::Meshed, "in the mesh")
}

/// Looks, and tells all that is due. What was told, with its count.
fn look(journal: &mut Journal, facts: &[PodFact]) -> Vec<(String, i32)> {
    let now = Instant::now();
    let due = journal.look(facts, now);
    let told = due
        .iter()
        .map(|it| (it.fact.pod.name.to_string(), it.count));
    let told = told.collect();
    for telling in due {
        let name = telling.event.clone();
        let name = name.unwrap_or_else(|| format!("{}.1", telling.fact.pod.name));
        journal.told(telling, Some(name), now);
    }
    told
}

fn once(pod: &str, count: i32) -> Vec<(String, i32)> {
    vec![(pod.to_owned(), count)]
}

#[tokio::test(start_paused = true)]
async fn what_holds_on_is_told_at_once_and_then_every_ten_minutes() {
    let mut journal = Journal::new(Instant::now());
    let facts = [failed("web")];
    assert_eq!(look(&mut journal, &facts), once("web", 1));
    let mut counts = Vec::new();
    for _ in 0..60 * 60 / 5 {
        advance(LOOK).await;
        counts.extend(
            look(&mut journal, &facts)
                .into_iter()
                .map(|(_, count)| count),
        );
    }
    assert_eq!(counts, [2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn another_note_is_news() {
    let mut journal = Journal::new(Instant::now());
    assert_eq!(look(&mut journal, &[failed("web")]), once("web", 1));
    let other = fact("web", PodFactReason::MeshEnrolFailed, "no cgroup");
    assert_eq!(look(&mut journal, &[other]), once("web", 1));
}

#[tokio::test(start_paused = true)]
async fn what_comes_and_goes_is_told_seldom() {
    let mut journal = Journal::new(Instant::now());
    let mut told = Vec::new();
    for _ in 0..60 {
        told.extend(look(&mut journal, &[failed("web")]));
        advance(LOOK).await;
        told.extend(look(&mut journal, &[]));
        advance(LOOK).await;
    }
    assert!((8..=11).contains(&told.len()), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_taken_in_at_a_start_are_no_news_and_later_ones_are() {
    let mut journal = Journal::new(Instant::now());
    assert_eq!(
        look(&mut journal, &[meshed("web"), failed("db")]),
        once("db", 1)
    );
    advance(Duration::from_hours(1)).await;
    let facts = [meshed("web"), meshed("db"), meshed("new")];
    let told: Vec<String> = look(&mut journal, &facts)
        .into_iter()
        .map(|it| it.0)
        .collect();
    assert_eq!(told, ["db", "new"]);
    advance(Duration::from_hours(1)).await;
    assert_eq!(look(&mut journal, &facts), []);
}

#[tokio::test(start_paused = true)]
async fn of_very_many_none_is_lost_and_none_hurries() {
    let mut journal = Journal::new(Instant::now());
    let pods: Vec<PodFact> = (0..100).map(|n| failed(&format!("web-{n:02}"))).collect();
    assert_eq!(look(&mut journal, &pods).len(), 20);
    let mut told = 20;
    let mut looks = 0;
    while told < 100 {
        advance(LOOK).await;
        let now = look(&mut journal, &pods).len();
        assert!(now <= 2);
        told += now;
        looks += 1;
    }
    assert!((45..=50).contains(&looks), "{looks}");
}

/// What holds, as a test changes it.
type Facts = Arc<Mutex<Option<Vec<PodFact>>>>;

fn start_telling(api: &FakeApi, facts: &Facts) {
    let facts = Arc::clone(facts);
    let facts = move || facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    tokio::spawn(keep_events(api.client(), NodeName("n1".into()), facts));
}

fn events(api: &FakeApi) -> Vec<Value> {
    let below = api.below("/apis/events.k8s.io/v1/namespaces/shop/events/");
    below.into_values().collect()
}

#[tokio::test(start_paused = true)]
async fn an_event_tells_of_the_pod() {
    let api = FakeApi::new();
    let facts = Facts::default();
    start_telling(&api, &facts);
    sleep(LOOK * 2).await;
    assert_eq!(events(&api), Vec::<Value>::new());
    *facts.lock().unwrap() = Some(vec![failed("web")]);
    sleep(LOOK * 2).await;
    let told = events(&api);
    assert_eq!(told.len(), 1);
    let event = &told[0];
    assert_eq!(event["reason"], "MeshEnrolFailed");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["note"], "no namespace");
    assert_eq!(event["regarding"]["kind"], "Pod");
    assert_eq!(event["regarding"]["uid"], "uid of web");
    assert_eq!(event["reportingController"], "fairlead.dev/agent");
    assert_eq!(event["reportingInstance"], "n1");
    sleep(Duration::from_mins(10)).await;
    let told = events(&api);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["series"]["count"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_expired_is_made_anew() {
    let api = FakeApi::new();
    let facts = Facts::default();
    *facts.lock().unwrap() = Some(vec![failed("web")]);
    start_telling(&api, &facts);
    sleep(LOOK).await;
    let path = api.below("/apis/events.k8s.io/").into_keys().next();
    api.delete(&path.unwrap());
    sleep(Duration::from_mins(11)).await;
    assert_eq!(events(&api).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_told_is_told_later() {
    let api = FakeApi::new();
    api.forbid(Some("/apis/events.k8s.io/"));
    let facts = Facts::default();
    *facts.lock().unwrap() = Some(vec![failed("web"), failed("db")]);
    start_telling(&api, &facts);
    sleep(Duration::from_hours(1)).await;
    let path = "/apis/events.k8s.io/v1/namespaces/shop/events";
    let asked = api.requests(&http::Method::POST, path);
    assert!((50..80).contains(&asked), "{asked}");
    api.forbid(None);
    sleep(REST * 2).await;
    assert_eq!(events(&api).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn long_names_and_notes_are_cut() {
    let api = FakeApi::new();
    let facts = Facts::default();
    let note = "é".repeat(2000);
    let name = format!("{}.{}", "a".repeat(199), "b".repeat(50));
    *facts.lock().unwrap() = Some(vec![fact(&name, PodFactReason::NotMeshed, &note)]);
    start_telling(&api, &facts);
    sleep(LOOK).await;
    let event = &events(&api)[0];
    assert_eq!(event["note"].as_str().unwrap().len(), LONGEST_NOTE);
    let name = event["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("aaa") && !name.contains("..") && name.len() < 253);
}
