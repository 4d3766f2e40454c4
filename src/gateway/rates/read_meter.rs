//! What the answers of a request weigh, on the share of whoever asked: reading has a rate as sending has.

use std::sync::{Arc, OnceLock};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::TryStreamExt;

use crate::gateway::rates::RateShare;

/// Among the extensions of a request that reads: filled when its token was seen.
#[derive(Clone, Default)]
pub struct Reader(Arc<OnceLock<Arc<RateShare>>>);

impl Reader {
    pub fn is(&self, share: Arc<RateShare>) {
        let _ = self.0.set(share);
    }
}

/// Among the extensions of an answer: it is on nobody's share.
#[derive(Clone, Copy)]
pub(crate) struct NotMetered;

/// Counts the bytes of answers to `GET`, whole ones at once and streams as they are sent.
pub(crate) async fn count(mut request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    let reader = Reader::default();
    request.extensions_mut().insert(reader.clone());
    let response = next.run(request).await;
    let Some(share) = reader.0.get().cloned() else { return response };
    if response.extensions().get::<NotMetered>().is_some() {
        return response;
    }
    response.map(|body| match body.size_hint().exact() {
        Some(bytes) => {
            share.read(bytes);
            body
        }
        None => Body::from_stream(body.into_data_stream().inspect_ok(move |piece| share.read(piece.len() as u64))),
    })
}
