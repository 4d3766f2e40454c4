//! What goes out on a connection: in answers to polls, or on its WebSocket.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Sink;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::super::Eio;
use super::super::payload::Payload;
use super::{CurrentTransport, EngineConnection};
use crate::gateway::fanout::send_queue::{EncodedEvent, QueuedFrame};
use crate::gateway::session::SessionEnd;

/// Bytes in one answer to a poll, unless a single packet has more.
const POLL_BYTES: usize = 512 << 10;

impl EngineConnection {
    fn ping(&self) -> &'static str {
        match self.eio {
            Eio::V3 => "3",
            Eio::V4 => "2",
        }
    }

    /// Takes what waits for the client; an error ends the session.
    fn refill(&mut self) -> Result<(), SessionEnd> {
        let Some(session) = &self.session else { return Ok(()) };
        if !self.sending.is_empty() {
            return Ok(());
        }
        if self.sending.capacity() > 64 {
            self.sending = VecDeque::new();
        }
        session.send_queue.take(&mut self.sending).map_err(SessionEnd::Closed)
    }

    /// Why the session ends, if it does, does not wait for a client that takes nothing for now.
    fn closed(&self) -> Result<(), SessionEnd> {
        let why = self.session.as_ref().and_then(|session| session.send_queue.end());
        why.map_or(Ok(()), |why| Err(SessionEnd::Closed(why)))
    }

    pub(super) fn write(&mut self, cx: &mut Context<'_>) -> Result<(), SessionEnd> {
        match self.wire {
            CurrentTransport::Polling => self.answer_poll(),
            CurrentTransport::WebSocket(_) => self.feed(cx),
        }
    }

    fn answer_poll(&mut self) -> Result<(), SessionEnd> {
        self.refill()?;
        // A poll whose client has gone away takes nothing.
        if self.poll.as_ref().is_some_and(oneshot::Sender::is_closed) {
            self.poll = None;
            self.no_poll = Instant::now();
        }
        if self.poll.is_none() {
            return self.closed();
        }
        let payload = match self.unsent.take() {
            Some(unsent) => unsent,
            None => {
                let payload = self.next_payload();
                if payload.is_empty() && self.upgrade.is_some() {
                    self.answer_noop();
                }
                if payload.is_empty() {
                    return Ok(());
                }
                payload.into_bytes()
            }
        };
        self.send_payload(payload);
        Ok(())
    }

    /// What a poll was answered is kept until the next one: it may not have arrived.
    pub(super) fn send_payload(&mut self, payload: Bytes) {
        let Some(poll) = self.poll.take() else {
            self.unsent = Some(payload);
            return;
        };
        self.answered = self.stamp.is_some().then(|| (self.stamp.take(), payload.clone()));
        self.unsent = poll.send(payload).err();
        self.no_poll = Instant::now();
    }

    /// As much of what waits as fits into one answer.
    pub(super) fn next_payload(&mut self) -> Payload {
        let mut payload = Payload::default();
        if std::mem::take(&mut self.ping_due) {
            self.pings_open += u32::from(self.eio == Eio::V4);
            payload.push(self.eio, self.ping());
        }
        while payload.packets < self.poll_packets {
            if let Some(own) = self.own.pop_front() {
                payload.push(self.eio, &own);
                continue;
            }
            let Some(next) = self.sending.front() else { break };
            if !payload.is_empty() && payload.len() + next.frame.size() > POLL_BYTES {
                break;
            }
            let Some(QueuedFrame { frame, taken }) = self.sending.pop_front() else { break };
            payload.push(self.eio, frame.text());
            if let Some(taken) = taken {
                // Nobody waits for it any more if its job has ended.
                let _ = taken.send(());
            }
        }
        payload
    }

    /// Feeds what waits to the WebSocket, then flushes once.
    fn feed(&mut self, cx: &mut Context<'_>) -> Result<(), SessionEnd> {
        loop {
            self.refill()?;
            if !self.ping_due && self.own.is_empty() && self.sending.is_empty() {
                break;
            }
            let ping = self.ping();
            let CurrentTransport::WebSocket(ws) = &mut self.wire else { return Ok(()) };
            match Pin::new(&mut **ws).poll_ready(cx) {
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return self.closed();
                }
                Poll::Ready(Err(_)) => return Err(SessionEnd::Gone),
                Poll::Ready(Ok(())) => {}
            }
            let (text, taken) = if std::mem::take(&mut self.ping_due) {
                self.pings_open += u32::from(self.eio == Eio::V4);
                (ping.into(), None)
            } else if let Some(own) = self.own.pop_front() {
                (own, None)
            } else {
                let Some(QueuedFrame { frame: EncodedEvent::SocketIo(text), taken }) = self.sending.pop_front() else {
                    continue;
                };
                (text, taken)
            };
            Pin::new(&mut **ws).start_send(Message::Text(text)).map_err(|_| SessionEnd::Gone)?;
            self.dirty = true;
            if let Some(taken) = taken {
                let _ = taken.send(());
            }
        }
        if self.dirty {
            let CurrentTransport::WebSocket(ws) = &mut self.wire else { return Ok(()) };
            match Pin::new(&mut **ws).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.dirty = false;
                    self.blocked_since = None;
                }
                Poll::Ready(Err(_)) => return Err(SessionEnd::Gone),
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                }
            }
        }
        Ok(())
    }
}
