//! The watch of one kind: reads everything, follows what changes, begins again.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::away::Away;
use super::backoff::{Backoff, spread};
use super::failure::{Failure, Relist, Verb};
use super::health::News;
use super::kind::Kind;
use super::reflector::Reflector;
use super::server::{Lines, Server, escaped};
use super::wire::{self, Event};
use crate::cluster::convert::Converter;
use crate::state::Change;

/// Objects on a page of a list.
const PAGE: usize = 500;
/// The API server ends a watch after this time, spread over its own length so that the
/// watches of thousands of agents, made at one time, do not end at one.
const WATCH: Duration = Duration::from_secs(400);
/// A watch that ends so much before its time was cut off.
const EARLY: Duration = Duration::from_secs(5);
/// API servers send a bookmark about each minute; without one for so long, the connection
/// is dead.
const BOOKMARK: Duration = Duration::from_secs(100);
/// The first events come without a longer pause.
const INITIAL: Duration = Duration::from_secs(15);
/// So many streamed lists in a row that come to no end, and the API server is taken for one
/// that does not know of them. One that is only slow should not be asked for more.
const ENDLESS: u32 = 2;
/// Reading everything once more is put off by so much for each object, on average, so that
/// a large cluster's agents do not all ask for everything of it at one time.
const PER_OBJECT: Duration = Duration::from_micros(100);
/// A watch that lasts so long is well.
const WELL: Duration = Duration::from_secs(30);
/// Between two looks whether it is sure that a kind is gone, at least.
const LOOK: Duration = Duration::from_millis(500);

/// What a watch tells the feed.
#[derive(Debug)]
pub(super) struct Report {
    /// Which of its kinds.
    pub(super) index: usize,
    pub(super) changes: Vec<Change>,
    /// How many objects are in force now.
    pub(super) objects: usize,
    pub(super) news: Option<News>,
}

/// The watch of one kind.
pub(super) struct Watcher {
    index: usize,
    kind: &'static Kind,
    /// Which of the kind's versions is asked for.
    version: usize,
    server: Server,
    converter: Converter,
    reflector: Reflector,
    reports: mpsc::Sender<Report>,
    backoff: Backoff,
    /// The API server can stream a list.
    streams: bool,
    /// Streamed lists that fell silent, in a row.
    silent: u32,
    /// The next list is for this reason.
    relist: Option<Relist>,
    /// Since when the watch stands.
    watching: Option<Instant>,
    /// The API server sends bookmarks.
    bookmarks: bool,
    away: Away,
    logged: Option<String>,
}

/// How a watch came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its time was over.
    Due,
    /// The API server, or something between, closed it.
    Early,
}

