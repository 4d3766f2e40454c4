//! Rights of classes to tables, at every door: whatever is set and asked, no table's data reaches who may not read it.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tillsync::cluster::Cluster;
use tillsync::ids::RecordId;
use tillsync::proto::command::Intent;
use tillsync::proto::{AccessPut, DataUpdate, DeviceOnline, Operation, PolicyPut, Presence, ResolutionMethod, Role};
use tillsync::token::Class;

use crate::harness::{Server, Ws};
use crate::socketio::Sio;

/// Of `b`, conflicts wait for a decision. `open` is what everyone may always read.
const TABLES: [&str; 3] = ["a", "b", "c"];
const OPEN: &str = "open";

#[tokio::test]
async fn a_class_reads_and_writes_what_it_may() {
    let server = Server::start().await;
    let mut boss = server.device("boss").await;
    boss.update("boss", "prices", 1, json!({"cost": 3})).await;
    boss.update("boss", "sales", 1, json!({"sum": 9})).await;
    let token = server.token("till", Class::SalesAssistant);
    let mut till = server.ws(&token).await;
    till.online("till").await;
    till.none_for("till", "access_changed").await;
    let rights = json!({"tables": {"prices": "none", "*": "read", "sales": "write"}, "create_tables": false});
    let begun = Instant::now();
    let (status, set) = server.rest("PUT", "/access/sales_assistant", Some(rights)).await;
    assert_eq!((status, &set["tables"]["prices"], &set["set_by"]), (200, &json!("none"), &json!("admin")));
    let told = till.wait("access_changed").await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((&told["forget"], &told["resync"]), (&json!(["prices"]), &json!([])));
    assert_eq!(told["tables"], json!({"prices": "none", "sales": "write", "*": "read"}));
    // Whoever comes later is told as well, once.
    let mut later = server.ws(&token).await;
    later.online("till").await;
    assert_eq!(later.wait("access_changed").await["tables"], told["tables"]);
    later.online("till").await;
    later.none_for("till", "access_changed").await;
    // Others hear nothing of it.
    boss.none_for("boss", "access_changed").await;
    for (table, may_read, may_write) in [("prices", false, false), ("stock", true, false), ("sales", true, true)] {
        let ask = json!({"device_id": "till", "table_name": table, "record_id": 1});
        let event = if may_read { "data_response" } else { "error" };
        let answer = till.call("data_request", ask, event).await;
        let expected = if may_read { json!(null) } else { json!("3003") };
        assert_eq!(answer.get("error_code").cloned().unwrap_or_default(), expected, "{table}: {answer}");
        let write = json!({"device_id": "till", "table_name": table, "record_id": 1, "new_data": {"v": 1}});
        let event = if may_write { "acknowledged" } else { "error" };
        let answer = till.call("data_update", write.clone(), event).await;
        let (status, rest) = server.rest_as(&token, "POST", &format!("/data/{table}/1"), Some(write)).await;
        if !may_write {
            assert_eq!((&answer["error_code"], &answer["field"]), (&json!("3003"), &json!("table_name")));
            assert_eq!((status, &rest["error_code"], &rest["field"]), (403, &json!("3003"), &json!("table_name")));
        }
    }
    boss.update("boss", "prices", 1, json!({"cost": 4})).await;
    boss.update("boss", "sales", 2, json!({"sum": 1})).await;
    loop {
        let heard = till.wait("data_update").await;
        assert_ne!(heard["table_name"], "prices", "{heard}");
        if heard["record_id"] == 2 {
            break;
        }
    }
    till.none_for("till", "data_update").await;
    let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=access_change", None).await;
    assert_eq!((&logs["logs"][0]["device_id"], &logs["pagination"]["total"]), (&json!("admin"), &json!(1)));
    let (_, logs) = server.rest_as(&token, "GET", "/sync/audit-logs?event_type=data_update&limit=100", None).await;
    assert!(!logs.to_string().contains("prices/"), "{logs}");
}

