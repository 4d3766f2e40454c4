//! A plain WebSocket to a node.

use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};

use super::{CONNECT, ClientError, NodeUrl, SILENCE};
use crate::tls::stream::TlsOrTcp;

/// A connection. Pings are answered while it is being read.
pub struct WsSocket {
    pub node: NodeUrl,
    inner: WebSocketStream<TlsOrTcp>,
    silence: Duration,
}

impl WsSocket {
    /// Connects to `/ws`.
    pub async fn connect(node: &NodeUrl, token: &str) -> Result<Self, ClientError> {
        Self::open(node, "/ws", Some(token)).await
    }

    /// Connects to a path, with the token in the header if one is given.
    pub async fn open(node: &NodeUrl, path: &str, token: Option<&str>) -> Result<Self, ClientError> {
        match tokio::time::timeout(CONNECT, Self::handshake(node, path, token)).await {
            Ok(result) => result,
            Err(_) => Err(lost(node, format!("no answer within {} s", CONNECT.as_secs()))),
        }
    }

    async fn handshake(node: &NodeUrl, path: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let tcp = TcpStream::connect(&node.authority).await.map_err(|e| lost(node, e.to_string()))?;
        tcp.set_nodelay(true).map_err(|e| lost(node, e.to_string()))?;
        let stream = match &node.trust {
            Some(trust) => trust.connect(&node.authority, tcp).await.map_err(|why| lost(node, why))?,
            None => TlsOrTcp::Plain(tcp),
        };
        let strange = |e: &dyn std::fmt::Display| ClientError::Strange { node: node.clone(), why: e.to_string() };
        let mut request = format!("ws://{}{path}", node.authority).into_client_request().map_err(|e| strange(&e))?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ClientError::Refused {
                node: node.clone(),
                code: Some(3001),
                message: "the token holds characters that no token has".into(),
            })?;
            request.headers_mut().insert("Authorization", value);
        }
        // The default reads 128 KiB at a time, for every one of a thousand connections.
        let config = WebSocketConfig::default().read_buffer_size(8 << 10).write_buffer_size(16 << 10);
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((inner, _)) => Ok(Self { node: node.clone(), inner, silence: SILENCE }),
            Err(WsError::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err(super::rest::refusal(node, response.status().as_u16(), body))
            }
            Err(e) => Err(lost(node, e.to_string())),
        }
    }

    /// How long the node may be silent.
    pub fn set_silence(&mut self, silence: Duration) {
        self.silence = silence;
    }

    /// Sends a text frame now.
    pub async fn send(&mut self, text: impl Into<Utf8Bytes>) -> Result<(), ClientError> {
        self.inner.send(Message::Text(text.into())).await.map_err(|e| lost(&self.node, e.to_string()))
    }

    /// Queues a text frame; it leaves with the next [`WsSocket::flush`] or when the buffer is full.
    pub async fn feed(&mut self, text: impl Into<Utf8Bytes>) -> Result<(), ClientError> {
        self.inner.feed(Message::Text(text.into())).await.map_err(|e| lost(&self.node, e.to_string()))
    }

    pub async fn flush(&mut self) -> Result<(), ClientError> {
        self.inner.flush().await.map_err(|e| lost(&self.node, e.to_string()))
    }

    /// The next text frame. Cancel-safe. An error if the connection ended or fell silent.
    pub async fn next(&mut self) -> Result<Utf8Bytes, ClientError> {
        loop {
            let Ok(message) = tokio::time::timeout(self.silence, self.inner.next()).await else {
                return Err(lost(&self.node, format!("silent for {} s", self.silence.as_secs_f64())));
            };
            if let Some(text) = self.text_of(message)? {
                return Ok(text);
            }
        }
    }

    /// A text frame that is here already.
    pub fn try_next(&mut self) -> Result<Option<Utf8Bytes>, ClientError> {
        while let Some(message) = self.inner.next().now_or_never() {
            if let Some(text) = self.text_of(message)? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    fn text_of(&self, message: Option<Result<Message, WsError>>) -> Result<Option<Utf8Bytes>, ClientError> {
        match message {
            Some(Ok(Message::Text(text))) => Ok(Some(text)),
            Some(Ok(Message::Close(frame))) => {
                let reason = frame.map(|f| f.reason.to_string()).filter(|r| !r.is_empty());
                Err(lost(&self.node, reason.unwrap_or_else(|| "it closed the connection".into())))
            }
            Some(Ok(_)) => Ok(None),
            Some(Err(e)) => Err(lost(&self.node, e.to_string())),
            None => Err(lost(&self.node, "the connection ended".into())),
        }
    }

    /// Says goodbye; nothing is waited for longer than a moment.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_millis(500), self.inner.close(None)).await;
    }
}

fn lost(node: &NodeUrl, why: String) -> ClientError {
    ClientError::Lost { node: node.clone(), why }
}
