//! The change feed: a page of it, or a stream of server-sent events that goes on with what is committed.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use super::{OrFail, QueryFields, RestError, RestResult, Source, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::fanout::feed::{self, Page};
use crate::gateway::fanout::hub::ChangeFilter;
use crate::gateway::protocol::json::push_object;
use crate::gateway::protocol::{ServerEvent, SyncChange, sync_change};
use crate::gateway::rates::OpenSession;
use crate::ids::{LogIndex, Seq};
use crate::limits;
use crate::model::access::{ClassNumber, ClassRights, Right};
use crate::model::cursor::Cursor;
use crate::model::error::{Code, Error};
use crate::model::read::PageSize;
use crate::proto::Meta;
use crate::token::Claims;

const STREAM_PAGE: PageSize = PageSize { rows: 256, bytes: 256 << 10 };
/// Tells nginx, and what has learned it from nginx, to pass a stream on as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// A quiet stream says that it is alive.
const QUIET: Duration = Duration::from_secs(15);

/// `GET /sync/changes?cursor=&tables=&limit=`
pub(super) async fn feed(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    asked: QueryFields,
    headers: HeaderMap,
) -> RestResult {
    let class = caller.0.class.number();
    let asked =
        FeedRequest::of(&gateway, &caller.0, &asked, class, headers.get("last-event-id").and_then(|v| v.to_str().ok()))
            .await?;
    let streams = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("text/event-stream"));
    if streams {
        let opened = gateway.rates.of(&caller.0).open().or_fail(&gateway)?;
        return Ok(stream_from(gateway, caller.0, opened, asked.filter, asked.after));
    }
    asked.page(&gateway).await
}

/// A page of the feed for whoever has been let in.
pub(super) async fn page_after(gateway: &Gateway, asker: &Claims, asked: &QueryFields) -> RestResult {
    FeedRequest::of(gateway, asker, asked, ClassNumber::default(), None).await?.page(gateway).await
}

/// What a request wants of the feed.
struct FeedRequest {
    after: Seq,
    limit: usize,
    filter: ChangeFilter,
    source: Source,
    meta: Meta,
}

impl FeedRequest {
    async fn of(
        gateway: &Gateway,
        asker: &Claims,
        asked: &QueryFields,
        class: ClassNumber,
        resumed: Option<&str>,
    ) -> Result<Self, RestError> {
        let (limit, _) = asked.page().map_err(|bad| RestError::bad(gateway, Code::InvalidData, bad))?;
        let tables = asked.get("tables").map(|t| t.split(',').map(|t| t.trim().to_owned()).collect());
        let filter = ChangeFilter::of(tables, class);
        let source = Source::asked(gateway, asker, asked).await?;
        let after = match resumed.or(asked.get("cursor")) {
            Some(cursor) => gateway.parse_cursor(cursor).or_fail(gateway)?.seq,
            None => Seq(0),
        };
        let meta = gateway.cluster.replica().state().meta().clone();
        if after < meta.compacted() {
            return Err(RestError::new(gateway, gone()));
        }
        if !gateway.cluster.replica().state().access().is_whole_after(class, after) {
            let why = "this token's class may read more tables than when the cursor was given: begin again without it";
            return Err(RestError::new(gateway, Error::new(Code::BadCursor, why)));
        }
        Ok(Self { after, limit, filter, source, meta })
    }

    async fn page(self, gateway: &Gateway) -> RestResult {
        let Self { after, limit, filter, source, meta } = self;
        let size = PageSize { rows: limit, bytes: limits::SYNC_PAGE_BYTES };
        let page = whole_page(gateway, after, meta.head(), size, &filter).await.or_fail(gateway)?;
        let cursor = gateway.cursor(page.seq).to_string();
        Ok(answer(|o| {
            o.array("changes", &page.changes, |out, c| push_object(out, |o| sync_change(o, &SyncChange::from(&**c))));
            o.text("cursor", &cursor).flag("has_more", page.more);
            source.tell(o);
        }))
    }
}

fn gone() -> Error {
    Error::new(Code::BadCursor, "the changes after the cursor are gone: do a full sync")
}

/// A page that is empty only at the end: a filter may pass over many changes.
async fn whole_page(
    gateway: &Gateway,
    after: Seq,
    head: Seq,
    size: PageSize,
    filter: &ChangeFilter,
) -> Result<Page, Error> {
    let mut after = after;
    loop {
        let page = feed::page(gateway, after, head, size, filter).await?.ok_or_else(gone)?;
        if !page.changes.is_empty() || !page.more {
            return Ok(page);
        }
        after = page.seq;
    }
}