#[tokio::test]
async fn what_was_granted_since_comes_with_a_full_sync_and_no_cursor_hides_it() {
    let server = Server::start().await;
    let mut boss = server.device("boss").await;
    boss.call("role_change", json!({"device_id": "boss", "new_role": "master"}), "role_change_ack").await;
    let none = Some(json!({"tables": {"prices": "none"}}));
    server.rest("PUT", "/access/sales_assistant", none).await;
    boss.update("boss", "prices", 1, json!({"cost": 3})).await;
    let token = server.token("till", Class::SalesAssistant);
    let mut till = server.ws(&token).await;
    till.online("till").await;
    let full = till.call("sync_request", json!({"device_id": "till"}), "sync_response").await;
    assert_eq!((&full["changes"], &full["total"]), (&json!([]), &json!(0)));
    let complete = json!({"device_id": "till", "sync_id": full["sync_id"], "cursor": full["cursor"]});
    till.call("sync_complete", complete, "sync_complete_ack").await;
    let cursor = full["cursor"].clone();
    let path = format!("/sync/changes?cursor={}", cursor.as_str().unwrap());
    assert_eq!(server.rest_as(&token, "GET", &path, None).await.0, 200);
    let url = format!("http://{}{path}", server.addr);
    let stream = reqwest::Client::new().get(url).bearer_auth(&token).header("accept", "text/event-stream");
    let mut stream = stream.send().await.unwrap();
    server.rest("PUT", "/access/sales_assistant", Some(json!({"tables": {}}))).await;
    assert_eq!(till.wait("access_changed").await["tables"]["prices"], "none", "when it came online");
    assert_eq!(till.wait("access_changed").await["resync"], json!(["prices"]));
    while stream.chunk().await.unwrap().is_some() {}
    let (status, error) = server.rest_as(&token, "GET", &path, None).await;
    assert_eq!((status, &error["error_code"]), (409, &json!("1005")));
    // A client that knows nothing of it asks for what changed, and gets everything.
    let ask = json!({"device_id": "till", "sync_type": "incremental", "cursor": cursor});
    let page = till.call("sync_request", ask, "sync_response").await;
    assert_eq!((&page["sync_type"], &page["changes"][0]["data"]), (&json!("full"), &json!({"cost": 3})));
    let mut again = server.ws(&token).await;
    again.call("device_online", json!({"device_id": "till", "cursor": cursor}), "device_online_ack").await;
    assert_eq!(again.wait("error").await["error_code"], "1005");
    boss.update("boss", "prices", 1, json!({"cost": 4})).await;
    assert_eq!(again.wait("data_update").await["new_data"], json!({"cost": 4}));
}

#[tokio::test]
async fn rights_are_for_admins_to_set_and_a_wrong_one_is_named() {
    let server = Server::start().await;
    let manager = server.token("m", Class::Manager);
    let put = |body: Value| Some(body);
    let (status, error) = server.rest_as(&manager, "PUT", "/access/admin", put(json!({"tables": {}}))).await;
    assert_eq!((status, &error["error_code"]), (403, &json!("3003")));
    for (path, body, field) in [
        ("/access/king", json!({"tables": {}}), "class"),
        ("/access/admin", json!({}), "tables"),
        ("/access/admin", json!({"tables": []}), "tables"),
        ("/access/admin", json!({"tables": {"t": "all"}}), "tables"),
        ("/access/admin", json!({"tables": {"t": 1}}), "tables"),
        ("/access/admin", json!({"tables": {" ": "read"}}), "tables"),
        ("/access/admin", json!({"tables": {"t": "read", "\u{7}": "read"}}), "tables"),
        ("/access/admin", json!({"tables": {}, "create_tables": "no"}), "create_tables"),
    ] {
        let (status, error) = server.rest("PUT", path, put(body.clone())).await;
        assert_eq!((status, &error["error_code"], &error["field"]), (400, &json!("2004"), &json!(field)), "{body}");
    }
    let (_, all) = server.rest_as(&manager, "GET", "/access", None).await;
    assert_eq!(all["classes"].as_array().unwrap().len(), 5);
    assert!(all["classes"].as_array().unwrap().iter().all(|c| c["tables"] == json!({"*": "write"})));
    let (_, own) = server.rest_as(&server.token("t", Class::SalesAssistant), "GET", "/access", None).await;
    assert_eq!(own["classes"].as_array().unwrap().len(), 1);
    assert_eq!(own["classes"][0]["class"], "sales_assistant");
    // An export is whole or it is none.
    assert_eq!(server.rest("GET", "/system/export/records", None).await.0, 200);
    server.rest("PUT", "/access/admin", put(json!({"tables": {"t": "none"}}))).await;
    for path in ["/system/export", "/system/export/records", "/system/export/changes", "/system/export/audit"] {
        assert_eq!(server.rest("GET", path, None).await.1["error_code"], "3003", "{path}");
    }
    // Nobody shuts the admins out for good.
    assert_eq!(server.rest("PUT", "/access/admin", put(json!({"tables": {}}))).await.0, 200);
    assert_eq!(server.rest("GET", "/system/export", None).await.0, 200);
}

