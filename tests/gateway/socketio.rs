//! Socket.IO as it is on the wire. Real clients are driven by tests of their own.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::harness::{PATIENCE, Server};

pub(crate) struct Sio(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Sio {
    pub(crate) async fn open(server: &Server, query: &str) -> Self {
        let url = format!("ws://{}/socket.io/?transport=websocket&{query}", server.addr);
        let (socket, _) = connect_async(url).await.unwrap();
        let mut sio = Self(socket);
        let open = sio.next().await;
        assert!(open.starts_with("0{") && open.contains("\"pingInterval\":2000"), "{open}");
        sio
    }

    /// Connected with a token in the auth payload.
    async fn connect(server: &Server) -> Self {
        Self::connect_as(server, &server.admin()).await
    }

    pub(crate) async fn connect_as(server: &Server, token: &str) -> Self {
        let mut sio = Self::open(server, "EIO=4").await;
        sio.send(&format!("40{}", json!({"token": token}))).await;
        assert!(sio.next().await.starts_with("40{\"sid\":"));
        sio
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// The next packet that is no ping.
    pub(crate) async fn next(&mut self) -> String {
        loop {
            let message = timeout(PATIENCE, self.0.next()).await.expect("nothing came").unwrap().unwrap();
            if let Message::Text(text) = message {
                match text.as_str() {
                    "2" => self.send("3").await,
                    text => return text.to_owned(),
                }
            }
        }
    }

    pub(crate) async fn wait(&mut self, start: &str) -> Value {
        loop {
            let packet = self.next().await;
            if let Some(rest) = packet.strip_prefix(start) {
                return serde_json::from_str(rest).unwrap_or_else(|_| panic!("{packet}"));
            }
        }
    }
}

#[tokio::test]
async fn acks_answer_callbacks_with_the_same_body() {
    let server = Server::start().await;
    let mut sio = Sio::connect(&server).await;
    sio.send(r#"421["device_online",{"device_id":"d"}]"#).await;
    let ack = sio.wait("42").await;
    assert_eq!(ack[0], "device_online_ack");
    assert_eq!(sio.wait("431").await[0], ack[1]);
    sio.send(r#"427["data_update",{"device_id":"d","table_name":"t","record_id":1,"new_data":{"p": 1.50}}]"#).await;
    let (mut event, mut broadcast) = (None, false);
    let callback = loop {
        let packet = sio.next().await;
        if let Some(body) = packet.strip_prefix("437") {
            break serde_json::from_str::<Value>(body).unwrap();
        }
        broadcast |= packet.starts_with("42[\"data_update\"");
        if packet.starts_with("42[\"acknowledged\"") {
            event = Some(serde_json::from_str::<Value>(&packet[2..]).unwrap()[1].clone());
        }
    };
    assert_eq!((Some(&callback[0]), &callback[0]["seq"]), (event.as_ref(), &json!(1)));
    if !broadcast {
        assert!(sio.next().await.contains(r#""new_data":{"p": 1.50}"#), "the client's own bytes");
    }
    // An error answers the callback too.
    sio.send(r#"428["data_update",{"device_id":"d"}]"#).await;
    assert_eq!(sio.wait("438").await[0]["error_code"], "2004");
}

#[tokio::test]
async fn bad_packets_are_answered_and_the_connection_stays() {
    let server = Server::start().await;
    let mut sio = Sio::connect(&server).await;
    for bad in
        ["42{", "42[", "42[\"heartbeat\",", "4x", "42[7]", "451-[\"heartbeat\",{\"_placeholder\":true,\"num\":0}]"]
    {
        sio.send(bad).await;
        let error = sio.wait("42").await;
        assert_eq!((&error[0], &error[1]["error_code"]), (&json!("error"), &json!("2004")), "{bad}");
    }
    sio.send(r#"42["heartbeat",{"device_id":"d"}]"#).await;
    assert_eq!(sio.wait("42").await[0], "heartbeat_ack");
}

#[tokio::test]
async fn a_refused_connect_carries_the_code() {
    let server = Server::start().await;
    for auth in ["40", "40{\"token\":\"x\"}", "40[]"] {
        let mut sio = Sio::open(&server, "EIO=4").await;
        sio.send(auth).await;
        let refusal = sio.wait("44").await;
        assert!(refusal["message"].as_str().unwrap().starts_with("3001: "), "{refusal}");
        assert_eq!(refusal["data"]["error_code"], "3001");
        // Nothing is heard before the connect.
        sio.send(r#"42["heartbeat",{"device_id":"d"}]"#).await;
        sio.send("40/admin,").await;
        assert!(sio.next().await.starts_with("44/admin,"));
    }
}

#[tokio::test]
async fn old_clients_come_with_their_token_in_the_query() {
    let server = Server::start().await;
    let mut sio = Sio::open(&server, &format!("EIO=3&token={}", server.admin())).await;
    assert_eq!(sio.next().await, "40");
    sio.send(r#"42["heartbeat",{"device_id":"d"}]"#).await;
    assert_eq!(sio.wait("42").await[0], "heartbeat_ack");
    let mut refused = Sio::open(&server, "EIO=3").await;
    assert!(refused.next().await.starts_with("44\"3001: "));
}

#[tokio::test]
async fn broadcasts_cross_the_transports_in_order() {
    let server = Server::start().await;
    let mut sio = Sio::connect(&server).await;
    let mut ws = server.device("d").await;
    for i in 0..600 {
        ws.send("data_update", json!({"device_id": "d", "table_name": "t", "record_id": i, "new_data": {}})).await;
    }
    for i in 0..600 {
        let event = sio.wait("42").await;
        assert_eq!((&event[0], &event[1]["record_id"]), (&json!("data_update"), &json!(i)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_is_closed_and_the_others_go_on() {
    let server = Server::start().await;
    let (mut stalled, mut reader) = (Sio::connect(&server).await, Sio::connect(&server).await);
    stalled.send(r#"42["device_online",{"device_id":"s"}]"#).await;
    while !stalled.next().await.starts_with("42[\"device_online_ack\"") {}
    let mut writer = server.device("w").await;
    let big = "x".repeat(100_000);
    for i in 0..200 {
        writer.update("w", "t", i, json!({"big": big})).await;
        writer.wait("data_update").await;
        let event = reader.wait("42").await;
        assert_eq!((&event[0], &event[1]["record_id"]), (&json!("data_update"), &json!(i)));
    }
    let sessions = server.rest("GET", "/system/network", None).await.1["active_connections"].clone();
    assert_eq!(sessions, 2, "the writer and the reader");
    // What it did get is a beginning, without a gap.
    let mut got = 0;
    while let Ok(Some(Ok(message))) = timeout(PATIENCE, stalled.0.next()).await {
        if message.to_text().is_ok_and(|t| t.starts_with("42[\"data_update\"")) {
            assert!(message.to_text().unwrap().contains(&format!("\"record_id\":{got},")));
            got += 1;
        }
    }
    assert!(got < 200, "{got}");
}
