//! As much of a Socket.IO 5 client (Engine.IO 4) as the commands need: over a WebSocket from the start, or over long
//! polling for good.

use serde_json::Value;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::frame::ReceivedEvent;
use super::polling::PollingSocket;
use super::ws::WsSocket;
use super::{CONNECT, ClientError, NodeUrl};

/// A connection to the main namespace.
pub struct SioSocket {
    engine: EngineIoLink,
    next_ack: u64,
}

/// How Engine.IO packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineIoTransport {
    WebSocket,
    Polling,
}

enum EngineIoLink {
    WebSocket(Box<WsSocket>),
    Polling(PollingSocket),
}

impl EngineIoLink {
    /// Opens a session. Returns the packet that opened it, too.
    async fn open(transport: EngineIoTransport, node: &NodeUrl) -> Result<(Self, Utf8Bytes), ClientError> {
        match transport {
            EngineIoTransport::WebSocket => {
                let mut ws = WsSocket::open(node, "/socket.io/?EIO=4&transport=websocket", None).await?;
                let open = ws.next().await?;
                Ok((Self::WebSocket(Box::new(ws)), open))
            }
            EngineIoTransport::Polling => {
                let (polling, open) = PollingSocket::open(node).await?;
                Ok((Self::Polling(polling), open))
            }
        }
    }

    fn node(&self) -> &NodeUrl {
        match self {
            Self::WebSocket(ws) => &ws.node,
            Self::Polling(polling) => &polling.node,
        }
    }

    async fn send(&mut self, packet: String) -> Result<(), ClientError> {
        match self {
            Self::WebSocket(ws) => ws.send(packet).await,
            Self::Polling(polling) => polling.send(packet).await,
        }
    }

    async fn next(&mut self) -> Result<Utf8Bytes, ClientError> {
        match self {
            Self::WebSocket(ws) => ws.next().await,
            Self::Polling(polling) => polling.next().await,
        }
    }
}

/// What the server sent.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerPacket {
    Ping,
    Event(ReceivedEvent),
    /// The answer to the event that was sent with this number.
    Ack(u64, Value),
    Disconnect,
    ConnectError(String),
    Connected,
    /// Engine.IO's own: open, noop.
    Other,
}

