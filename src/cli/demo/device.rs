//! A device of the demo: pushes its share of the lines, one after the other, and hears everyone's.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::watch;

use super::TABLE;
use crate::cli::load::csv_file::CsvLine;
use crate::cli::{CliResult, CommandError};
use crate::client::frame::{DataUpdateFrame, DeviceOnlineFrame, ReceivedEvent, json};
use crate::client::link::{ClientLink, ClientTransport};
use crate::client::{ClientError, NodeUrl};
use crate::token::Class;

/// Between a device's lines: a busy till, not a benchmark.
const PACE: Duration = Duration::from_millis(25);
/// How long a device looks for a node.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far the devices are, together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DemoProgress {
    pub acked: usize,
    /// Devices that have all acknowledgements and all changes.
    pub complete: usize,
    /// Set when everything was received: the devices end.
    pub over: bool,
}

/// What a device saw.
#[derive(Clone, Debug)]
pub(super) struct DeviceJournal {
    pub device: &'static str,
    pub transport: ClientTransport,
    pub acked: Vec<AckedLine>,
    /// The changes in the order in which they came: `seq` and record.
    pub received: Vec<(u64, i64)>,
    pub reconnects: usize,
}

/// A line that the device was told is committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct AckedLine {
    pub record_id: i64,
    pub seq: u64,
    pub at: Instant,
}

pub(super) struct DemoDevice {
    class: Class,
    nodes: Vec<NodeUrl>,
    /// The node it is connected to, or the next to try.
    turn: usize,
    token: String,
    link: Option<ClientLink>,
    /// Where the last change that it received stands.
    cursor: Option<String>,
    journal: DeviceJournal,
}

impl DemoDevice {
    pub(super) fn new(
        name: &'static str,
        class: Class,
        transport: ClientTransport,
        nodes: Vec<NodeUrl>,
        turn: usize,
        token: String,
    ) -> Self {
        let journal = DeviceJournal { device: name, transport, acked: Vec::new(), received: Vec::new(), reconnects: 0 };
        Self { class, nodes, turn, token, link: None, cursor: None, journal }
    }

    /// Connects and registers; a resuming device says how far it has come.
    pub(super) async fn come_online(&mut self) -> Result<(), ClientError> {
        let node = &self.nodes[self.turn % self.nodes.len()];
        let mut link = ClientLink::connect(self.journal.transport, node, &self.token).await?;
        let online = DeviceOnlineFrame {
            device_id: self.journal.device,
            priority: Some(self.class.priority()),
            cursor: self.cursor.as_deref(),
            ..DeviceOnlineFrame::default()
        };
        link.send("device_online", &json(&online)).await?;
        // What comes before the answer belongs to the journal, too.
        loop {
            let event = link.next().await?;
            if event.name == "device_online_ack" {
                if self.cursor.is_none() {
                    self.cursor = event.text("cursor").map(str::to_owned);
                }
                break;
            }
            if let Some((code, message)) = event.error() {
                return Err(ClientError::Refused { node: node.clone(), code, message });
            }
            note_change(&mut self.journal, &mut self.cursor, &event);
        }
        self.link = Some(link);
        Ok(())
    }

