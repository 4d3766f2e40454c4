//! Sends lines over `/ws`, many at a time, until each is acknowledged: across the loss of the node it talks to.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

use crate::cli::{CliResult, CommandError};
use crate::client::frame::{DataUpdateFrame, DeviceOnlineFrame, ReceivedEvent, json, ws_frame};
use crate::client::link::event_of;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget, is_passing};
use crate::limits;

/// Lines that are sent and not acknowledged: as many as a session may have in flight.
const WINDOW: usize = limits::SESSION_INFLIGHT;
/// How long to look for a node that answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// A line to send.
#[derive(Debug)]
pub(super) struct OutgoingLine {
    /// Where it stands in the file.
    pub number: u64,
    pub record_id: i64,
    pub operation: &'static str,
    pub data: String,
}

struct Pending {
    number: u64,
    request_id: String,
    frame: String,
}

pub(super) struct Sender<'a> {
    target: &'a ClusterTarget,
    device: &'a str,
    table: &'a str,
    bar: &'a ProgressBar,
    socket: Option<WsSocket>,
    /// The node to try next.
    turn: usize,
    /// Sent on the present socket or to be sent again on the next one, in the order of the file.
    pending: VecDeque<Pending>,
    /// Since when no node answers, and whether that was told.
    alone_since: Option<Instant>,
    told: bool,
}

impl<'a> Sender<'a> {
    pub(super) fn new(target: &'a ClusterTarget, device: &'a str, table: &'a str, bar: &'a ProgressBar) -> Self {
        let pending = VecDeque::with_capacity(WINDOW);
        Self { target, device, table, bar, socket: None, turn: 0, pending, alone_since: None, told: false }
    }

    /// Sends a line, waiting while the window is full.
    pub(super) async fn push(&mut self, line: OutgoingLine) -> CliResult {
        while self.pending.len() >= WINDOW {
            self.take_acks().await?;
        }
        let pending = self.prepare(&line)?;
        let frame = pending.frame.clone();
        self.pending.push_back(pending);
        if let Some(socket) = &mut self.socket
            && let Err(e) = socket.feed(frame).await
        {
            self.lose(e)?;
        }
        Ok(())
    }

    /// Waits until everything is acknowledged.
    pub(super) async fn finish(mut self) -> CliResult {
        while !self.pending.is_empty() {
            self.take_acks().await?;
        }
        if let Some(mut socket) = self.socket.take() {
            let data = serde_json::json!({"device_id": self.device, "reason": "load finished"}).to_string();
            // A courtesy: without it the device counts as online for the grace.
            let _ = socket.send(ws_frame("device_offline", &data)).await;
            socket.close().await;
        }
        Ok(())
    }

    fn prepare(&self, line: &OutgoingLine) -> CliResult<Pending> {
        let request_id = request_id(self.table, line.record_id, &line.data);
        let wrong = |e: serde_json::Error| CommandError::new(format!("line {} does not make JSON: {e}", line.number));
        let new_data: &RawValue = serde_json::from_str(&line.data).map_err(wrong)?;
        let data = json(&DataUpdateFrame {
            device_id: self.device,
            table_name: self.table,
            record_id: line.record_id,
            operation: line.operation,
            request_id: &request_id,
            new_data,
            bulk: true,
        });
        Ok(Pending { number: line.number, frame: ws_frame("data_update", &data), request_id })
    }

    /// Connects if need be, then waits for one answer and takes all that came with it.
    async fn take_acks(&mut self) -> CliResult {
        let Some(mut socket) = self.socket.take() else { return self.connect().await };
        match self.read(&mut socket).await {
            Ok(()) => self.socket = Some(socket),
            Err(Stop::Client(e)) => self.lose(e)?,
            Err(Stop::Failure(failure)) => return Err(failure),
        }
        Ok(())
    }

    async fn read(&mut self, socket: &mut WsSocket) -> Result<(), Stop> {
        socket.flush().await?;
        let before = self.pending.len();
        let mut text = Some(socket.next().await?);
        while let Some(frame) = text {
            if let Some(event) = event_of(&frame) {
                self.take(socket, &event)?;
            }
            text = socket.try_next()?;
        }
        if self.pending.len() < before {
            self.alone_since = None;
            self.told = false;
        }
        Ok(())
    }

