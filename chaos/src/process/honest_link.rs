//! A connection of an honest device. It notes what the device is refused or cut off from: evidence for `honest`.

use std::time::Duration;

use serde_json::Value;
use tillsync::client::link::{ClientLink, ClientTransport};
use tillsync::client::{ClientError, NodeUrl};
use tokio::time::timeout;

use crate::clients::client::PATIENCE;
use crate::clients::{Connection, ConnectionLost, ReceivedEvent};
use crate::recorder::Recorder;

/// Codes of errors that say that a node could not, whoever asked: no answer from the cluster, no lead or master, a session
/// that was ended, an error of the node's own, too much to do.
const NOT_THE_ASKERS: [&str; 9] = ["1001", "1002", "1003", "1004", "2003", "2005", "5001", "5002", "5003"];

pub(super) struct HonestLink {
    link: ClientLink,
    recorder: Recorder,
    device: String,
    node: u64,
    /// A Socket.IO client gets the answers to its writes by callback.
    callbacks: bool,
}

impl HonestLink {
    pub(super) async fn connect(
        (transport, callbacks): (ClientTransport, bool),
        (node, url): (u64, &NodeUrl),
        token: &str,
        (device, recorder): (&str, &Recorder),
    ) -> Option<Self> {
        match ClientLink::connect(transport, url, token).await {
            Ok(link) => Some(Self { link, recorder: recorder.clone(), device: device.to_owned(), node, callbacks }),
            Err(why) => {
                recorder.failure(device, node, format!("it could not connect: {why}"));
                None
            }
        }
    }

    async fn emit(&mut self, event: &str, data: &Value) -> Result<(), ClientError> {
        let data = data.to_string();
        match &mut self.link {
            ClientLink::SocketIo(socket) if !self.callbacks => socket.emit(event, &data, false).await.map(drop),
            link => link.send(event, &data).await,
        }
    }
}

impl Connection for HonestLink {
    async fn send(&mut self, event: &str, data: &Value) -> Result<(), ConnectionLost> {
        match timeout(PATIENCE, self.emit(event, data)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => {
                self.recorder.failure(&self.device, self.node, format!("{event} was not sent: {why}"));
                Err(ConnectionLost)
            }
            Err(_) => Err(ConnectionLost),
        }
    }

    async fn next(&mut self, within: Duration) -> Result<Option<ReceivedEvent>, ConnectionLost> {
        match timeout(within, self.link.next()).await {
            Ok(Ok(event)) => {
                if let Some(what) = refusal(&event) {
                    self.recorder.failure(&self.device, self.node, what);
                }
                Ok(Some(event))
            }
            Ok(Err(why)) => {
                self.recorder.failure(&self.device, self.node, format!("its connection ended: {why}"));
                Err(ConnectionLost)
            }
            Err(_) => Ok(None),
        }
    }
}

/// What a node that could not says; `None` for all other events.
fn refusal(event: &ReceivedEvent) -> Option<String> {
    let error = event.name == "error" || event.name == "sync_error";
    let code = event.data["error_code"].as_str().filter(|code| error && NOT_THE_ASKERS.contains(code))?;
    let words = [&event.data["error"], &event.data["error_message"]].into_iter().find_map(Value::as_str);
    let asked = event.data["event"].as_str().unwrap_or("something");
    Some(format!("{asked} was refused: {code} {}", words.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_a_node_could_not_do_counts() {
        let event = |name: &str, data: Value| ReceivedEvent { name: name.into(), data };
        let busy = json!({ "error": "too much", "error_code": "5003", "event": "data_update" });
        assert_eq!(refusal(&event("error", busy.clone())), Some("data_update was refused: 5003 too much".into()));
        let late = json!({ "error_message": "late", "error_code": "2003" });
        assert_eq!(refusal(&event("sync_error", late)), Some("something was refused: 2003 late".into()));
        let conflict = json!({ "error": "taken", "error_code": "2002", "event": "data_update" });
        assert_eq!(refusal(&event("error", conflict)), None);
        assert_eq!(refusal(&event("data_update", busy)), None);
    }
}
