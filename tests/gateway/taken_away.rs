//! A right that is taken away ends at every door, also where something was under way: who was connected is told to
//! forget the table, and gets nothing more of it.

use serde_json::{Value, json};
use tillsync::cluster::Cluster;
use tillsync::proto::command::Intent;
use tillsync::proto::{DataUpdate, DeviceOnline, Operation, Presence, Role};
use tillsync::token::Class;

use crate::harness::{Server, Ws};
use crate::transports::Poller;

/// What nobody may find who may not read `prices`.
const SECRET: &str = "secret-cost";

/// A shop where `prices` holds something, with a master that no session has to keep online.
async fn shop() -> (Server, Ws, String) {
    let server = Server::start().await;
    let master = DeviceOnline {
        device_id: "office".into(),
        role: Role::Master.into(),
        presence: Presence::Session.into(),
        ..DeviceOnline::default()
    };
    server.cluster.propose(Intent::DeviceOnline(master)).await.unwrap();
    let mut boss = server.device("boss").await;
    boss.update("boss", "prices", 1, json!({"cost": SECRET})).await;
    let token = server.token("till", Class::SalesAssistant);
    (server, boss, token)
}

async fn take_away(server: &Server) {
    let rights = json!({"tables": {"prices": "none"}});
    assert_eq!(server.rest("PUT", "/access/sales_assistant", Some(rights)).await.0, 200);
}

/// A change that may not be seen, then one that may.
async fn write_both(boss: &mut Ws) {
    boss.update("boss", "prices", 1, json!({"cost": SECRET, "n": 2})).await;
    boss.update("boss", "sales", 1, json!({"sum": 9})).await;
}

fn told_to_forget(told: &Value) {
    assert_eq!((&told["class"], &told["forget"]), (&json!("sales_assistant"), &json!(["prices"])), "{told}");
    assert_eq!(told["tables"], json!({"prices": "none", "*": "write"}));
}

/// Server-sent events.
struct Events {
    answer: reqwest::Response,
    came: String,
}

impl Events {
    async fn open(server: &Server, token: &str, resumed: Option<&str>) -> Self {
        let request = reqwest::Client::new().get(format!("http://{}/sync/changes", server.addr)).bearer_auth(token);
        let request = request.header("accept", "text/event-stream");
        let request = if let Some(id) = resumed { request.header("last-event-id", id) } else { request };
        Self { answer: request.send().await.unwrap(), came: String::new() }
    }

    /// The next event: its id, name and data. `None`: the stream ended. Comments are passed over.
    async fn next(&mut self) -> Option<(Option<String>, String, Value)> {
        loop {
            if let Some((event, rest)) = self.came.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.came = rest;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let Some(name) = field("event: ") else { continue };
                let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
                if name != "data_update" {
                    crate::schema::event_fits(&name, &data);
                }
                return Some((field("id: "), name, data));
            }
            let chunk =
                tokio::time::timeout(crate::harness::PATIENCE, self.answer.chunk()).await.expect("nothing came");
            self.came.push_str(std::str::from_utf8(&chunk.unwrap()?).unwrap());
        }
    }
}

