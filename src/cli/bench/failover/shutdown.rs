//! The master shuts down in peace (`device_shutdown`), again and again, while the others write.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::crew::WriterCrew;
use super::journal::Times;
use super::{FailoverArgs, MeasuredCluster, REST, ms};
use crate::cli::CliResult;
use crate::cli::bench::clients::{event_name, refused};
use crate::cli::local::Supervisor;
use crate::client::frame::ws_frame;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, NodeUrl};

/// A client that is to be master.
pub(super) struct MasterClient {
    pub id: String,
    socket: WsSocket,
}

impl MasterClient {
    pub(super) async fn come(node: &NodeUrl, token: &str, id: &str, ask: &str) -> Result<Self, ClientError> {
        let mut chief = Self { id: id.to_owned(), socket: WsSocket::connect(node, token).await? };
        chief.online(ask).await?;
        Ok(chief)
    }

    /// Comes online; `ask` is more of the payload.
    pub(super) async fn online(&mut self, ask: &str) -> Result<(), ClientError> {
        let data = format!(r#"{{"device_id":"{}","subscribe":[]{ask}}}"#, self.id);
        self.call("device_online", &data, "device_online_ack").await.map(drop)
    }

    /// Sends an event and waits for the one that answers it: how long that took.
    pub(super) async fn call(&mut self, event: &str, data: &str, answer: &str) -> Result<Duration, ClientError> {
        let begun = Instant::now();
        self.socket.send(ws_frame(event, data)).await?;
        loop {
            let text = self.socket.next().await?;
            match event_name(&text) {
                "error" => return Err(refused(&self.socket.node, &text)),
                name if name == answer => return Ok(begun.elapsed()),
                _ => {}
            }
        }
    }

    pub(super) async fn close(self) {
        self.socket.close().await;
    }
}

pub(super) async fn run(
    args: &FailoverArgs,
    stage: &MeasuredCluster,
    nodes: &mut Supervisor,
    crew: &WriterCrew,
) -> CliResult<Value> {
    let (first, second) = (&stage.target.nodes[0], &stage.target.nodes[1]);
    let token = &stage.target.token;
    let mut present = MasterClient::come(first, token, "chief-1", r#","priority":100,"role":"master""#).await?;
    let mut next = MasterClient::come(second, token, "chief-2", r#","priority":99"#).await?;
    let (mut pauses, mut answers, mut failed) = (Times::default(), Times::default(), 0);
    for round in 1..=args.kills {
        stage.settled(nodes).await?;
        tokio::time::sleep(REST).await;
        let at = Instant::now();
        let data = format!(r#"{{"device_id":"{}","reason":"bench"}}"#, present.id);
        let answered = present.call("device_shutdown", &data, "acknowledged").await?;
        tokio::time::sleep(REST).await;
        let (pause, (refused, why)) = (crew.longest_pause(at), crew.refused(at));
        pauses.add(pause);
        answers.add(answered);
        failed += refused;
        args.say(&format!(
            "shutdown {round}: answered after {:.1} ms, longest pause of any client {:.1} ms, {refused} requests failed{}",
            ms(answered),
            ms(pause),
            why.map(|why| format!(" ({why})")).unwrap_or_default()
        ));
        std::mem::swap(&mut present, &mut next);
        next.online(r#","priority":99"#).await?;
    }
    present.close().await;
    next.close().await;
    args.say(&format!("shutdown of the master, ms: longest pause of any client {pauses}; answered {answers}"));
    Ok(json!({"longest_gap": pauses.json(), "answered": answers.json(), "failed": failed}))
}
