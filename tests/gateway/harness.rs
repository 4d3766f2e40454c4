//! A gateway on a port of its own, and clients for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tillsync::clock::{Clock, SharedClock, SystemClock};
use tillsync::cluster::{Cluster, SharedCluster};
use tillsync::gateway::{self, GatewaySettings};
use tillsync::storage::room::DiskRoom;
use tillsync::testkit::local_cluster::LocalCluster;
use tillsync::token::{Class, KeyRing};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;

use crate::schema;

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Server {
    pub addr: SocketAddr,
    pub keys: KeyRing,
    pub cluster: Arc<LocalCluster>,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(GatewaySettings::default()).await
    }

    pub(crate) async fn with(settings: GatewaySettings) -> Self {
        Self::over(settings, |local| local).await
    }

    /// A gateway over what `wrap` makes of the cluster of one.
    pub(crate) async fn over(settings: GatewaySettings, wrap: impl FnOnce(Arc<LocalCluster>) -> SharedCluster) -> Self {
        Self::by(Arc::new(SystemClock), settings, wrap).await
    }

    /// The same by a clock that may be wrong.
    pub(crate) async fn by(
        clock: SharedClock,
        settings: GatewaySettings,
        wrap: impl FnOnce(Arc<LocalCluster>) -> SharedCluster,
    ) -> Self {
        Self::in_room(clock, DiskRoom::unbounded(), settings, wrap).await
    }

    /// The same on a disk that can be low or full.
    pub(crate) async fn in_room(
        clock: SharedClock,
        room: Arc<DiskRoom>,
        settings: GatewaySettings,
        wrap: impl FnOnce(Arc<LocalCluster>) -> SharedCluster,
    ) -> Self {
        // For the tests' own HTTP clients.
        tillsync::tls::install_provider();
        let keys = KeyRing::parse(&"5a".repeat(32)).unwrap();
        let (cluster, effects) = LocalCluster::in_room(clock, room).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serve = gateway::serve(listener, wrap(cluster.clone()), effects, settings, keys.clone(), shutdown.clone());
        Self { addr, keys, cluster, shutdown, served: tokio::spawn(serve) }
    }

    pub(crate) fn token(&self, sub: &str, class: Class) -> String {
        self.keys.issue(sub, class, SystemClock.now_ms(), 3_600).unwrap().0
    }

    pub(crate) fn admin(&self) -> String {
        self.token("admin", Class::Admin)
    }

    pub(crate) async fn ws(&self, token: &str) -> Ws {
        self.try_ws(token).await.unwrap()
    }

    pub(crate) async fn try_ws(&self, token: &str) -> Result<Ws, Error> {
        let (socket, _) = connect_async(format!("ws://{}/ws?token={token}", self.addr)).await?;
        Ok(Ws { socket, held: Vec::new(), over: Over::WebSocket })
    }

    /// A session whose socket takes little in before it is read.
    pub(crate) async fn ws_with_little_room(&self, token: &str) -> Ws {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        let stream = MaybeTlsStream::Plain(socket.connect(self.addr).await.unwrap());
        let url = format!("ws://{}/ws?token={token}", self.addr);
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        Ws { socket, held: Vec::new(), over: Over::WebSocket }
    }

    /// A session of an admin over Socket.IO, used as those over `/ws` are.
    pub(crate) async fn socketio(&self) -> Ws {
        self.socketio_as(&self.admin()).await
    }

    pub(crate) async fn socketio_as(&self, token: &str) -> Ws {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", self.addr);
        let (socket, _) = connect_async(url).await.unwrap();
        let mut sio = Ws { socket, held: Vec::new(), over: Over::SocketIo };
        sio.text(&format!("40{}", json!({"token": token}))).await;
        sio
    }

    /// A session of an admin.
    pub(crate) async fn session(&self, over: Over) -> Ws {
        match over {
            Over::WebSocket => self.ws(&self.admin()).await,
            Over::SocketIo => self.socketio().await,
        }
    }

    /// A session whose device is online.
    pub(crate) async fn device(&self, id: &str) -> Ws {
        let mut ws = self.ws(&self.admin()).await;
        ws.online(id).await;
        ws
    }

    pub(crate) async fn rest(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.rest_as(&self.admin(), method, path, body).await
    }

    pub(crate) async fn rest_as(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("http://{}{path}", self.addr);
        let request = reqwest::Client::new().request(method.parse().unwrap(), url).bearer_auth(token);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        assert_eq!(response.headers()["content-type"], "application/json", "{path}");
        let body = response.json().await.unwrap();
        schema::answer_fits(method, path, status, &body);
        (status, body)
    }

    pub(crate) fn head(&self) -> u64 {
        self.cluster.replica().state().meta().head_seq
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    WebSocket,
    SocketIo,
}