/// A step of the random walk. Numbers of classes, tables and rights.
#[derive(Clone, Debug)]
enum Step {
    Put { class: usize, rights: [usize; 3], others: usize },
    Write { table: usize, record: i64 },
    Ask { class: usize, table: usize, record: i64, door: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..5usize, [0..3usize, 0..3usize, 0..3usize], 0..3usize)
            .prop_map(|(class, rights, others)| Step::Put { class, rights, others }),
        2 => (0..3usize, 1..4i64).prop_map(|(table, record)| Step::Write { table, record }),
        5 => (0..5usize, 0..3usize, 1..4i64, 0..13u8)
            .prop_map(|(class, table, record, door)| Step::Ask { class, table, record, door }),
    ]
}

const RIGHTS: [&str; 3] = ["none", "read", "write"];

struct Walk {
    server: Server,
    /// One of each class, by turns over `/ws` and Socket.IO.
    sessions: Vec<Ws>,
    tokens: Vec<String>,
    rights: [[usize; 3]; 5],
    others: [usize; 5],
    written: u64,
}

/// What nobody may find who may not read the table.
fn secret(table: &str) -> String {
    format!("secret-{table}-")
}

impl Walk {
    async fn start() -> Self {
        let server = Server::start().await;
        let master = DeviceOnline {
            device_id: "seed".into(),
            role: Role::Master.into(),
            presence: Presence::Session.into(),
            ..DeviceOnline::default()
        };
        server.cluster.propose(Intent::DeviceOnline(master)).await.unwrap();
        let policy = ResolutionMethod::Manual.into();
        let manual = PolicyPut { table_name: "b".into(), policy, by: "seed".into(), ..PolicyPut::default() };
        server.cluster.propose(Intent::PolicyPut(manual)).await.unwrap();
        let (mut sessions, mut tokens) = (Vec::new(), Vec::new());
        for (n, class) in Class::ALL.into_iter().enumerate() {
            let token = server.token(&format!("d{n}"), class);
            let mut session = if n % 2 == 0 { server.ws(&token).await } else { server.socketio_as(&token).await };
            session.online(&format!("d{n}")).await;
            sessions.push(session);
            tokens.push(token);
        }
        Self { server, sessions, tokens, rights: [[2; 3]; 5], others: [2; 5], written: 0 }
    }

    async fn write(&mut self, table: &str, record_id: i64) {
        self.written += 1;
        let data = json!({"v": format!("{}{}", secret(table), self.written)}).to_string().into();
        let update = DataUpdate {
            device_id: "seed".into(),
            table_name: table.into(),
            record_id,
            operation: Operation::Update.into(),
            data,
            ..DataUpdate::default()
        };
        self.server.cluster.propose(Intent::DataUpdate(update)).await.unwrap();
    }