#[tokio::test]
async fn an_event_stream_is_told_and_gets_nothing_more() {
    let (server, mut boss, token) = shop().await;
    let mut stream = Events::open(&server, &token, None).await;
    let (id, name, _) = stream.next().await.unwrap();
    assert_eq!(name, "data_update", "who may do everything hears nothing of rights");
    take_away(&server).await;
    let (no_id, name, told) = stream.next().await.unwrap();
    assert_eq!((no_id, name.as_str()), (None, "access_changed"), "it moves no client's place");
    told_to_forget(&told);
    write_both(&mut boss).await;
    let (_, name, change) = stream.next().await.unwrap();
    assert_eq!((name.as_str(), &change["table_name"]), ("data_update", &json!("sales")), "{change}");
    // Who was away meanwhile is told when it comes.
    let mut again = Events::open(&server, &token, id.as_deref()).await;
    let (_, name, told) = again.next().await.unwrap();
    assert_eq!(
        (name.as_str(), &told["tables"]["prices"], &told["forget"]),
        ("access_changed", &json!("none"), &json!([]))
    );
    assert_eq!(again.next().await.unwrap().2["table_name"], "sales");
    // What is granted ends the streams: they lack what was there before. Each is told so first.
    server.rest("PUT", "/access/sales_assistant", Some(json!({"tables": {}}))).await;
    for stream in [&mut stream, &mut again] {
        let (_, name, told) = stream.next().await.unwrap();
        assert_eq!((name.as_str(), &told["resync"]), ("access_changed", &json!(["prices"])));
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn sessions_of_every_transport_are_told_and_get_nothing_more() {
    let (server, mut boss, token) = shop().await;
    let mut sessions = [server.ws(&token).await, server.socketio_as(&token).await];
    for session in &mut sessions {
        session.online("till").await;
    }
    let mut poller = Poller::connect_as(&server, &token).await;
    poller.post(r#"42["device_online",{"device_id":"till"}]"#).await;
    while poller.wait("42").await[0] != "device_online_ack" {}
    take_away(&server).await;
    write_both(&mut boss).await;
    for session in &mut sessions {
        told_to_forget(&session.wait("access_changed").await);
        assert_eq!(session.wait("data_update").await["table_name"], "sales");
    }
    loop {
        let event = poller.wait("42").await;
        match event[0].as_str().unwrap() {
            "access_changed" => told_to_forget(&event[1]),
            "data_update" => {
                assert_eq!(event[1]["table_name"], "sales");
                break;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_is_asked_for_afterwards_is_refused_at_every_door() {
    let (server, _boss, token) = shop().await;
    let mut sessions = [server.ws(&token).await, server.socketio_as(&token).await];
    let ask = json!({"device_id": "till", "table_name": "prices", "record_id": 1});
    let doors = ["/data/prices/1", "/data/prices/1/history", "/sync/changes?limit=1000"];
    for session in &mut sessions {
        session.online("till").await;
        assert_eq!(session.call("data_request", ask.clone(), "data_response").await["data"]["cost"], SECRET);
    }
    for path in doors {
        assert!(server.rest_as(&token, "GET", path, None).await.1.to_string().contains(SECRET), "{path}");
    }
    take_away(&server).await;
    for session in &mut sessions {
        assert_eq!(session.call("data_request", ask.clone(), "error").await["error_code"], "3003");
        for sync in
            [json!({"device_id": "till"}), json!({"device_id": "till", "sync_type": "incremental", "cursor": "1.0"})]
        {
            let page = session.call("sync_request", sync, "sync_response").await;
            assert_eq!((&page["has_more"], page.to_string().contains(SECRET)), (&json!(false), false), "{page}");
            let complete = json!({"device_id": "till", "sync_id": page["sync_id"], "cursor": page["cursor"]});
            session.call("sync_complete", complete, "sync_complete_ack").await;
        }
    }
    for path in doors {
        let (status, answer) = server.rest_as(&token, "GET", path, None).await;
        assert!(!answer.to_string().contains(SECRET), "{path}: {answer}");
        assert_eq!(status, if path.starts_with("/data") { 403 } else { 200 }, "{path}");
    }
}

/// More than a socket and its reader take in by themselves: pages wait for the reader.
const RECORDS: i64 = 30;
const RECORD: usize = 250_000;

#[tokio::test]
async fn a_full_sync_that_is_under_way_goes_on_without_the_table() {
    let (server, _boss, token) = shop().await;
    let put = async |table: &str, record_id: i64, data: Value| {
        let (table_name, device_id) = (table.to_owned(), "boss".to_owned());
        let (operation, data) = (Operation::Insert.into(), data.to_string().into());
        let update = DataUpdate { device_id, table_name, record_id, operation, data, ..DataUpdate::default() };
        server.cluster.propose(Intent::DataUpdate(update)).await.unwrap();
    };
    // Tables go out in the order in which they were made: `costs` comes last.
    for n in 0..RECORDS {
        put("sales", n, json!({"text": "x".repeat(RECORD)})).await;
    }
    put("costs", 1, json!({"cost": SECRET, "of": "costs"})).await;
    let mut till = server.ws_with_little_room(&token).await;
    till.online("till").await;
    let first = till.call("sync_request", json!({"device_id": "till"}), "sync_response").await;
    assert_eq!(first["has_more"], true);
    let rights = json!({"tables": {"costs": "none"}});
    assert_eq!(server.rest("PUT", "/access/sales_assistant", Some(rights)).await.0, 200);
    let (mut records, mut more) = (first["changes"].as_array().unwrap().len(), true);
    while more {
        let (event, page) = till.either(&["sync_response", "sync_error"]).await;
        assert_eq!(event, "sync_response", "{page}");
        assert!(!page.to_string().contains("costs"), "a page holds what may not be read any more");
        (records, more) = (records + page["changes"].as_array().unwrap().len(), page["has_more"] == true);
    }
    assert_eq!(records, RECORDS as usize + 1, "all that may be read: the sales, and one price");
    assert_eq!(till.wait("access_changed").await["forget"], json!(["costs"]));
}