/// Runs a test over each transport: on a server of its own, with a session on which device `d` is online.
pub(crate) async fn over_each(mut test: impl AsyncFnMut(&Server, &mut Ws)) {
    for over in [Over::WebSocket, Over::SocketIo] {
        let server = Server::start().await;
        let mut session = server.session(over).await;
        session.online("d").await;
        test(&server, &mut session).await;
    }
}

pub(crate) struct Ws {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub over: Over,
    /// Received while waiting for something else.
    held: Vec<(String, Value)>,
}

impl Ws {
    pub(crate) async fn send(&mut self, event: &str, data: Value) {
        let frame = match self.over {
            Over::WebSocket => json!({"event": event, "data": data}).to_string(),
            Over::SocketIo => format!("42{}", json!([event, data])),
        };
        self.text(&frame).await;
    }

    pub(crate) async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next event, whatever it is; `None` when the connection ends.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        if !self.held.is_empty() {
            return Some(self.held.remove(0));
        }
        self.receive().await
    }

    /// The server ends the connection; what comes before that is passed over.
    pub(crate) async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }

    async fn receive(&mut self) -> Option<(String, Value)> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("nothing came")? {
                Ok(Message::Text(text)) if self.over == Over::SocketIo => match text.strip_prefix("42") {
                    Some(event) => return Some(event_of(event, "/0", "/1")),
                    // Pings are answered; the handshake's packets are passed over.
                    None if text == "2" => self.text("3").await,
                    None => {}
                },
                Ok(Message::Text(text)) => return Some(event_of(&text, "/event", "/data")),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next event of this name; others stay for later.
    pub(crate) async fn wait(&mut self, event: &str) -> Value {
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

    /// The next event of one of these names; others stay for later.
    pub(crate) async fn either(&mut self, events: &[&str]) -> (String, Value) {
        if let Some(at) = self.held.iter().position(|(name, _)| events.contains(&name.as_str())) {
            return self.held.remove(at);
        }
        loop {
            let (name, data) = self.receive().await.unwrap_or_else(|| panic!("closed before any of {events:?}"));
            if events.contains(&name.as_str()) {
                return (name, data);
            }
            self.held.push((name, data));
        }
    }

    pub(crate) async fn call(&mut self, event: &str, data: Value, answer: &str) -> Value {
        self.send(event, data).await;
        self.wait(answer).await
    }

    pub(crate) async fn online(&mut self, id: &str) -> Value {
        self.call("device_online", json!({"device_id": id}), "device_online_ack").await
    }

    pub(crate) async fn update(&mut self, device: &str, table: &str, record: i64, data: Value) -> Value {
        let update = json!({"device_id": device, "table_name": table, "record_id": record, "new_data": data});
        self.call("data_update", update, "acknowledged").await
    }

    /// Nothing of this name comes before the answer to a heartbeat.
    pub(crate) async fn none(&mut self, event: &str) {
        self.none_for("x", event).await;
    }

    /// The same of a session whose token is this device's.
    pub(crate) async fn none_for(&mut self, device: &str, event: &str) {
        self.call("heartbeat", json!({"device_id": device}), "heartbeat_ack").await;
        let found = self.held.iter().find(|(name, _)| name == event);
        assert!(found.is_none(), "{found:?}");
    }
}

/// An event out of its frame; it must be as described.
fn event_of(frame: &str, name: &str, data: &str) -> (String, Value) {
    let frame: Value = serde_json::from_str(frame).unwrap();
    let (name, data) = (frame.pointer(name).unwrap().as_str().unwrap(), frame.pointer(data).unwrap());
    schema::event_fits(name, data);
    (name.to_owned(), data.clone())
}

/// The seq of a cursor of the test's cluster, as docs/clients.md lets clients read it.
pub(crate) fn place_of(cursor: &Value) -> u64 {
    let (history, seq) = cursor.as_str().unwrap().rsplit_once('.').unwrap();
    let print = history.strip_prefix('1').unwrap();
    // Only before the first change there is nothing to know it by.
    assert_eq!(print.is_empty(), seq == "0", "{cursor}");
    seq.parse().unwrap()
}

/// Polls until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