impl Watcher {
    pub(super) fn new(
        (index, kind): (usize, &'static Kind),
        server: Server,
        converter: Converter,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self {
            index,
            kind,
            version: 0,
            server,
            converter,
            reflector: Reflector::new(kind.object),
            reports,
            backoff: Backoff::default(),
            streams: true,
            silent: 0,
            relist: None,
            watching: None,
            bookmarks: false,
            away: Away::No,
            logged: None,
        }
    }

    /// Watches for as long as it is polled, once its stage has come.
    pub(super) async fn run(mut self, mut stage: watch::Receiver<usize>) {
        let wanted = self.kind.stage;
        if stage.wait_for(|open| *open >= wanted).await.is_err() {
            return;
        }
        drop(stage);
        loop {
            self.watching = None;
            let ended = self.attempt().await;
            let wait = self.conclude(ended).await;
            sleep(wait).await;
        }
    }

    async fn attempt(&mut self) -> Result<End, Failure> {
        if self.reflector.version().is_none() {
            self.reflector.begin();
            let reason = self.relist.take();
            self.tell(Vec::new(), Some(News::Listing(reason))).await;
            if self.streams {
                return self.watch(true).await;
            }
            self.list().await?;
        }
        self.watch(false).await
    }

    /// Reads everything, page by page.
    async fn list(&mut self) -> Result<(), Failure> {
        let path = format!("{}?limit={PAGE}", self.path());
        let mut next = String::new();
        let mut version = None;
        loop {
            let page = if next.is_empty() {
                path.clone()
            } else {
                format!("{path}&continue={}", escaped(&next))
            };
            let text = self.server.text(Verb::List, &page).await?;
            let page = wire::page(&text)?;
            let mut changes = Vec::new();
            for item in &page.items {
                self.put(item, &mut changes);
            }
            // What happened since the first page may or may not be in the others.
            let version = version.get_or_insert(page.version);
            next = page.next;
            if next.is_empty() {
                self.reflector.finish(version, &mut changes);
                self.tell(changes, None).await;
                return Ok(());
            }
            self.tell(changes, None).await;
        }
    }

    /// Follows what changes; reads everything first where it is `initial`.
    async fn watch(&mut self, mut initial: bool) -> Result<End, Failure> {
        let lasts = spread(WATCH, rand::random());
        let started = Instant::now();
        let path = self.watch_path(initial, lasts);
        let body = self.server.open(Verb::Watch, &path).await?;
        if !initial {
            self.stands().await;
        }
        let mut lines = Lines::new(body);
        loop {
            let patience = match (initial, self.bookmarks) {
                (true, _) => INITIAL,
                (false, true) => BOOKMARK,
                (false, false) => lasts + INITIAL,
            };
            let more = lines.more(patience).await;
            match more {
                Ok(true) => {}
                Ok(false) if initial => {
                    let message = "the list was cut off".to_owned();
                    return Err(Failure::Unreachable(message));
                }
                Ok(false) if started.elapsed() + EARLY < lasts => return Ok(End::Early),
                Ok(false) => return Ok(End::Due),
                Err(Failure::Silent(_)) if initial && self.silent + 1 >= ENDLESS => {
                    return Err(Failure::Endless);
                }
                Err(failure @ Failure::Silent(_)) if initial => {
                    self.silent += 1;
                    return Err(failure);
                }
                Err(failure) => return Err(failure),
            }
            let mut changes = Vec::new();
            let outcome = lines.each(|line| self.take(line, &mut initial, &mut changes));
            let stands = !initial && self.watching.is_none();
            let news = (!initial && !stands).then_some(News::Heard);
            self.tell(changes, news).await;
            if stands && outcome.is_ok() {
                self.stands().await;
            }
            outcome?;
        }
    }

    fn path(&self) -> String {
        self.kind.path(self.kind.versions()[self.version])
    }

    fn watch_path(&self, initial: bool, lasts: Duration) -> String {
        let path = self.path();
        let seconds = lasts.as_secs();
        let from = match self.reflector.version() {
            Some(version) if !initial => format!("resourceVersion={}", escaped(version)),
            Some(_) | None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&{from}")
    }

    /// The watch is up to date and follows.
    async fn stands(&mut self) {
        self.watching = Some(Instant::now());
        self.away = Away::No;
        if self.logged.take().is_some() {
            tracing::info!(kind = self.kind.object.as_str(), "watching again");
        }
        self.tell(Vec::new(), Some(News::Watching)).await;
    }

    fn take(
        &mut self,
        line: &str,
        initial: &mut bool,
        changes: &mut Vec<Change>,
    ) -> Result<(), Failure> {
        match wire::event(line)? {
            Event::Put(object) => self.put(object, changes),
            Event::Gone(object) => match self.converter.identify(self.kind.object, object) {
                Ok((name, version)) => self.reflector.gone(&name, &version, changes),
                Err(problem) => self.unnamed(&problem.message),
            },
            Event::Bookmark { version, complete } if *initial => {
                if !complete {
                    return Err(Failure::Endless);
                }
                self.bookmarks = true;
                self.reflector.finish(&version, changes);
                self.silent = 0;
                *initial = false;
            }
            Event::Bookmark { version, .. } => {
                self.bookmarks = true;
                if !self.reflector.bookmark(&version) {
                    return Err(Failure::WentBack);
                }
            }
            Event::Error(refusal) => {
                let retry_after = refusal.retry_after_seconds().map(Duration::from_secs);
                return Err(Failure::Refused {
                    verb: Verb::Watch,
                    refusal,
                    midway: true,
                    retry_after,
                });
            }
        }
        Ok(())
    }

    fn put(&mut self, object: &str, changes: &mut Vec<Change>) {
        match self.converter.text(self.kind.object, object) {
            Ok(received) => self.reflector.put(received, changes),
            Err(problem) => self.unnamed(&problem.message),
        }
    }

    fn unnamed(&self, why: &str) {
        tracing::warn!(
            kind = self.kind.object.as_str(),
            why,
            "the API server sent an object without a name, which is left out"
        );
    }

    /// What follows from an attempt's end, and how long to wait before the next.
    async fn conclude(&mut self, ended: Result<End, Failure>) -> Duration {
        if self.watching.is_some_and(|since| since.elapsed() >= WELL) {
            self.backoff.reset();
        }
        let failure = match ended {
            Ok(End::Due) => return Duration::ZERO,
            Ok(End::Early) => {
                self.tell(Vec::new(), Some(News::Dropped)).await;
                return self.backoff.after_failure(rand::random());
            }
            Err(failure) => failure,
        };
        let refused = matches!(failure.code(), Some(400 | 422));
        let listing = self.reflector.version().is_none();
        if self.streams && listing && (refused || failure == Failure::Endless) {
            // It can't stream lists, so that it is asked for pages.
            self.streams = false;
            return Duration::ZERO;
        }
        if self.kind.custom && failure.code() == Some(404) {
            self.version += 1;
            if self.version < self.kind.versions().len() {
                // It may be served in another version.
                return Duration::ZERO;
            }
            self.version = 0;
            return self.missing().await;
        }
        self.away.interrupt();
        let mut wait = self.backoff.after_failure(rand::random());
        if let Some(reason) = failure.relist()
            && !listing
        {
            self.reflector.expire();
            self.relist = Some(reason);
            let objects = u32::try_from(self.reflector.len()).unwrap_or(u32::MAX);
            wait += spread(PER_OBJECT.saturating_mul(objects), rand::random());
        }
        let asked = failure.retry_after().unwrap_or_default();
        self.failed(&failure).await;
        wait.max(spread(asked, rand::random()).max(asked))
    }

    async fn failed(&mut self, failure: &Failure) {
        let message = failure.explain(self.kind);
        if self.watching.is_some() {
            tracing::debug!(kind = self.kind.object.as_str(), message, "the watch ended");
            return self.tell(Vec::new(), Some(News::Dropped)).await;
        }
        let lost = failure.is_lost();
        self.complain(message, lost).await;
    }

    async fn complain(&mut self, message: String, lost: bool) {
        if self.logged.as_ref() != Some(&message) {
            tracing::warn!(kind = self.kind.object.as_str(), message, "can't watch");
            self.logged = Some(message.clone());
        }
        let news = News::Failed { message, lost };
        self.tell(Vec::new(), Some(news)).await;
    }

    /// There seems to be no such kind.
    async fn missing(&mut self) -> Duration {
        self.reflector.expire();
        let resource = self.kind.resource();
        let gone = match self.away {
            Away::Yes => Ok(true),
            Away::No | Away::Since(_) => self.server.lacks(self.kind).await,
        };
        match gone {
            Ok(true) => {}
            Ok(false) => {
                self.away.interrupt();
                let message = format!("{resource} are not served yet: the API server is starting");
                self.complain(message, false).await;
                return self.backoff.after_failure(rand::random());
            }
            Err(failure) => {
                self.away.interrupt();
                self.failed(&failure).await;
                return self.backoff.after_failure(rand::random());
            }
        }
        let (known, objects) = (self.away == Away::Yes, self.reflector.len());
        let doubted = self.kind.doubted;
        if let Some(left) = self.away.again(Instant::now(), objects, doubted) {
            if objects > 0 {
                let message = format!(
                    "{resource} seem to have been uninstalled; {objects} that were there stay in \
                     force for {} s more, until that is sure",
                    left.as_secs()
                );
                self.complain(message, false).await;
            }
            return spread(left / 3, rand::random()).max(LOOK);
        }
        let mut changes = Vec::new();
        if !known {
            tracing::info!(
                resource,
                "is not installed; it is looked for from time to time"
            );
            self.reflector.vanish(&mut changes);
            self.backoff.reset();
        }
        self.tell(changes, Some(News::Absent)).await;
        spread(self.kind.looked_for, rand::random())
    }

    async fn tell(&self, changes: Vec<Change>, news: Option<News>) {
        if changes.is_empty() && news.is_none() {
            return;
        }
        let report = Report {
            index: self.index,
            changes,
            objects: self.reflector.len(),
            news,
        };
        // The feed ends only together with its watches.
        drop(self.reports.send(report).await);
    }
}
