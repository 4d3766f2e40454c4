//! `tillsync watch`: the cluster's events in the terminal, as any session gets them.

use std::io::Write;
use std::time::Duration;

use super::{CliResult, CommandError};
use crate::cli::target::TargetArgs;
use crate::client::frame::ReceivedEvent;
use crate::client::link::event_of;
use crate::client::rest::RestClient;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget};
use crate::clock::{Clock, SystemClock};
use crate::model::time::iso;
use crate::model::visible::escaped;

#[derive(clap::Args, Debug)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Show only changes of these tables (and all other events)
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    tables: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

struct EventWatch {
    args: WatchArgs,
    target: ClusterTarget,
    rest: RestClient,
    /// Where the last change that was shown stands; `None` before the first.
    last: Option<(u64, String)>,
}

pub(super) async fn execute(args: WatchArgs) -> CliResult {
    let target = args.target.resolve()?;
    let rest = RestClient::new(&target.token)?;
    let mut watch = EventWatch { args, target, rest, last: None };
    tokio::select! {
        signal = super::stop_signal() => signal,
        result = watch.run() => result,
    }
}

impl EventWatch {
    async fn run(&mut self) -> CliResult {
        let mut turn = 0;
        loop {
            let node = self.target.nodes[turn % self.target.nodes.len()].clone();
            turn += 1;
            let error = match WsSocket::connect(&node, &self.target.token).await {
                Ok(mut ws) => {
                    note(&format!("connected to {node}"));
                    match self.follow(&mut ws).await {
                        Ok(()) => continue,
                        Err(WatchError::Output) => return Ok(()),
                        Err(WatchError::Client(e)) => e,
                    }
                }
                Err(e) => e,
            };
            if !error.is_passing() {
                return Err(error.into());
            }
            note(&error.to_string());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn follow(&mut self, ws: &mut WsSocket) -> Result<(), WatchError> {
        self.catch_up(ws).await?;
        loop {
            let text = ws.next().await?;
            let event = event_of(&text).ok_or_else(|| ClientError::Strange {
                node: ws.node.clone(),
                why: "a frame that is no event".into(),
            })?;
            self.show(&event)?;
        }
    }

    /// After a reconnect, what was missed. What the session sends meanwhile is recognised by its `seq`.
    async fn catch_up(&mut self, ws: &WsSocket) -> Result<(), WatchError> {
        while let Some((_, cursor)) = self.last.clone() {
            let page = self.rest.changes(&ws.node, Some(&cursor), &[]).await?;
            for change in &page.changes {
                let data = serde_json::json!({
                    "device_id": change.device_id, "table_name": change.table_name, "record_id": change.record_id,
                    "operation": change.operation, "new_data": change.data, "seq": change.seq,
                    "timestamp": change.timestamp, "cursor": page.cursor,
                });
                self.show(&ReceivedEvent { name: "data_update".into(), data })?;
            }
            if !page.has_more {
                break;
            }
        }
        Ok(())
    }

    fn show(&mut self, event: &ReceivedEvent) -> Result<(), WatchError> {
        if event.name == "data_update" {
            if let (Some(seq), Some(cursor)) = (event.number("seq"), event.text("cursor")) {
                if self.last.as_ref().is_some_and(|(last, _)| seq <= *last) {
                    return Ok(());
                }
                self.last = Some((seq, cursor.to_owned()));
            }
            let tables = &self.args.tables;
            if !tables.is_empty() && !event.text("table_name").is_some_and(|t| tables.iter().any(|w| w == t)) {
                return Ok(());
            }
        }
        let line = if self.args.json {
            serde_json::json!({"event": event.name, "data": event.data}).to_string()
        } else {
            line(event)
        };
        // A reader that went away (`watch | head`) ends the command, quietly.
        writeln!(std::io::stdout(), "{}", escaped(&line)).map_err(|_| WatchError::Output)
    }
}

enum WatchError {
    Client(ClientError),
    Output,
}

impl From<ClientError> for WatchError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<WatchError> for CommandError {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Client(e) => e.into(),
            WatchError::Output => Self::new("the output is closed"),
        }
    }
}

/// An event on one line of text.
fn line(event: &ReceivedEvent) -> String {
    let time = event.text("timestamp").map_or_else(|| iso(SystemClock.now_ms()), str::to_owned);
    if event.name == "data_update" {
        let text = |key| event.text(key).unwrap_or("?");
        let (seq, record) = (event.number("seq").unwrap_or(0), &event.data["record_id"]);
        let operation = event.text("operation").unwrap_or("update");
        let (table, device, data) = (text("table_name"), text("device_id"), &event.data["new_data"]);
        return format!("{time}  {seq:>8}  {operation} {table}/{record} by {device}  {data}");
    }
    let mut data = event.data.clone();
    if let Some(fields) = data.as_object_mut() {
        fields.remove("timestamp");
    }
    format!("{time}  {:>8}  {}  {data}", "", event.name)
}

fn note(text: &str) {
    note!("-- {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_one_line_each() {
        let change = json!({"device_id": "d", "table_name": "t", "record_id": 7, "operation": "insert", "seq": 3,
            "new_data": {"a": 1}, "timestamp": "T"});
        let event = ReceivedEvent { name: "data_update".into(), data: change };
        assert_eq!(line(&event), r#"T         3  insert t/7 by d  {"a":1}"#);
        let event = ReceivedEvent { name: "role_change".into(), data: json!({"device_id": "d", "timestamp": "T"}) };
        assert_eq!(line(&event), r#"T            role_change  {"device_id":"d"}"#);
    }
}