    fn take(&mut self, socket: &WsSocket, event: &ReceivedEvent) -> Result<(), Stop> {
        let request_id = event.text("request_id");
        let place = request_id.and_then(|id| self.pending.iter().position(|p| p.request_id == id));
        if event.name == "acknowledged" {
            if let Some(place) = place {
                self.pending.remove(place);
                self.bar.inc(1);
            }
            return Ok(());
        }
        let Some((code, message)) = event.error() else { return Ok(()) };
        let node = socket.node.clone();
        if code.is_some_and(is_passing) {
            // Between leaders, or too much at once: again, in order, with the same request ids.
            return Err(ClientError::Refused { node, code, message }.into());
        }
        let line = place.and_then(|p| self.pending.get(p)).map(|p| format!("line {}: ", p.number));
        let code = code.map(|c| format!("{c}: ")).unwrap_or_default();
        Err(CommandError::new(format!("{}{node} refused it: {code}{message}", line.unwrap_or_default())).into())
    }

    /// The connection is of no use any more: the next node is next.
    fn lose(&mut self, error: ClientError) -> CliResult {
        self.socket = None;
        self.turn += 1;
        if !error.is_passing() {
            return Err(error.into());
        }
        if self.alone_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            let why = format!("no node has taken a line for {} s; the last said: {error}", PATIENCE.as_secs());
            return Err(CommandError::new(why));
        }
        self.bar.set_message(error.to_string());
        // Without a terminal there is no bar to say so.
        if self.bar.is_hidden() && !std::mem::replace(&mut self.told, true) {
            note!("waiting for the cluster, {} s at most: {error}", PATIENCE.as_secs());
        }
        Ok(())
    }

    /// One try: connect, come online, send again what is not acknowledged.
    async fn connect(&mut self) -> CliResult {
        let nodes = &self.target.nodes;
        if self.alone_since.is_some() && self.turn > 0 && self.turn.is_multiple_of(nodes.len()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        match self.open().await {
            Ok(socket) => {
                self.bar.set_message("");
                self.socket = Some(socket);
                Ok(())
            }
            Err(e) => self.lose(e),
        }
    }

    async fn open(&self) -> Result<WsSocket, ClientError> {
        let node = &self.target.nodes[self.turn % self.target.nodes.len()];
        let mut socket = WsSocket::connect(node, &self.target.token).await?;
        socket.send(ws_frame("device_online", &json(&DeviceOnlineFrame::tool(self.device)))).await?;
        loop {
            let text = socket.next().await?;
            let Some(event) = event_of(&text) else { continue };
            if event.name == "device_online_ack" {
                break;
            }
            if let Some((code, message)) = event.error() {
                return Err(ClientError::Refused { node: node.clone(), code, message });
            }
        }
        for pending in &self.pending {
            socket.feed(pending.frame.clone()).await?;
        }
        socket.flush().await?;
        Ok(socket)
    }
}

/// Why reading ended: the connection is lost, or the whole load is.
enum Stop {
    Client(ClientError),
    Failure(CommandError),
}

impl From<ClientError> for Stop {
    fn from(e: ClientError) -> Self {
        Self::Client(e)
    }
}

impl From<CommandError> for Stop {
    fn from(e: CommandError) -> Self {
        Self::Failure(e)
    }
}

/// The same for the same line of the same table, in every run: a line that was committed but not acknowledged
/// before a crash is recognised.
fn request_id(table: &str, record_id: i64, data: &str) -> String {
    format!("load-{:032x}", xxh3_128(format!("{table}\0{record_id}\0{data}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_request_id_and_it_fits() {
        let id = request_id("t", 1, "{}");
        assert_eq!(id, request_id("t", 1, "{}"));
        assert!(id.len() <= limits::REQUEST_ID);
        assert_ne!(id, request_id("t", 1, "{ }"));
        assert_ne!(id, request_id("t1", 1, "{}"));
    }
}