    /// Pushes the lines, and receives until it is told that all is over.
    pub(super) async fn run(
        mut self,
        lines: Vec<CsvLine>,
        total: usize,
        progress: watch::Sender<DemoProgress>,
    ) -> CliResult<DeviceJournal> {
        let mut over = progress.subscribe();
        let (mut next, mut waiting, mut complete) = (0, false, false);
        let mut due = tokio::time::Instant::now();
        loop {
            let received_all = self.journal.received.len() >= total && self.journal.acked.len() == lines.len();
            if received_all && !complete {
                complete = true;
                progress.send_modify(|p| p.complete += 1);
            }
            let Some(link) = &mut self.link else {
                self.reconnect().await?;
                // Not acknowledged: again, with the same request id.
                waiting = false;
                due = tokio::time::Instant::now();
                continue;
            };
            tokio::select! {
                () = is_over(&mut over) => break,
                () = tokio::time::sleep_until(due), if !waiting && next < lines.len() => {
                    waiting = true;
                    if let Err(e) = push(link, self.journal.device, &lines[next]).await {
                        self.lose(&e)?;
                    }
                }
                event = link.next() => match event {
                    Ok(event) => match self.take(&event, lines.get(next))? {
                        UpdateReply::Ack => {
                            next += 1;
                            waiting = false;
                            due = tokio::time::Instant::now() + PACE;
                            progress.send_modify(|p| p.acked += 1);
                        }
                        UpdateReply::TryAgain => {
                            waiting = false;
                            due = tokio::time::Instant::now() + PACE;
                        }
                        UpdateReply::Other => {}
                    },
                    Err(e) => self.lose(&e)?,
                },
            }
        }
        if let Some(link) = self.link.take() {
            link.close().await;
        }
        Ok(self.journal)
    }

    fn take(&mut self, event: &ReceivedEvent, line: Option<&CsvLine>) -> CliResult<UpdateReply> {
        if let Some((code, message)) = event.error() {
            if code.is_some_and(crate::client::is_passing) {
                return Ok(UpdateReply::TryAgain);
            }
            return Err(CommandError::new(format!("{}: the server said {message}", self.journal.device)));
        }
        if event.name == "acknowledged" {
            let Some(line) = line else { return Ok(UpdateReply::Other) };
            if event.text("request_id") != Some(request_id(line).as_str()) {
                return Ok(UpdateReply::Other);
            }
            let seq = event.number("seq").ok_or_else(|| CommandError::new("an acknowledgement without a seq"))?;
            self.journal.acked.push(AckedLine { record_id: line.record_id, seq, at: Instant::now() });
            return Ok(UpdateReply::Ack);
        }
        note_change(&mut self.journal, &mut self.cursor, event);
        Ok(UpdateReply::Other)
    }

    fn lose(&mut self, error: &ClientError) -> CliResult {
        self.link = None;
        self.turn += 1;
        self.journal.reconnects += 1;
        if error.is_passing() { Ok(()) } else { Err(CommandError::new(format!("{}: {error}", self.journal.device))) }
    }

    async fn reconnect(&mut self) -> CliResult {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.come_online().await {
                Ok(()) => return Ok(()),
                Err(e) if !e.is_passing() || Instant::now() >= end => {
                    return Err(CommandError::new(format!("{}: {e}", self.journal.device)));
                }
                Err(_) => self.turn += 1,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

enum UpdateReply {
    Ack,
    TryAgain,
    Other,
}

async fn is_over(progress: &mut watch::Receiver<DemoProgress>) {
    let _ = progress.wait_for(|p| p.over).await;
}

fn note_change(journal: &mut DeviceJournal, cursor: &mut Option<String>, event: &ReceivedEvent) {
    if event.name != "data_update" {
        return;
    }
    if let Some(text) = event.text("cursor") {
        *cursor = Some(text.to_owned());
    }
    if event.text("table_name") == Some(TABLE)
        && let (Some(seq), Some(record)) = (event.number("seq"), event.data["record_id"].as_i64())
    {
        journal.received.push((seq, record));
    }
}

async fn push(link: &mut ClientLink, device: &str, line: &CsvLine) -> Result<(), ClientError> {
    let new_data: &RawValue = serde_json::from_str(&line.data)
        .map_err(|e| ClientError::Strange { node: link.node().clone(), why: e.to_string() })?;
    let update = DataUpdateFrame {
        device_id: device,
        table_name: TABLE,
        record_id: line.record_id,
        operation: "insert",
        request_id: &request_id(line),
        new_data,
        bulk: false,
    };
    link.send("data_update", &json(&update)).await
}

fn request_id(line: &CsvLine) -> String {
    format!("demo-{}", line.record_id)
}
