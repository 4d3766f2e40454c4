//! A gateway on a port of its own, and clients for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tillsync::clock::{Clock, SystemClock};
use tillsync::cluster::local::LocalCluster;
use tillsync::cluster::{Cluster, SharedCluster};
use tillsync::gateway::{self, Settings};
use tillsync::token::{Class, KeyRing};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Server {
    pub addr: SocketAddr,
    pub keys: KeyRing,
    pub cluster: Arc<LocalCluster>,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        Self::over(settings, |local| local).await
    }

    /// A gateway over what `wrap` makes of the cluster of one.
    pub async fn over(settings: Settings, wrap: impl FnOnce(Arc<LocalCluster>) -> SharedCluster) -> Self {
        let keys = KeyRing::parse(&"5a".repeat(32)).unwrap();
        let (cluster, effects) = LocalCluster::start(Arc::new(SystemClock)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serve = gateway::serve(listener, wrap(cluster.clone()), effects, settings, keys.clone(), shutdown.clone());
        Self { addr, keys, cluster, shutdown, served: tokio::spawn(serve) }
    }

    pub fn token(&self, sub: &str, class: Class) -> String {
        self.keys.issue(sub, class, SystemClock.now_ms(), 3_600).unwrap().0
    }

    pub fn admin(&self) -> String {
        self.token("admin", Class::Admin)
    }

    pub async fn ws(&self, token: &str) -> Ws {
        self.try_ws(token).await.unwrap()
    }

    pub async fn try_ws(&self, token: &str) -> Result<Ws, Error> {
        let (socket, _) = connect_async(format!("ws://{}/ws?token={token}", self.addr)).await?;
        Ok(Ws { socket, held: Vec::new() })
    }

    /// A session whose device is online.
    pub async fn device(&self, id: &str) -> Ws {
        let mut ws = self.ws(&self.admin()).await;
        ws.online(id).await;
        ws
    }

    pub async fn rest(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.rest_as(&self.admin(), method, path, body).await
    }

    pub async fn rest_as(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("http://{}{path}", self.addr);
        let request = reqwest::Client::new().request(method.parse().unwrap(), url).bearer_auth(token);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        assert_eq!(response.headers()["content-type"], "application/json", "{path}");
        (status, response.json().await.unwrap())
    }

    pub fn head(&self) -> u64 {
        self.cluster.replica().hot().meta().head_seq
    }
}

pub struct Ws {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Received while waiting for something else.
    held: Vec<(String, Value)>,
}

impl Ws {
    pub async fn send(&mut self, event: &str, data: Value) {
        self.text(&json!({"event": event, "data": data}).to_string()).await;
    }

    pub async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next event, whatever it is; `None` when the connection ends.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        if !self.held.is_empty() {
            return Some(self.held.remove(0));
        }
        self.receive().await
    }

    /// The server ends the connection; what comes before that is passed over.
    pub async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }

    async fn receive(&mut self) -> Option<(String, Value)> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("nothing came")? {
                Ok(Message::Text(text)) => {
                    let mut frame: Value = serde_json::from_str(&text).unwrap();
                    return Some((frame["event"].as_str().unwrap().to_owned(), frame["data"].take()));
                }
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next event of this name; others stay for later.
    pub async fn wait(&mut self, event: &str) -> Value {
        if let Some(at) = self.held.iter().position(|(name, _)| name == event) {
            return self.held.remove(at).1;
        }
        loop {
            let (name, data) = self.receive().await.unwrap_or_else(|| panic!("closed before {event}"));
            if name == event {
                return data;
            }
            self.held.push((name, data));
        }
    }

    pub async fn call(&mut self, event: &str, data: Value, answer: &str) -> Value {
        self.send(event, data).await;
        self.wait(answer).await
    }

    pub async fn online(&mut self, id: &str) -> Value {
        self.call("device_online", json!({"device_id": id}), "device_online_ack").await
    }

    pub async fn update(&mut self, device: &str, table: &str, record: i64, data: Value) -> Value {
        let update = json!({"device_id": device, "table_name": table, "record_id": record, "new_data": data});
        self.call("data_update", update, "acknowledged").await
    }

    /// Nothing of this name comes before the answer to a heartbeat.
    pub async fn none(&mut self, event: &str) {
        self.call("heartbeat", json!({"device_id": "x"}), "heartbeat_ack").await;
        let found = self.held.iter().find(|(name, _)| name == event);
        assert!(found.is_none(), "{found:?}");
    }
}

/// Polls until it holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
