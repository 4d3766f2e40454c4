//! All that the cluster keeps, as one file to be taken away, for `tillsync backup`. Admins only.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{OFFSET_MAX, OrFail, QueryFields, RestError, RestResult, Source};
use crate::consensus::segment::SegmentReader;
use crate::gateway::Gateway;
use crate::gateway::auth::Operator;
use crate::gateway::rates::read_meter::NotMetered;
use crate::ids::LogIndex;
use crate::limits;
use crate::model::error::{Code, Error};
use crate::storage::SnapshotReader;

/// The turn to take a backup away: a node gives one at a time.
#[derive(Debug)]
pub struct BackupTurn(Arc<Semaphore>);

impl Default for BackupTurn {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl BackupTurn {
    fn take(&self) -> Result<OwnedSemaphorePermit, Error> {
        let busy = |_| Error::new(Code::Unavailable, "another backup is being taken from this node");
        self.0.clone().try_acquire_owned().map_err(busy)
    }
}

/// `GET /system/backup`
pub(super) async fn take(State(gateway): State<Arc<Gateway>>, operator: Operator, asked: QueryFields) -> RestResult {
    let turn = gateway.backup_turn.take().or_fail(&gateway)?;
    // What was acknowledged before the request is in it.
    Source::asked(&gateway, &operator.0, &asked).await?;
    let reader = gateway.cluster.backup().await.or_fail(&gateway)?;
    let length = HeaderValue::from(reader.bytes());
    let mut response = sent(gateway, BackupReader::Whole(reader), turn);
    response.headers_mut().insert(CONTENT_LENGTH, length);
    Ok(response)
}

/// `GET /system/backup/entries`
pub(super) async fn take_entries(
    State(gateway): State<Arc<Gateway>>,
    operator: Operator,
    asked: QueryFields,
) -> RestResult {
    let after = asked.number("after", 0, 0, OFFSET_MAX);
    let after = after.map_err(|bad| RestError::bad(&gateway, Code::InvalidData, bad))?;
    let turn = gateway.backup_turn.take().or_fail(&gateway)?;
    Source::asked(&gateway, &operator.0, &asked).await?;
    let reader = gateway.cluster.backup_after(LogIndex(after)).await.or_fail(&gateway)?;
    Ok(sent(gateway, BackupReader::After(Box::new(reader)), turn))
}

/// What is being taken away.
enum BackupReader {
    Whole(SnapshotReader),
    After(Box<SegmentReader>),
}

impl BackupReader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Whole(reader) => reader.next().await,
            Self::After(reader) => reader.next().await,
        }
    }
}

fn sent(gateway: Arc<Gateway>, reader: BackupReader, turn: OwnedSemaphorePermit) -> Response {
    let mut response = Body::from_stream(pieces(gateway, reader, turn)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // An operator's copy of everything is no reading that keeps others from theirs.
    response.extensions_mut().insert(NotMetered);
    response
}

/// Each piece is read when the client has taken the one before. One that takes too long loses its turn, and so does one
/// whose node stops.
fn pieces(
    gateway: Arc<Gateway>,
    reader: BackupReader,
    turn: OwnedSemaphorePermit,
) -> impl stream::Stream<Item = io::Result<Bytes>> {
    let until = Instant::now() + limits::BACKUP_TAKEN;
    let turn = AbortOnDropHandle::new(tokio::spawn(async move {
        let _turn = turn;
        sleep(limits::BACKUP_TAKEN).await;
    }));
    stream::try_unfold((gateway, reader, turn), move |(gateway, mut reader, turn)| async move {
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let piece = tokio::select! {
            biased;
            () = gateway.closing.cancelled() => return Err(io::Error::other("the node is shutting down")),
            piece = reader.next() => piece?,
        };
        Ok(piece.map(|piece| (piece, (gateway, reader, turn))))
    })
}