struct ChangeStream {
    gateway: Arc<Gateway>,
    claims: Claims,
    _opened: OpenSession,
    filter: ChangeFilter,
    /// What its client was told that its class may do; `None`: nothing was set, so everything.
    rights: Option<Arc<ClassRights>>,
    after: Seq,
    applied: watch::Receiver<LogIndex>,
}

fn stream_from(
    gateway: Arc<Gateway>,
    claims: Claims,
    opened: OpenSession,
    filter: ChangeFilter,
    after: Seq,
) -> Response {
    let applied = gateway.cluster.replica().watch_applied();
    let rights = gateway.cluster.replica().state().access().of(filter.class()).cloned();
    // Something at once: headers alone do not leave some proxies, which keep a stream back until they have a body.
    let mut hello = b": here\n\n".to_vec();
    if let Some(rights) = &rights {
        // A client may have been away when its rights were changed.
        push_rights(&mut hello, filter.class(), rights, &[], &[], gateway.now_ms());
    }
    let state = ChangeStream { gateway, claims, _opened: opened, filter, rights, after, applied };
    let chunks = stream::unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(chunk), state))
    });
    let hello = stream::once(async { Ok(Bytes::from(hello)) });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (X_ACCEL_BUFFERING, "no")];
    (headers, HttpBody::from_stream(hello.chain(chunks))).into_response()
}

impl ChangeStream {
    /// The next events as text; `None` ends the stream: the client comes again with the last id.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.applied.mark_unchanged();
            // A revocation is a command, so it wakes the stream; an expiry is seen when the stream is quiet.
            auth::still_good(&self.gateway, &self.claims).ok()?;
            if let Some(told) = self.tell_rights() {
                return Some(told);
            }
            let (head, epoch) = {
                let state = self.gateway.cluster.replica().state();
                // It lacks what its class was granted since: the client comes again and is told so.
                if !state.access().is_whole_after(self.filter.class(), self.after) {
                    return None;
                }
                (state.meta().head(), state.meta().epoch)
            };
            let page = whole_page(&self.gateway, self.after, head, STREAM_PAGE, &self.filter).await.ok()?;
            self.after = page.seq;
            if !page.changes.is_empty() {
                return Some(events(&page, epoch));
            }
            let quiet = self.quiet();
            tokio::select! {
                changed = self.applied.changed() => changed.ok()?,
                () = self.gateway.closing.cancelled() => return None,
                () = tokio::time::sleep(quiet) => return Some(Bytes::from_static(b": quiet\n\n")),
            }
        }
    }
}

impl ChangeStream {
    /// `access_changed`, if the rights of the stream's class were changed: it comes before anything that is read by the
    /// new ones, and has no id, so it moves no client's place.
    fn tell_rights(&mut self) -> Option<Bytes> {
        let class = self.filter.class();
        let (mut forget, mut resync) = (Vec::new(), Vec::new());
        let now = {
            let state = self.gateway.cluster.replica().state();
            let now = state.access().of(class).filter(|now| self.rights.as_ref() != Some(now))?.clone();
            let before = self.rights.as_deref();
            for table in state.tables().iter().filter(|table| !table.name.is_empty()) {
                let could = before.is_none_or(|rights| rights.right(&table.name) >= Right::Read);
                match (could, now.right(&table.name) >= Right::Read) {
                    (true, false) => forget.push(table.name.clone()),
                    (false, true) => resync.push(table.name.clone()),
                    _ => {}
                }
            }
            now
        };
        let mut out = Vec::new();
        push_rights(&mut out, class, &now, &forget, &resync, self.gateway.now_ms());
        self.rights = Some(now);
        Some(out.into())
    }

    /// How long it may be quiet: never past the token's end.
    fn quiet(&self) -> Duration {
        let left = self.claims.exp.saturating_mul(1_000).saturating_sub(self.gateway.now_ms());
        QUIET.min(Duration::from_millis(left))
    }
}

fn push_rights(
    out: &mut Vec<u8>,
    class: ClassNumber,
    rights: &ClassRights,
    forget: &[String],
    resync: &[String],
    at_ms: u64,
) {
    out.extend_from_slice(b"event: access_changed\ndata: ");
    push_object(out, |o| ServerEvent::AccessChanged { class, rights, forget, resync, at_ms }.fill(o));
    out.extend_from_slice(b"\n\n");
}

fn events(page: &Page, epoch: u64) -> Bytes {
    let mut out = Vec::new();
    for change in &page.changes {
        let cursor = Cursor::after(epoch, change);
        out.extend_from_slice(format!("id: {cursor}\nevent: data_update\ndata: ").as_bytes());
        let start = out.len();
        push_object(&mut out, |o| sync_change(o, &SyncChange::from(&**change)));
        // A client's JSON may be spread over lines; between tokens a space means the same.
        for byte in &mut out[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        out.extend_from_slice(b"\n\n");
    }
    Bytes::from(out)
}