    /// Everything that the sessions were sent by now holds nothing of what its class may not read, after the step or
    /// (`before`) before it.
    async fn look(&mut self, before: [[usize; 3]; 5], step: &Step) {
        self.write(OPEN, 1).await;
        let last = format!("{}{}\"", secret(OPEN), self.written);
        for (class, before) in before.iter().enumerate() {
            loop {
                let (event, data) = self.sessions[class].next().await.expect("the session goes on");
                let text = data.to_string();
                for (at, table) in TABLES.iter().enumerate() {
                    let may_read = self.rights[class][at].max(before[at]) >= 1;
                    assert!(may_read || !text.contains(&secret(table)), "{step:?}: class {class} got {event} {text}");
                }
                if event == "data_update" && text.contains(&last) {
                    break;
                }
            }
        }
    }

    fn holds(&self, class: usize, text: &str, what: &Step) {
        for (at, table) in TABLES.iter().enumerate() {
            let may_read = self.rights[class][at] >= 1;
            assert!(may_read || !text.contains(&secret(table)), "{what:?}: {text}");
        }
    }

    async fn rest(&self, class: usize, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
        let (status, body) = self.server.rest_as(&self.tokens[class], method, path, body).await;
        (status, body.to_string())
    }

    /// All pages of a sync.
    async fn sync(&mut self, class: usize, ask: Value) -> String {
        self.sessions[class].send("sync_request", ask).await;
        let mut all = String::new();
        loop {
            let page = self.sessions[class].wait("sync_response").await;
            all.push_str(&page.to_string());
            if page["has_more"] == false {
                return all;
            }
        }
    }

    async fn ask(&mut self, class: usize, table: usize, record: i64, door: u8, step: &Step) {
        let (name, device) = (TABLES[table], format!("d{class}"));
        let (reads, writes) = (self.rights[class][table] >= 1, self.rights[class][table] >= 2);
        let at = format!("/data/{name}/{record}");
        self.written += 1;
        let new_data = json!({"v": format!("{}{}", secret(name), self.written)});
        let mut update = json!({"device_id": device, "table_name": name, "record_id": record, "new_data": new_data});
        if record == 1 {
            update["base_version"] = json!(0);
        }
        let text = match door {
            0 => {
                let ask = json!({"device_id": device, "table_name": name, "record_id": record});
                let event = if reads { "data_response" } else { "error" };
                self.sessions[class].call("data_request", ask, event).await.to_string()
            }
            1 => {
                let all = self.sync(class, json!({"device_id": device})).await;
                let there = self.server.cluster.replica().state().version_of(name, RecordId(record)).is_some();
                assert!(!reads || !there || all.contains(&secret(name)), "{step:?} lacks in {all}");
                all
            }
            2 => {
                let ask = json!({"device_id": device, "sync_type": "incremental", "cursor": "1.0"});
                self.sync(class, ask).await
            }
            3 | 4 => {
                let path = if door == 3 { at } else { format!("{at}/history") };
                let (status, text) = self.rest(class, "GET", &path, None).await;
                assert_eq!(status, if reads { 200 } else { 403 }, "{step:?}: {text}");
                text
            }
            5 => self.rest(class, "GET", "/sync/changes?limit=1000", None).await.1,
            6 => {
                let (_, text) = self.rest(class, "GET", "/sync/conflicts?status=all&limit=1000", None).await;
                let listed: Value = serde_json::from_str(&text).unwrap();
                let rows = listed["conflicts"].as_array().unwrap().len();
                assert_eq!(listed["pagination"]["total"], rows, "{step:?}: hidden ones are not counted");
                text
            }
            7 => {
                let (_, logs) =
                    self.rest(class, "GET", "/sync/audit-logs?limit=1000&event_type=data_update", None).await;
                let hidden = TABLES.iter().zip(self.rights[class]).filter(|(_, right)| *right == 0);
                for (table, _) in hidden {
                    assert!(!logs.contains(&format!("{table}/")), "{step:?}: {logs}");
                }
                self.rest(class, "GET", "/sync/policies", None).await.1
            }
            8 => {
                self.sessions[class].send("data_update", update).await;
                let text = self.answer(class).await;
                assert_eq!(text.contains("\"3003\""), !writes, "{step:?}: {text}");
                text
            }
            9 => {
                let (status, text) = self.rest(class, "POST", &at, Some(update)).await;
                assert_eq!(status == 403, !writes, "{step:?}: {text}");
                text
            }
            10 => {
                let (status, text) = self.rest(class, "GET", "/system/export/records?limit=1000", None).await;
                let whole = class == 0 && self.rights[0].iter().chain(&self.others[..1]).all(|right| *right >= 1);
                assert_eq!(status == 200, whole, "{step:?}");
                text
            }
            11 => self.stream(class).await,
            _ => {
                let own = |c: &&std::sync::Arc<tillsync::proto::Conflict>| c.device_id == device;
                let open = self.server.cluster.replica().state().open_conflicts().find(own).map(|c| c.id);
                let Some(id) = open else { return };
                let writes = self.rights[class][1] >= 2;
                let decision = json!({"resolved_data": {"v": format!("{}{}", secret("b"), self.written)}});
                let path = format!("/sync/conflicts/{id}/resolve");
                let (status, text) = self.rest(class, "POST", &path, Some(decision)).await;
                assert_eq!(status, if writes { 200 } else { 403 }, "{step:?}: {text}");
                text
            }
        };
        self.holds(class, &text, step);
    }

