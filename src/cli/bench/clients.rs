//! Connections of a bench, and the frames that they send.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::Subscribe;
use crate::client::frame::{DeviceOnlineFrame, WsFrame, json, ws_frame};
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget, NodeUrl};

/// Connections made at the same time.
const AT_ONCE: usize = 32;

/// One client: its device and where it connects.
#[derive(Clone, Debug)]
pub(super) struct BenchClient {
    pub index: u32,
    pub device: String,
    pub node: NodeUrl,
}

/// Clients spread over the nodes. Their names are the same in every run: a cluster's devices are limited.
pub(super) fn clients(target: &ClusterTarget, name: &str, count: u32) -> Vec<BenchClient> {
    let node = |i: u32| target.nodes[i as usize % target.nodes.len()].clone();
    (0..count).map(|i| BenchClient { index: i, device: format!("bench-{name}-{i}"), node: node(i) }).collect()
}

/// What a client subscribes to.
#[derive(Clone, Debug)]
pub(super) enum Subscription {
    All,
    Nothing,
    Table(String),
}

impl From<Subscribe> for Subscription {
    fn from(subscribe: Subscribe) -> Self {
        match subscribe {
            Subscribe::All => Self::All,
            Subscribe::None => Self::Nothing,
        }
    }
}

/// Connects a client and brings its device online.
pub(super) async fn connect(
    client: &BenchClient,
    node: &NodeUrl,
    token: &str,
    wants: &Subscription,
) -> Result<WsSocket, ClientError> {
    let mut socket = WsSocket::connect(node, token).await?;
    let mut online = DeviceOnlineFrame::tool(&client.device);
    let tables: Vec<&str> = match wants {
        Subscription::Table(table) => vec![table],
        _ => Vec::new(),
    };
    online.subscribe = (!matches!(wants, Subscription::All)).then_some(&tables);
    socket.send(ws_frame("device_online", &json(&online))).await?;
    loop {
        let text = socket.next().await?;
        match event_name(&text) {
            "device_online_ack" => return Ok(socket),
            "error" => return Err(refused(node, &text)),
            _ => {}
        }
    }
}

/// Connects all clients.
pub(super) async fn connect_all(
    clients: &[BenchClient],
    token: &str,
    wants: &Subscription,
) -> Result<Vec<(BenchClient, WsSocket)>, ClientError> {
    stream::iter(clients.iter().cloned())
        .map(async |client| connect(&client, &client.node, token, wants).await.map(|socket| (client, socket)))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// The name of a frame's event, without parsing the rest of it if it stands where every server of ours puts it.
pub(super) fn event_name(text: &str) -> &str {
    if let Some(rest) = text.strip_prefix(r#"{"event":""#) {
        return rest.split_once('"').map_or("", |(name, _)| name);
    }
    match serde_json::from_str::<WsFrame<'_>>(text) {
        Ok(WsFrame { event: std::borrow::Cow::Borrowed(name), .. }) => name,
        _ => "",
    }
}

/// The digits after `key`, wherever in the frame.
pub(super) fn number_after(text: &str, key: &str) -> Option<u64> {
    let rest = &text[text.find(key)? + key.len()..];
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

/// The `error` in a frame.
pub(super) fn refused(node: &NodeUrl, text: &str) -> ClientError {
    let error = crate::client::link::event_of(text).and_then(|e| e.error());
    let (code, message) = error.unwrap_or((None, text.chars().take(100).collect()));
    ClientError::Refused { node: node.clone(), code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_without_parsing() {
        assert_eq!(event_name(r#"{"event":"acknowledged","data":{}}"#), "acknowledged");
        assert_eq!(event_name(r#"{ "data": {}, "event": "x" }"#), "x");
        assert_eq!(event_name("nonsense"), "");
        assert_eq!(number_after(r#"{"request_id":"ab-17","b":2}"#, r#""request_id":"ab-"#), Some(17));
        assert_eq!(number_after("{}", "a"), None);
    }
}
