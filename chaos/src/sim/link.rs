//! One connection of a simulated device: the real session of the gateway, without a socket in between.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tillsync::gateway::Gateway;
use tillsync::gateway::auth;
use tillsync::gateway::fanout::send_queue::{EncodedEvent, Encoding, QueuedFrame};
use tillsync::gateway::protocol::envelope;
use tillsync::gateway::session::{Session, SessionEnd};
use tillsync::limits;
use tillsync::token::{Claims, Class};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::clients::{Connection, ConnectionLost, ReceivedEvent};

pub(crate) struct SimLink {
    session: Option<Session>,
    /// When the session is due to look at the time, and how often.
    tick: (Instant, Duration),
    arrived: VecDeque<ReceivedEvent>,
    /// The node is down.
    dead: CancellationToken,
}

impl SimLink {
    /// `None` if the node refuses.
    pub(crate) fn open(gateway: &Arc<Gateway>, device: &str, dead: CancellationToken) -> Option<Self> {
        let (_, claims) =
            gateway.keys.issue(device, Class::Manager, gateway.cluster.clock().now_ms(), limits::TOKEN_SECONDS).ok()?;
        Self::of(gateway, claims, dead)
    }

    /// The same with a token.
    pub(crate) fn open_with(gateway: &Arc<Gateway>, token: &str, dead: CancellationToken) -> Option<Self> {
        let claims = auth::check(gateway, Some(token)).ok()?;
        Self::of(gateway, claims, dead)
    }

    fn of(gateway: &Arc<Gateway>, claims: Claims, dead: CancellationToken) -> Option<Self> {
        let session = Session::open(gateway.clone(), claims, Encoding::WebSocket).ok()?;
        let tick = session.ticks();
        Some(Self { session: Some(session), tick, arrived: VecDeque::new(), dead })
    }

    pub(crate) fn send(&mut self, event: &str, data: &Value) {
        let Some(session) = &mut self.session else { return };
        let text = serde_json::json!({ "event": event, "data": data }).to_string();
        let frame = Bytes::from(text);
        let Ok(text) = std::str::from_utf8(&frame) else { return };
        session.heard_awake();
        match envelope(text) {
            Ok((event, data)) => session.on_message(&event, data, &frame, None),
            Err(bad) => session.on_bad_frame(&bad),
        }
    }

    /// The next event; `None` if none comes in time.
    pub(crate) async fn next(&mut self, within: Duration) -> Result<Option<ReceivedEvent>, ConnectionLost> {
        if let Some(event) = self.arrived.pop_front() {
            return Ok(Some(event));
        }
        let dead = self.dead.clone();
        let arrives = async {
            loop {
                let due = self.tick.0;
                tokio::select! {
                    biased;
                    () = dead.cancelled() => return Err(ConnectionLost),
                    done = self.arrive() => return done,
                    () = sleep_until(due) => self.tick()?,
                }
            }
        };
        match timeout(within, arrives).await {
            Err(_) => Ok(None),
            Ok(Err(gone)) => {
                self.close();
                Err(gone)
            }
            Ok(Ok(())) => Ok(self.arrived.pop_front()),
        }
    }

    /// The time goes on for the session; a ping is answered at once.
    fn tick(&mut self) -> Result<(), ConnectionLost> {
        self.tick.0 = Instant::now() + self.tick.1;
        let Some(session) = &mut self.session else { return Err(ConnectionLost) };
        match session.tick() {
            Ok(pings) => {
                if pings {
                    session.heard_awake();
                }
                Ok(())
            }
            Err(_) => Err(ConnectionLost),
        }
    }

    /// Until something has arrived.
    async fn arrive(&mut self) -> Result<(), ConnectionLost> {
        let Self { session, arrived, .. } = self;
        let Some(session) = session else { return Err(ConnectionLost) };
        let mut frames = VecDeque::new();
        poll_fn(|cx| {
            session.send_queue.register(cx.waker());
            session.poll(cx);
            match session.send_queue.take(&mut frames) {
                Err(_) => Poll::Ready(Err(ConnectionLost)),
                Ok(()) if frames.is_empty() => Poll::Pending,
                Ok(()) => Poll::Ready(Ok(())),
            }
        })
        .await?;
        for QueuedFrame { frame, taken } in frames {
            if let EncodedEvent::WebSocket(text) = frame
                && let Ok(Value::Object(mut fields)) = serde_json::from_str(&text)
            {
                let name = fields.get("event").and_then(Value::as_str).unwrap_or_default().to_owned();
                let data = fields.remove("data").unwrap_or_default();
                arrived.push_back(ReceivedEvent { name, data });
            }
            if let Some(taken) = taken {
                // Whoever waited may have ended.
                let _ = taken.send(());
            }
        }
        Ok(())
    }

    pub(crate) fn close(&mut self) {
        if let Some(session) = self.session.take() {
            session.end(&SessionEnd::Gone);
        }
    }
}

impl Connection for SimLink {
    async fn send(&mut self, event: &str, data: &Value) -> Result<(), ConnectionLost> {
        Self::send(self, event, data);
        Ok(())
    }

    async fn next(&mut self, within: Duration) -> Result<Option<ReceivedEvent>, ConnectionLost> {
        Self::next(self, within).await
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.close();
    }
}
