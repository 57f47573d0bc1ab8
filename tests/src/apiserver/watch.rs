//! Watches: what is there, if that is wanted, and then every change.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Interval, Sleep, interval_at, sleep};

use super::StreamingLists;
use super::failure::Failure;
use super::fault::Effect;
use super::kind::Kind;
use super::list::{Filter, Scan};
use super::object::Stored;
use super::request::{ResourcePath, Target};
use super::shared::Shared;
use super::store::Event;

/// Changes that are sent together.
const BATCH: usize = 256;
/// What is there is sent in pieces of about so many bytes.
const PIECE: usize = 64 * 1024;
/// How long a watch lasts that says nothing of it.
const LIFETIME: Duration = Duration::from_mins(45);
/// How long changes are gathered that are to swap places.
const GATHER: Duration = Duration::from_millis(30);

struct Watch {
    shared: Arc<Shared>,
    kind: Arc<Kind>,
    filter: Filter,
    initial: Option<Scan>,
    /// Tell when what is there has been sent.
    announce: bool,
    bookmarks: bool,
    /// Everything up to here has been sent.
    version: u64,
    changed: Receiver<u64>,
    nudged: Receiver<u64>,
    end: Pin<Box<Sleep>>,
    tick: Interval,
    effects: Vec<Effect>,
    over: bool,
}

/// The body of a watch.
pub(super) fn watch(
    shared: &Arc<Shared>,
    kind: &Arc<Kind>,
    (path, target): (&ResourcePath, &Target),
    effects: &[Effect],
) -> Result<BoxStream<'static, io::Result<Bytes>>, Failure> {
    let store = &shared.store;
    let filter = Filter::new(kind, path, target)?;
    let asked = target.number("resourceVersion")?.filter(|v| *v > 0);
    let streaming = shared.streaming_lists();
    let wants_list = target.flag("sendInitialEvents");
    if wants_list && streaming == StreamingLists::Forbidden {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch \
                       unless the WatchList feature gate is enabled";
        return Err(Failure::invalid(message));
    }
    let lists = wants_list && streaming == StreamingLists::Served;
    if lists && target.text("resourceVersionMatch") != "NotOlderThan" {
        let message = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                       resourceVersionMatch to NotOlderThan";
        return Err(Failure::invalid(message));
    }
    let gone = || Failure::not_found(&kind.qualified(), "");
    let changed = store.follow(kind).ok_or_else(gone)?;
    let (objects, now) = store.list(kind).ok_or_else(gone)?;
    let mut over = None;
    let version = match asked {
        Some(asked) if !lists => {
            match store.check(asked) {
                Err(expired) if expired.code == 410 && !shared.expires_by_status() => {
                    over = Some(expired);
                }
                checked => checked?,
            }
            asked
        }
        Some(asked) if asked > now => return Err(Failure::from_the_future(asked, now)),
        Some(_) | None => now,
    };
    if effects.contains(&Effect::ExpiredEvent) {
        over = Some(Failure::expired(version, now));
    }
    if let Some(failure) = over {
        return Ok(stream::iter([Ok(error(&failure))]).boxed());
    }
    let lifetime = target.number("timeoutSeconds")?;
    let tick = shared.bookmark_interval();
    let watch = Watch {
        shared: Arc::clone(shared),
        kind: Arc::clone(kind),
        initial: (lists || asked.is_none()).then(|| Scan::new(objects, filter.clone(), None)),
        filter,
        announce: lists,
        bookmarks: target.flag("allowWatchBookmarks"),
        version,
        changed,
        nudged: shared.nudged(),
        end: Box::pin(sleep(lifetime.map_or(LIFETIME, Duration::from_secs))),
        tick: interval_at(tokio::time::Instant::now() + tick, tick),
        effects: effects.to_vec(),
        over: false,
    };
    let pieces = stream::unfold(watch, |mut watch| async {
        let piece = watch.next().await?;
        Some((Ok(piece), watch))
    });
    Ok(pieces.boxed())
}

