//! Lists: whole ones piece by piece, and pages of one version.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde_json::json;

use super::failure::Failure;
use super::kind::Kind;
use super::object::{Name, Stored, selectable};
use super::request::{ResourcePath, Target};
use super::selector::Selector;
use super::store::{Objects, Store};

/// A piece of a body has about so many bytes.
const PIECE: usize = 64 * 1024;

/// Which objects a list or a watch is about.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    namespace: String,
    labels: Selector,
    fields: Selector,
}

impl Filter {
    pub(super) fn new(kind: &Kind, path: &ResourcePath, target: &Target) -> Result<Self, Failure> {
        let mut fields = target.text("fieldSelector").to_owned();
        if !path.name.is_empty() {
            fields = format!("{fields},metadata.name={}", path.name);
        }
        let keys = fields.split(',').filter(|term| !term.is_empty());
        for key in keys.map(|term| term.split(['=', '!']).next().unwrap_or_default()) {
            let known = matches!(key, "metadata.name" | "metadata.namespace")
                || selectable(kind).iter().any(|(field, _)| *field == key);
            if !known {
                let message = format!("field label not supported: {key}");
                return Err(Failure::bad_request(message));
            }
        }
        Ok(Self {
            namespace: path.namespace.clone(),
            labels: Selector::parse(target.text("labelSelector"))?,
            fields: Selector::parse(&fields)?,
        })
    }

    pub(super) fn passes(&self, object: &Stored) -> bool {
        (self.namespace.is_empty() || *object.name.namespace == *self.namespace)
            && self.labels.matches(|key| object.label(key))
            && self.fields.matches(|key| object.field(key))
    }

    fn selects(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}

/// The objects of one version, from one on.
#[derive(Debug)]
pub(super) struct Scan {
    objects: Objects,
    filter: Filter,
    after: Option<Name>,
}

impl Scan {
    pub(super) fn new(objects: Objects, filter: Filter, after: Option<Name>) -> Self {
        Self {
            objects,
            filter,
            after,
        }
    }

    /// Calls `take` for each object that passes, as long as that says to go on. True
    /// once there is none left.
    pub(super) fn visit(&mut self, mut take: impl FnMut(&Arc<Stored>) -> bool) -> bool {
        let namespace = &self.filter.namespace;
        let start = match &self.after {
            Some(name) => Bound::Excluded(name.clone()),
            None => Bound::Included(Name::new(namespace, "")),
        };
        for (name, object) in self.objects.range((start, Bound::Unbounded)) {
            if !namespace.is_empty() && *name.namespace != **namespace {
                return true;
            }
            if self.filter.passes(object) {
                self.after = Some(name.clone());
                if !take(object) {
                    return false;
                }
            }
        }
        true
    }
}

/// The body of a list.
pub(super) fn list(
    store: &Store,
    kind: &Arc<Kind>,
    path: &ResourcePath,
    target: &Target,
) -> Result<BoxStream<'static, io::Result<Bytes>>, Failure> {
    let filter = Filter::new(kind, path, target)?;
    let (objects, version, after) = versioned(store, kind, target)?;
    match target.number("limit")?.filter(|limit| *limit > 0) {
        Some(limit) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let scan = Scan::new(objects.clone(), filter, after);
            let (body, complete) = page(kind, scan, version, limit);
            if !complete {
                store.keep(kind, objects, version);
            }
            Ok(stream::iter([Ok(body)]).boxed())
        }
        None => Ok(whole(
            Arc::clone(kind),
            Scan::new(objects, filter, after),
            version,
        )),
    }
}

/// The version that the request asks for, and from where on.
fn versioned(
    store: &Store,
    kind: &Kind,
    target: &Target,
) -> Result<(Objects, u64, Option<Name>), Failure> {
    let token = target.text("continue");
    if !token.is_empty() {
        let (version, after) = decode(token)
            .ok_or_else(|| Failure::bad_request(format!("continue key is not valid: {token}")))?;
        return Ok((store.kept(kind, version)?, version, Some(after)));
    }
    let gone = || Failure::not_found(&kind.qualified(), "");
    let (objects, now) = store.list(kind).ok_or_else(gone)?;
    match target.number("resourceVersion")? {
        Some(wanted) if wanted > now => Err(Failure::from_the_future(wanted, now)),
        Some(wanted) if target.text("resourceVersionMatch") == "Exact" && wanted != now => {
            Ok((store.kept(kind, wanted)?, wanted, None))
        }
        Some(_) | None => Ok((objects, now, None)),
    }
}

fn head(kind: &Kind, metadata: &serde_json::Value) -> String {
    let list = json!(format!("{}List", kind.kind));
    let version = json!(kind.api_version());
    format!("{{\"kind\":{list},\"apiVersion\":{version},\"metadata\":{metadata},\"items\":[")
}

/// One page, and whether it is the last.
fn page(kind: &Kind, mut scan: Scan, version: u64, limit: usize) -> (Bytes, bool) {
    let mut items = BytesMut::new();
    let mut count = 0;
    scan.visit(|object| {
        if count > 0 {
            items.put_u8(b',');
        }
        object.write_item(kind, &mut items);
        count += 1;
        count < limit
    });
    let mut metadata = json!({"resourceVersion": version.to_string()});
    let last = scan.after.clone();
    let mut remaining = 0_u64;
    scan.visit(|_| {
        remaining += 1;
        true
    });
    if let Some(last) = last.filter(|_| remaining > 0) {
        metadata["continue"] = encode(version, &last).into();
        if !scan.filter.selects() {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let mut body = BytesMut::from(head(kind, &metadata).as_bytes());
    body.unsplit(items);
    body.put_slice(b"]}");
    (body.freeze(), remaining == 0)
}

/// All of it, piece by piece.
fn whole(kind: Arc<Kind>, mut scan: Scan, version: u64) -> BoxStream<'static, io::Result<Bytes>> {
    let metadata = json!({"resourceVersion": version.to_string()});
    let mut piece = BytesMut::from(head(&kind, &metadata).as_bytes());
    let (mut first, mut ended) = (true, false);
    let pieces = std::iter::from_fn(move || {
        if ended {
            return None;
        }
        ended = scan.visit(|object| {
            if !std::mem::take(&mut first) {
                piece.put_u8(b',');
            }
            object.write_item(&kind, &mut piece);
            piece.len() < PIECE
        });
        if ended {
            piece.put_slice(b"]}");
        }
        Some(Ok(piece.split().freeze()))
    });
    stream::iter(pieces).boxed()
}

fn encode(version: u64, after: &Name) -> String {
    URL_SAFE_NO_PAD.encode(format!("{version} {} {}", after.namespace, after.name))
}

fn decode(token: &str) -> Option<(u64, Name)> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let mut parts = text.split(' ');
    let version = parts.next()?.parse().ok()?;
    Some((version, Name::new(parts.next()?, parts.next()?)))
}