    /// The answer to a `data_update`; other events stay.
    async fn answer(&mut self, class: usize) -> String {
        let session = &mut self.sessions[class];
        let (event, data) = session.either(&["acknowledged", "error"]).await;
        format!("{event} {data}")
    }

    /// A stream of events up to now.
    async fn stream(&mut self, class: usize) -> String {
        self.write(OPEN, 1).await;
        let last = format!("{}{}\"", secret(OPEN), self.written);
        let url = format!("http://{}/sync/changes", self.server.addr);
        let ask = reqwest::Client::new().get(url).bearer_auth(&self.tokens[class]);
        let mut stream = ask.header("accept", "text/event-stream").send().await.unwrap();
        let mut all = String::new();
        while !all.contains(&last) {
            let chunk = stream.chunk().await.unwrap().expect("the stream goes on");
            all.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        all
    }

    async fn take(&mut self, step: Step) {
        let before = self.rights;
        match &step {
            Step::Put { class, rights, others } => {
                let mut tables: serde_json::Map<String, Value> =
                    TABLES.iter().zip(rights).map(|(t, r)| ((*t).to_owned(), json!(RIGHTS[*r]))).collect();
                tables.insert(OPEN.into(), json!("write"));
                tables.insert("*".into(), json!(RIGHTS[*others]));
                let path = format!("/access/{}", Class::ALL[*class].name());
                let (status, answer) = self.server.rest("PUT", &path, Some(json!({"tables": tables}))).await;
                assert_eq!(status, 200, "{answer}");
                (self.rights[*class], self.others[*class]) = (*rights, *others);
            }
            Step::Write { table, record } => self.write(TABLES[*table], *record).await,
            Step::Ask { class, table, record, door } => self.ask(*class, *table, *record, *door, &step).await,
        }
        self.look(before, &step).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_tables_data_reaches_who_may_not_read_it(steps in prop::collection::vec(step(), 20..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut walk = Walk::start().await;
            for step in steps {
                walk.take(step).await;
            }
        });
    }
}

/// What stands in the log after the rights were changed is decided by them, whatever the node knew that proposed it.
#[tokio::test]
async fn a_write_of_a_node_that_has_not_heard_of_the_change_is_refused() {
    let server = Server::start().await;
    let mut sio = Sio::connect_as(&server, &server.token("till", Class::SalesAssistant)).await;
    sio.send(r#"42["device_online",{"device_id":"till"}]"#).await;
    sio.wait("42").await;
    let rights = AccessPut { class: 5, others: 2, by: "boss".into(), ..AccessPut::default() };
    let write = DataUpdate {
        device_id: "till".into(),
        table_name: "t".into(),
        record_id: 1,
        operation: Operation::Update.into(),
        class: 5,
        ..DataUpdate::default()
    };
    let put = server.cluster.propose(Intent::AccessPut(rights));
    let late = server.cluster.propose(Intent::DataUpdate(write));
    put.await.unwrap();
    assert_eq!(late.await.unwrap_err().code.number(), 3003);
    assert_eq!(server.head(), 0);
}
