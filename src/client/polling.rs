//! Engine.IO over long polling: what a Socket.IO client speaks until it upgrades, or for good behind a proxy that knows
//! no WebSocket.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::rest::{cause, http, refusal};
use super::{ClientError, NodeUrl, SILENCE, Trust};

/// Packets that wait to be taken; the next poll begins when they have room.
const PACKETS: usize = 1_024;
/// Between the packets of one body.
const SEPARATOR: char = '\x1e';

/// One Engine.IO session.
pub(super) struct PollingSocket {
    pub node: NodeUrl,
    http: reqwest::Client,
    /// With the session's id.
    url: String,
    packets: mpsc::Receiver<Result<Utf8Bytes, ClientError>>,
    polls: AbortHandle,
}

impl PollingSocket {
    /// Opens a session. Returns the packet that opened it, too.
    pub(super) async fn open(node: &NodeUrl) -> Result<(Self, Utf8Bytes), ClientError> {
        let http = match &node.trust {
            Some(trust) => Trust::http(trust).clone(),
            None => http(None)?,
        };
        let url = format!("{node}/socket.io/?EIO=4&transport=polling");
        let open = get(node, &http, &url).await?;
        let strange = || {
            let start: String = open.chars().take(80).collect();
            ClientError::Strange { node: node.clone(), why: format!("the packet {start}") }
        };
        let handshake: serde_json::Value =
            open.strip_prefix('0').and_then(|json| serde_json::from_str(json).ok()).ok_or_else(strange)?;
        let sid = handshake.get("sid").and_then(serde_json::Value::as_str).ok_or_else(strange)?;
        let url = format!("{url}&sid={}", super::rest::percent(sid));
        let (heard, packets) = mpsc::channel(PACKETS);
        // A poll that is dropped half-way loses the packets of its answer, so it is not the caller's.
        let polls = tokio::spawn(poll(node.clone(), http.clone(), url.clone(), heard)).abort_handle();
        Ok((Self { node: node.clone(), http, url, packets, polls }, open.into()))
    }

    /// Sends a packet; it is taken when this is done.
    pub(super) async fn send(&mut self, packet: String) -> Result<(), ClientError> {
        let request = self.http.post(&self.url).header("Content-Type", "text/plain;charset=UTF-8").body(packet);
        answer(&self.node, request).await.map(drop)
    }

    /// The next packet. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Utf8Bytes, ClientError> {
        match tokio::time::timeout(SILENCE, self.packets.recv()).await {
            Ok(Some(packet)) => packet,
            Ok(None) => Err(lost(&self.node, "the session ended".into())),
            Err(_) => Err(lost(&self.node, format!("silent for {} s", SILENCE.as_secs_f64()))),
        }
    }

    /// Ends the session; nothing is waited for longer than a moment.
    pub(super) async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_millis(500), self.send("1".into())).await;
    }
}

impl Drop for PollingSocket {
    fn drop(&mut self) {
        self.polls.abort();
    }
}

async fn poll(node: NodeUrl, http: reqwest::Client, url: String, heard: mpsc::Sender<Result<Utf8Bytes, ClientError>>) {
    loop {
        let packets = get(&node, &http, &url).await;
        let ended = packets.is_err();
        let packets = match packets {
            Ok(body) => body.split(SEPARATOR).map(|packet| Ok(packet.into())).collect(),
            Err(error) => vec![Err(error)],
        };
        for packet in packets {
            if heard.send(packet).await.is_err() {
                return;
            }
        }
        if ended {
            return;
        }
    }
}

async fn get(node: &NodeUrl, http: &reqwest::Client, url: &str) -> Result<String, ClientError> {
    answer(node, http.get(url)).await
}

/// The body of a good answer. A poll is answered when there is something to say, at the next ping at the latest.
async fn answer(node: &NodeUrl, request: reqwest::RequestBuilder) -> Result<String, ClientError> {
    let response = request.timeout(SILENCE).send().await.map_err(|error| lost(node, cause(&error)))?;
    let status = response.status();
    let body = response.bytes().await.map_err(|error| lost(node, cause(&error)))?;
    if !status.is_success() {
        return Err(refusal(node, status.as_u16(), &body));
    }
    let strange = |_| ClientError::Strange { node: node.clone(), why: "a body that is not UTF-8".into() };
    String::from_utf8(body.into()).map_err(strange)
}

fn lost(node: &NodeUrl, why: String) -> ClientError {
    ClientError::Lost { node: node.clone(), why }
}
