//! A stolen till and a new one, on a cluster of real processes, by the commands that people use.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tillsync::client::ws::WsSocket;
use tillsync::clock::{Clock, SystemClock};
use tillsync::token::{Class, KeyRing};

use crate::harness::{Dev, both, succeeds, tillsync};

/// Runs a command on the cluster, with the admin's token out of its file.
fn run(dev: &Dev, words: &[&str]) -> String {
    tokio::task::block_in_place(|| {
        let mut command = tillsync();
        command.args(words).args(["--url", &dev.url_flag(), "--token-file"]).arg(dev.data().join("admin.token"));
        succeeds(&mut command)
    })
}

/// Reads until the server ends the session: what the last error said, and when it ended.
async fn ended(mut socket: WsSocket) -> (String, Instant) {
    let mut error = String::new();
    while let Ok(text) = socket.next().await {
        if text.starts_with(r#"{"event":"error""#) {
            error = text.to_string();
        }
    }
    (error, Instant::now())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_till_ends_on_every_node_and_its_class_loses_a_table_everywhere() {
    let dev = Dev::start(&[]);
    dev.ready().await;
    let keys = KeyRing::read(&dev.data().join("token.key")).unwrap();
    let issue = |sub: &str| keys.issue(sub, Class::SalesAssistant, SystemClock.now_ms(), 3_600).unwrap().0;
    let (stolen, other) = (issue("till"), issue("other"));
    let (mut sessions, mut others) = (Vec::new(), Vec::new());
    for url in dev.urls() {
        sessions.push(tokio::spawn(ended(WsSocket::connect(&url, &stolen).await.unwrap())));
        others.push(WsSocket::connect(&url, &other).await.unwrap());
    }
    let said = run(&dev, &["device", "revoke", "till"]);
    let done = Instant::now();
    assert!(said.contains("every token of till") && said.contains("never registered"), "{said}");
    for session in sessions {
        let (error, at) = session.await.unwrap();
        assert!(error.contains("\"3001\""), "{error}");
        assert!(at.saturating_duration_since(done) < Duration::from_secs(1));
    }
    for url in dev.urls() {
        assert!(WsSocket::connect(&url, &stolen).await.is_err());
    }
    // Why: the token is tried as well.
    let file = dev.path("till.token");
    std::fs::write(&file, &stolen).unwrap();
    let why = run(&dev, &["device", "why", "till", "--device-token-file", file.to_str().unwrap()]);
    assert!(why.contains("are refused, by ") && why.contains("3001"), "{why}");
    let why = run(&dev, &["device", "why", "other"]);
    assert!(why.contains("nothing keeps it out"), "{why}");
    // A right that is taken away is gone on every node within a second.
    let begun = Instant::now();
    let set = run(&dev, &["access", "set", "sales_assistant", "prices=none", "*=read", "--no-new-tables"]);
    let done = Instant::now();
    assert!(set.contains("prices: none") && set.contains("no new tables"), "{set}");
    for (socket, url) in others.iter_mut().zip(dev.urls()) {
        let told = loop {
            let text = socket.next().await.unwrap();
            if text.starts_with(r#"{"event":"access_changed""#) {
                break text.to_string();
            }
        };
        assert!(told.contains(r#""prices":"none""#), "{told}");
        let rest = tillsync::client::rest::RestClient::new(&other).unwrap();
        let error = rest.get::<Value>(&url, "/data/prices/1").await.unwrap_err().to_string();
        assert!(error.contains("3003"), "{error}");
    }
    assert!(done.elapsed() < Duration::from_secs(1), "{:?} {:?}", begun.elapsed(), done.elapsed());
    let listed = run(&dev, &["access", "ls"]);
    assert!(listed.lines().count() == 5 && listed.contains("prices: none"), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_till_is_let_in_whichever_nodes_it_and_the_person_ask() {
    let dev = Dev::start(&[]);
    dev.ready().await;
    let (urls, http) = (dev.urls(), reqwest::Client::new());
    let asked = http.post(format!("{}/device/pair", urls[0])).json(&json!({"device_id": "till-9"}));
    let asked: Value = asked.send().await.unwrap().json().await.unwrap();
    let (code, secret) = (asked["code"].as_str().unwrap(), asked["secret"].as_str().unwrap());
    let poll = async |node: usize| -> Value {
        let ask = http.get(format!("{}/device/pair/{code}", urls[node])).bearer_auth(secret);
        ask.send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(poll(1).await["status"], "waiting");
    let listed = run(&dev, &["device", "pair"]);
    assert!(listed.contains(code) && listed.contains("127.0.0.1") && !listed.contains(secret), "{listed}");
    let shown = format!("{}-{}", &code[..4].to_lowercase(), &code[4..]);
    let said = run(&dev, &["device", "pair", &shown, "--class", "sales_assistant"]);
    assert!(said.contains("till-9"), "{said}");
    // Two nodes are asked at once: one of them has the token.
    let (one, two) = tokio::join!(poll(1), poll(2));
    let tokens: Vec<&str> = [&one, &two].iter().filter_map(|answer| answer["token"].as_str()).collect();
    assert_eq!(tokens.len(), 1, "{one} {two}");
    for url in &urls {
        let mut socket = WsSocket::connect(url, tokens[0]).await.unwrap();
        let hello = json!({"event": "device_online", "data": {"device_id": "till-9"}});
        socket.send(hello.to_string()).await.unwrap();
        assert!(socket.next().await.unwrap().contains("device_online_ack"));
    }
    let said = run(&dev, &["device", "ls"]);
    assert!(said.contains("till-9"), "{said}");
    let said = run(&dev, &["device", "suspend", "till-9"]);
    assert!(said.contains("suspended"), "{said}");
    assert!(run(&dev, &["device", "why", "till-9"]).contains("it is suspended, by "));
    assert!(WsSocket::connect(&urls[2], tokens[0]).await.is_err());
    run(&dev, &["device", "resume", "till-9"]);
    run(&dev, &["device", "revoke", "till-9"]);
    let forgotten = run(&dev, &["device", "forget", "till-9"]);
    assert!(forgotten.contains("is forgotten"), "{forgotten}");
    assert!(!run(&dev, &["device", "ls"]).contains("till-9"));
    // A token in a file that is not there, and one that is given twice.
    let refused = tokio::task::block_in_place(|| {
        let flags = ["device", "ls", "--token-file", "/no/such", "--url", &dev.url_flag()];
        tillsync().args(flags).output().unwrap()
    });
    assert!(refused.status.code() == Some(2) && both(&refused).contains("/no/such"), "{refused:?}");
    let twice =
        tokio::task::block_in_place(|| tillsync().args(["device", "ls", "--token", "t", "--token-file", "f"]).output());
    assert_eq!(twice.unwrap().status.code(), Some(2));
    dev.same_digest().await;
}
