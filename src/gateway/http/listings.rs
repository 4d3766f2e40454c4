//! Large answers take turns: one of a token at a time, and whole listings one at a time on the node. Whoever asks for
//! many at once and takes them slowly holds the memory of one.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::gateway::protocol::json::{self, Object};
use crate::limits;
use crate::model::error::{Code, Error};

/// An answer up to this size is sent as it is: the turn ends when it is made.
const SMALL: usize = 64 << 10;

/// The turns of one token, and how many have or wait for one.
struct ListingQueue {
    turn: Arc<Semaphore>,
    places: usize,
}

type ListingQueues = Arc<Mutex<HashMap<String, ListingQueue>>>;

pub struct Listings {
    of_token: ListingQueues,
    whole: Arc<Semaphore>,
}

impl Default for Listings {
    fn default() -> Self {
        Self { of_token: ListingQueues::default(), whole: Arc::new(Semaphore::new(1)) }
    }
}

impl Listings {
    /// The turn of this token (its subject): 5003 if it does not come in time, or too many wait for it.
    pub async fn turn(&self, token: &str) -> Result<ListingTurn, Error> {
        let until = Instant::now() + limits::LISTING_WAIT;
        let (place, turn) = self.place(token)?;
        let permit = in_time(until, turn).await?;
        Ok(ListingTurn { permits: vec![permit], _place: place })
    }

    /// The same, for what only one on this node may have at a time.
    pub async fn whole(&self, token: &str) -> Result<ListingTurn, Error> {
        let until = Instant::now() + limits::LISTING_WAIT;
        let mut turn = self.turn(token).await?;
        turn.permits.push(in_time(until, self.whole.clone()).await?);
        Ok(turn)
    }

    fn place(&self, token: &str) -> Result<(WaitingListing, Arc<Semaphore>), Error> {
        let mut queues = self.of_token.lock();
        let queue = queues
            .entry(token.to_owned())
            .or_insert_with(|| ListingQueue { turn: Arc::new(Semaphore::new(1)), places: 0 });
        if queue.places > limits::LISTINGS_WAITING {
            return Err(busy());
        }
        queue.places += 1;
        Ok((WaitingListing { queues: self.of_token.clone(), token: token.to_owned() }, queue.turn.clone()))
    }
}

async fn in_time(until: Instant, turn: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    match timeout_at(until, turn.acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

fn busy() -> Error {
    Error::new(Code::Unavailable, "too many large listings are asked for at once: take one after the other, or pages")
}

/// A place in a token's queue: whoever waits, and whoever has the turn.
struct WaitingListing {
    queues: ListingQueues,
    token: String,
}

impl Drop for WaitingListing {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get_mut(&self.token) {
            queue.places -= 1;
            if queue.places == 0 {
                queues.remove(&self.token);
            }
        }
    }
}

/// The turn to make and send a large answer. It ends when that is sent or given up, or has taken too long.
pub struct ListingTurn {
    permits: Vec<OwnedSemaphorePermit>,
    _place: WaitingListing,
}

impl ListingTurn {
    /// A JSON object with what `fill` writes.
    pub fn answer(self, fill: impl FnOnce(&mut Object<'_>)) -> Response {
        let body = Bytes::from(json::object(fill));
        if body.len() <= SMALL {
            return of_json(Body::from(body));
        }
        let (length, mut at) = (body.len(), 0);
        let mut response = self.pieces(std::iter::from_fn(move || {
            let piece = body.slice(at..body.len().min(at + SMALL));
            at += piece.len();
            (!piece.is_empty()).then_some(piece)
        }));
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        response
    }

    /// JSON in pieces, each made when the client has taken the one before.
    pub fn pieces<P: Into<Bytes> + 'static>(self, pieces: impl Iterator<Item = P> + Send + 'static) -> Response {
        let until = Instant::now() + limits::LISTING_TIME;
        // A client that takes a byte now and then keeps nobody else from a turn.
        let turn = AbortOnDropHandle::new(tokio::spawn(async move {
            let _turn = self;
            sleep(limits::LISTING_TIME).await;
        }));
        let body = stream::unfold((pieces, turn), move |(mut pieces, turn)| async move {
            if Instant::now() >= until {
                return Some((Err(io::Error::from(io::ErrorKind::TimedOut)), (pieces, turn)));
            }
            let piece = pieces.next()?;
            Some((Ok(piece.into()), (pieces, turn)))
        });
        of_json(Body::from_stream(body))
    }
}

fn of_json(body: Body) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_has_one_turn_at_a_time_and_only_so_many_wait() {
        let listings = Arc::new(Listings::default());
        let first = listings.turn("a").await.unwrap();
        // Another token is not kept waiting.
        drop(listings.turn("b").await.unwrap());
        let waiting: Vec<_> = (0..limits::LISTINGS_WAITING)
            .map(|_| {
                let listings = listings.clone();
                tokio::spawn(async move { listings.turn("a").await.map(drop) })
            })
            .collect();
        while listings.of_token.lock()["a"].places <= limits::LISTINGS_WAITING {
            tokio::task::yield_now().await;
        }
        assert_eq!(listings.turn("a").await.err().unwrap().code, Code::Unavailable);
        drop(first);
        for waits in waiting {
            waits.await.unwrap().unwrap();
        }
        assert!(listings.of_token.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whole_listings_take_turns_over_all_tokens_and_a_slow_reader_loses_its_turn() {
        let listings = Listings::default();
        let held = listings.whole("a").await.unwrap().pieces(std::iter::repeat_n(b"x".to_vec(), 2));
        let error = listings.whole("b").await.err().unwrap();
        assert_eq!((error.code, error.retry_after_ms.is_some()), (Code::Unavailable, true));
        // A page of its own is another matter.
        drop(listings.turn("b").await.unwrap());
        sleep(limits::LISTING_TIME).await;
        drop(listings.whole("b").await.unwrap());
        assert!(axum::body::to_bytes(held.into_body(), usize::MAX).await.is_err(), "it is cut off");
        let again = listings.whole("a").await.unwrap().pieces(std::iter::repeat_n(b"x".to_vec(), 2));
        assert_eq!(axum::body::to_bytes(again.into_body(), usize::MAX).await.unwrap(), "xx");
        drop(listings.whole("b").await.unwrap());
    }
}