impl Watch {
    /// What is to be sent next; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.next_initial() {
            return Some(piece);
        }
        while !self.over {
            match self.shared.store.since(&self.kind, self.version, BATCH) {
                Err(failure) => {
                    self.over = true;
                    return Some(error(&failure));
                }
                Ok(since) => {
                    self.version = since.version;
                    let lines = self.lines(&since.events);
                    if !lines.is_empty() {
                        return Some(lines);
                    }
                    if !since.events.is_empty() {
                        continue;
                    }
                }
            }
            if self.wait().await && self.bookmarks {
                return Some(self.bookmark(false));
            }
        }
        None
    }

    /// Until something may have changed, or it is over. True where a bookmark is due.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            biased;
            changed = self.changed.changed() => {
                if changed.is_err() {
                    // The kind has gone. What was told before that is still to be sent.
                    let since = self.shared.store.since(&self.kind, self.version, BATCH);
                    self.over = since.is_ok_and(|since| since.events.is_empty());
                } else if self.effects.contains(&Effect::Reorder) {
                    sleep(GATHER).await;
                }
                false
            }
            () = &mut self.end => {
                self.over = true;
                true
            }
            _ = self.tick.tick() => true,
            nudged = self.nudged.changed() => {
                self.over |= nudged.is_err();
                true
            }
        }
    }

    fn next_initial(&mut self) -> Option<Bytes> {
        let scan = self.initial.as_mut()?;
        let mut piece = BytesMut::new();
        let ended = scan.visit(|object| {
            write_event(&mut piece, "ADDED", object.text());
            piece.len() < PIECE
        });
        if ended {
            self.initial = None;
            if self.announce {
                piece.put_slice(&self.bookmark(true));
            }
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }

    fn lines(&self, events: &[Event]) -> Bytes {
        let mut events: Vec<&Event> = events.iter().collect();
        if self.effects.contains(&Effect::Reorder) {
            // Stable: those of one object stay in order.
            events.sort_by(|left, right| right.object.name.cmp(&left.object.name));
        }
        let mut lines = BytesMut::new();
        let times = 1 + usize::from(self.effects.contains(&Effect::Duplicate));
        for event in events {
            for _ in 0..times {
                self.write(&mut lines, event);
            }
        }
        lines.freeze()
    }

    /// As this watch sees it, which only knows what passes its filter.
    fn write(&self, lines: &mut BytesMut, event: &Event) {
        let passes = |object: &Arc<Stored>| self.filter.passes(object);
        let before = event.old.as_ref().is_some_and(passes);
        let after = !event.deleted && passes(&event.object);
        match (before, after) {
            (false, true) => write_event(lines, "ADDED", event.object.text()),
            (true, true) => write_event(lines, "MODIFIED", event.object.text()),
            (true, false) => {
                let last = match &event.old {
                    Some(old) if !event.deleted => {
                        let version = event.version;
                        Stored::new(&self.kind, &old.name, old.value(), version)
                            .text()
                            .clone()
                    }
                    Some(_) | None => event.object.text().clone(),
                };
                write_event(lines, "DELETED", &last);
            }
            (false, false) => {}
        }
    }

    fn bookmark(&self, initial_events_end: bool) -> Bytes {
        let mut object = match &*self.kind.kind {
            // An empty object of the type, as the API server serialises it.
            "Pod" => json!({"spec": {"containers": null}, "status": {}}),
            "Service" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
            "EndpointSlice" => json!({"addressType": "", "endpoints": null, "ports": null}),
            "Namespace" => json!({"spec": {}, "status": {}}),
            _ => json!({}),
        };
        object["kind"] = (*self.kind.kind).into();
        object["apiVersion"] = self.kind.api_version().into();
        object["metadata"] = json!({
            "resourceVersion": self.version.to_string(), "creationTimestamp": null,
        });
        if initial_events_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        event("BOOKMARK", &object)
    }
}

fn error(failure: &Failure) -> Bytes {
    event("ERROR", &failure.status())
}

fn event(kind: &str, object: &Value) -> Bytes {
    let mut line = BytesMut::new();
    write_event(&mut line, kind, object.to_string().as_bytes());
    line.freeze()
}

fn write_event(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}
