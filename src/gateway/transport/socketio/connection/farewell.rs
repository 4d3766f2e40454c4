//! The end of a connection: what is still sent, and how the client is made to see it.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use futures_util::SinkExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::{CurrentTransport, EngineConnection, is_final};
use crate::gateway::fanout::send_queue::{EncodedEvent, Encoding, QueuedFrame};
use crate::gateway::protocol::ServerEvent;
use crate::gateway::session::SessionEnd;
use crate::model::error::{Code, Error};

/// How long a goodbye may take, and how long a client may take to see it.
const FAREWELL: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_secs(2);

impl EngineConnection {
    /// Says why the server ends it, then ends the transport. Only what is final is a Socket.IO DISCONNECT: no client
    /// comes back by itself after one. An Engine.IO CLOSE, and for old Python clients a WebSocket close frame, are the
    /// same to some, so there is neither.
    pub(super) async fn farewell(mut self, ended: &SessionEnd) {
        let silent = Error::new(Code::Silent, "nothing was heard from you");
        let error = match ended {
            SessionEnd::Closed(error) => Some(error),
            SessionEnd::Silent => Some(&silent),
            SessionEnd::Gone => None,
        };
        // A node that shuts down waits for its sessions, so that all are told; else a session that has ended takes up no
        // room.
        let live = self.session.is_some();
        if error.is_none_or(|error| error.code != Code::Unavailable)
            && let Some(session) = self.session.take()
        {
            session.end(ended);
        }
        if let Some(error) = error
            && live
        {
            let at_ms = self.engine.gateway.now_ms();
            let event =
                ServerEvent::Error { error, event: None, field: None, conflict_id: None, request_id: None, at_ms };
            self.sending.push_back(QueuedFrame { frame: EncodedEvent::of(Encoding::SocketIo, &event), taken: None });
            let last = is_final(error).then_some("41");
            // A client that takes nothing is not waited for.
            let _ = timeout(FAREWELL, self.send_rest(last)).await;
        } else {
            self.answer_noop();
        }
        if let Some(session) = self.session.take() {
            session.end(ended);
        }
        self.engine.sockets.lock().remove(&self.sid);
        self.socket.gone.cancel();
        if let CurrentTransport::WebSocket(ws) = &mut self.wire {
            let bye = async {
                // The answer to the client's close frame, if there was one.
                let _ = ws.flush().await;
                let io = ws.get_mut();
                io.shutdown().await?;
                // Until the client closes too: closing first would throw away what it has not read yet.
                let mut rest = vec![0; 16 << 10];
                while io.read(&mut rest).await? > 0 {}
                Ok::<(), std::io::Error>(())
            };
            let _ = timeout(LINGER, bye).await;
        }
    }

    /// Sends what waits, and this packet after it.
    async fn send_rest(&mut self, last: Option<&'static str>) {
        if let CurrentTransport::WebSocket(ws) = &mut self.wire {
            let rest = self.sending.drain(..).filter_map(|out| match out.frame {
                EncodedEvent::SocketIo(text) => Some(text),
                EncodedEvent::WebSocket(_) => None,
            });
            for text in self.own.drain(..).chain(rest) {
                if ws.feed(Message::Text(text)).await.is_err() {
                    return;
                }
            }
            if let Some(last) = last {
                let _ = ws.feed(Message::text(last)).await;
            }
            let _ = ws.flush().await;
            return;
        }
        if let Some(last) = last {
            let frame = EncodedEvent::SocketIo(last.into());
            self.sending.push_back(QueuedFrame { frame, taken: None });
        }
        // One poll after the other takes some of it.
        poll_fn(|cx| {
            self.take_requests(cx);
            loop {
                if self.unsent.is_none() && self.own.is_empty() && self.sending.is_empty() {
                    return Poll::Ready(());
                }
                let had_poll = self.poll.is_some();
                if !had_poll || self.answer_rest().is_err() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// As [`Self::answer_poll`], without asking the session.
    fn answer_rest(&mut self) -> Result<(), ()> {
        if self.poll.is_none() {
            return Err(());
        }
        let payload = self.unsent.take().unwrap_or_else(|| self.next_payload().into_bytes());
        self.send_payload(payload);
        Ok(())
    }
}
