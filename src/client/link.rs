//! One connection of a device, whichever transport it speaks.

use super::frame::{ReceivedEvent, WsFrame, ws_frame};
use super::socketio::{EngineIoTransport, ServerPacket, SioSocket};
use super::ws::WsSocket;
use super::{ClientError, NodeUrl};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClientTransport {
    Ws,
    /// Over a WebSocket from the start
    Socketio,
    /// Socket.IO that never leaves long polling
    SocketioPolling,
}

impl ClientTransport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ws => "/ws",
            Self::Socketio => "Socket.IO",
            Self::SocketioPolling => "Socket.IO over polling",
        }
    }
}

pub enum ClientLink {
    Ws(Box<WsSocket>),
    SocketIo(SioSocket),
}

impl ClientLink {
    pub async fn connect(transport: ClientTransport, node: &NodeUrl, token: &str) -> Result<Self, ClientError> {
        match transport {
            ClientTransport::Ws => WsSocket::connect(node, token).await.map(|ws| Self::Ws(Box::new(ws))),
            ClientTransport::Socketio => {
                SioSocket::connect(EngineIoTransport::WebSocket, node, token).await.map(Self::SocketIo)
            }
            ClientTransport::SocketioPolling => {
                SioSocket::connect(EngineIoTransport::Polling, node, token).await.map(Self::SocketIo)
            }
        }
    }

    pub fn node(&self) -> &NodeUrl {
        match self {
            Self::Ws(ws) => &ws.node,
            Self::SocketIo(sio) => sio.node(),
        }
    }

    /// Sends an event; `data` is JSON. A `data_update` is sent so that it is acknowledged on either transport.
    pub async fn send(&mut self, event: &str, data: &str) -> Result<(), ClientError> {
        match self {
            Self::Ws(ws) => ws.send(ws_frame(event, data)).await,
            Self::SocketIo(sio) => sio.emit(event, data, event == "data_update").await.map(drop),
        }
    }

    /// The next event. The answer of an ack callback comes as the event that `/ws` has for it: `error` if
    /// that is what it is, else `acknowledged`. Cancel-safe.
    pub async fn next(&mut self) -> Result<ReceivedEvent, ClientError> {
        match self {
            Self::Ws(ws) => {
                let text = ws.next().await?;
                event_of(&text).ok_or_else(|| {
                    let start: String = text.chars().take(80).collect();
                    ClientError::Strange { node: ws.node.clone(), why: format!("the frame {start}") }
                })
            }
            Self::SocketIo(sio) => loop {
                match sio.next().await? {
                    ServerPacket::Event(event) => return Ok(event),
                    ServerPacket::Ack(_, data) => {
                        let name = if data.get("error").is_some() { "error" } else { "acknowledged" };
                        return Ok(ReceivedEvent { name: name.into(), data });
                    }
                    _ => {}
                }
            },
        }
    }

    /// Waits for one of these events, passing over others; an `error` ends the wait.
    pub async fn wait_for(&mut self, names: &[&str]) -> Result<ReceivedEvent, ClientError> {
        loop {
            let event = self.next().await?;
            if names.contains(&event.name.as_str()) {
                return Ok(event);
            }
            if let Some((code, message)) = event.error() {
                return Err(ClientError::Refused { node: self.node().clone(), code, message });
            }
        }
    }

    pub async fn close(self) {
        match self {
            Self::Ws(ws) => ws.close().await,
            Self::SocketIo(sio) => sio.close().await,
        }
    }
}

/// The event in a `/ws` frame.
pub fn event_of(text: &str) -> Option<ReceivedEvent> {
    let frame: WsFrame<'_> = serde_json::from_str(text).ok()?;
    let data = frame.data.map_or(Some(serde_json::Value::Null), |d| super::read_json(d.get().as_bytes()).ok())?;
    Some(ReceivedEvent { name: frame.event.into_owned(), data })
}