impl SioSocket {
    pub async fn connect(transport: EngineIoTransport, node: &NodeUrl, token: &str) -> Result<Self, ClientError> {
        match tokio::time::timeout(CONNECT, Self::handshake(transport, node, token)).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Lost { node: node.clone(), why: "no answer to the handshake".into() }),
        }
    }

    async fn handshake(transport: EngineIoTransport, node: &NodeUrl, token: &str) -> Result<Self, ClientError> {
        let (mut engine, open) = EngineIoLink::open(transport, node).await?;
        if !open.starts_with('0') {
            return Err(strange(node, &open));
        }
        engine.send(format!("40{}", serde_json::json!({ "token": token }))).await?;
        loop {
            let text = engine.next().await?;
            match parse(&text) {
                Some(ServerPacket::Connected) => return Ok(Self { engine, next_ack: 0 }),
                Some(ServerPacket::ConnectError(message)) => {
                    let code = message.get(..4).and_then(|c| c.parse().ok());
                    return Err(ClientError::Refused { node: node.clone(), code, message });
                }
                Some(ServerPacket::Ping) => engine.send("3".into()).await?,
                Some(ServerPacket::Other) => {}
                _ => return Err(strange(node, &text)),
            }
        }
    }

    pub fn node(&self) -> &NodeUrl {
        self.engine.node()
    }

    /// Emits an event; `data` is JSON. With `want_ack` it gets a number, which the answer will carry.
    pub async fn emit(&mut self, event: &str, data: &str, want_ack: bool) -> Result<Option<u64>, ClientError> {
        let id = want_ack.then(|| {
            self.next_ack += 1;
            self.next_ack
        });
        let number = id.map(|n| n.to_string()).unwrap_or_default();
        self.engine.send(format!(r#"42{number}["{event}",{data}]"#)).await?;
        Ok(id)
    }

    /// The next event or answer. Cancel-safe but for the answer to a ping, which the next ping makes good.
    pub async fn next(&mut self) -> Result<ServerPacket, ClientError> {
        loop {
            let text = self.engine.next().await?;
            match parse(&text) {
                Some(ServerPacket::Ping) => self.engine.send("3".into()).await?,
                Some(packet @ (ServerPacket::Event(_) | ServerPacket::Ack(..))) => return Ok(packet),
                Some(ServerPacket::Disconnect) => {
                    return Err(ClientError::Lost { node: self.node().clone(), why: "it closed the session".into() });
                }
                Some(_) => {}
                None => return Err(strange(self.node(), &text)),
            }
        }
    }

    pub async fn close(self) {
        match self.engine {
            EngineIoLink::WebSocket(ws) => ws.close().await,
            EngineIoLink::Polling(polling) => polling.close().await,
        }
    }
}

fn strange(node: &NodeUrl, text: &str) -> ClientError {
    let start: String = text.chars().take(80).collect();
    ClientError::Strange { node: node.clone(), why: format!("the packet {start}") }
}

/// One Engine.IO packet; `None` if it is not one.
pub(crate) fn parse(text: &str) -> Option<ServerPacket> {
    match text.as_bytes().first()? {
        b'2' => return Some(ServerPacket::Ping),
        b'1' => return Some(ServerPacket::Disconnect),
        b'4' => {}
        b'0' | b'3' | b'6' => return Some(ServerPacket::Other),
        _ => return None,
    }
    let (kind, rest) = (text.as_bytes().get(1)?, text.get(2..)?);
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, body) = rest.split_at(digits);
    match kind {
        b'0' => Some(ServerPacket::Connected),
        b'1' => Some(ServerPacket::Disconnect),
        b'2' => {
            let parts: Vec<&RawValue> = serde_json::from_str(body).ok()?;
            let name = serde_json::from_str(parts.first()?.get()).ok()?;
            let data = parts.get(1).map_or(Some(Value::Null), |d| super::read_json(d.get().as_bytes()).ok())?;
            Some(ServerPacket::Event(ReceivedEvent { name, data }))
        }
        b'3' => {
            let mut parts: Vec<Value> = super::read_json(body.as_bytes()).ok()?;
            let data = if parts.is_empty() { Value::Null } else { parts.swap_remove(0) };
            Some(ServerPacket::Ack(number.parse().ok()?, data))
        }
        b'4' => {
            let body: Value = serde_json::from_str(body).ok()?;
            let message = body.get("message").and_then(Value::as_str).unwrap_or("no reason given");
            Some(ServerPacket::ConnectError(message.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn packets_are_read_as_the_protocol_has_them() {
        assert_eq!(parse("2"), Some(ServerPacket::Ping));
        assert_eq!(parse("1"), Some(ServerPacket::Disconnect));
        assert_eq!(parse(r#"0{"sid":"x"}"#), Some(ServerPacket::Other));
        assert_eq!(parse(r#"40{"sid":"x"}"#), Some(ServerPacket::Connected));
        assert_eq!(parse("41"), Some(ServerPacket::Disconnect));
        assert_eq!(parse(r#"44{"message":"3001: no"}"#), Some(ServerPacket::ConnectError("3001: no".into())));
        assert_eq!(
            parse(r#"42["a",{"b":1}]"#),
            Some(ServerPacket::Event(ReceivedEvent { name: "a".into(), data: json!({"b": 1}) }))
        );
        assert_eq!(
            parse(r#"42["a"]"#),
            Some(ServerPacket::Event(ReceivedEvent { name: "a".into(), data: Value::Null }))
        );
        assert_eq!(parse(r#"4312[{"ok":true}]"#), Some(ServerPacket::Ack(12, json!({"ok": true}))));
        assert_eq!(parse("431[]"), Some(ServerPacket::Ack(1, Value::Null)));
        for bad in ["", "4", "9", "42", "42[", "42[1]", "43[]", "é", "4é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
