//! The master's node is killed again and again while clients listen on every node: never two masters in one term,
//! terms only grow, the election log is one chain, and every surviving client is told.
//!
//! Three kills by default; `TILLSYNC_KILLS=20` is the full size.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tillsync::client::NodeUrl;
use tillsync::client::frame::ws_frame;
use tillsync::client::link::event_of;
use tillsync::client::ws::WsSocket;
use tokio::task::JoinSet;

use crate::harness::{Dev, NODES, PATIENCE};

/// What the client on one node heard: term, master and when.
#[derive(Default)]
struct Heard {
    elected: Vec<(u64, String, Instant)>,
    /// Connections so far.
    sessions: usize,
}

type Journal = Arc<Mutex<Vec<Heard>>>;

/// Stays on its node, or comes back to it.
async fn listen(node: NodeUrl, place: usize, token: String, journal: Journal) {
    loop {
        let _ = session(&node, place, &token, &journal).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn session(
    node: &NodeUrl,
    place: usize,
    token: &str,
    journal: &Journal,
) -> Result<(), tillsync::client::ClientError> {
    let mut socket = WsSocket::connect(node, token).await?;
    let (id, priority) = (place + 1, 20 * (place + 1));
    // The first one wants to be master: a node's own device would be it again after a quick restart.
    let role = if id == NODES && journal.lock()[place].sessions == 0 { "master" } else { "client" };
    let ask = format!(r#"{{"device_id":"till-{id}","priority":{priority},"role":"{role}","subscribe":[]}}"#);
    socket.send(ws_frame("device_online", &ask)).await?;
    // Terms that one session is told of only grow. (The answer to `device_online` may be ahead of what its node has
    // told: it comes from the leader.)
    let mut last = 0;
    loop {
        let text = socket.next().await?;
        let event = event_of(&text).unwrap();
        match event.name.as_str() {
            "device_online_ack" => {
                journal.lock()[place].sessions += 1;
            }
            "master_elected" => {
                let term = event.number("term").unwrap();
                assert!(term > last, "till-{id} heard of term {term} after {last}");
                last = term;
                let master = event.text("new_master_id").unwrap().to_owned();
                journal.lock()[place].elected.push((term, master, Instant::now()));
            }
            _ => {}
        }
    }
}

/// Master and term, once all nodes agree, and the master's home is the leader.
async fn settled(dev: &Dev) -> (String, u64, usize) {
    let (rest, end) = (dev.rest(), Instant::now() + PATIENCE);
    loop {
        let statuses = dev.ready().await;
        let (master, term) = (statuses[0].master.clone(), statuses[0].master_term.get());
        if let Some(master) = master.filter(|m| statuses.iter().all(|s| s.master.as_ref() == Some(m))) {
            let device: Result<Value, _> = rest.get(&dev.urls()[0], &format!("/device/roles/{master}")).await;
            if let Ok(device) = device
                && device["is_active"] == true
                && device["home"].as_u64() == statuses[0].leader
            {
                return (master, term, usize::try_from(device["home"].as_u64().unwrap()).unwrap());
            }
        }
        assert!(Instant::now() < end, "leader and master do not come together: {statuses:?}\n{}", dev.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_masters_node_is_killed_again_and_again() {
    let kills: usize = std::env::var("TILLSYNC_KILLS").map_or(3, |n| n.parse().unwrap());
    let dev = Dev::start(&[]);
    dev.ready().await;
    let journal: Journal = Arc::new(Mutex::new((0..NODES).map(|_| Heard::default()).collect()));
    let mut listeners = JoinSet::new();
    for (place, node) in dev.urls().into_iter().enumerate() {
        listeners.spawn(listen(node, place, dev.token(), journal.clone()));
    }
    let connected = async {
        while journal.lock().iter().any(|heard| heard.sessions == 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.expect("the clients connect");
    for kill in 1..=kills {
        let (master, term, home) = settled(&dev).await;
        let sessions: Vec<usize> = journal.lock().iter().map(|heard| heard.sessions).collect();
        if kills > 4 {
            // `dev` leaves a node alone that dies again and again within 5 s of its start.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let at = Instant::now();
        dev.kill(&[home]);
        // Every client whose session lives is told of another master.
        let survivors: Vec<usize> = (0..NODES).filter(|place| place + 1 != home).collect();
        let told = async {
            loop {
                let all = {
                    let journal = journal.lock();
                    survivors.iter().all(|place| {
                        let heard = &journal[*place];
                        assert_eq!(heard.sessions, sessions[*place], "till-{} lost its session", place + 1);
                        heard.elected.iter().any(|(t, who, when)| *t > term && *who != master && *when > at)
                    })
                };
                if all {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = tokio::time::timeout(PATIENCE, told).await;
        assert!(told.is_ok(), "kill {kill}: not every client was told\n{}", dev.logs());
        // Its supervisor starts it again, and its client comes back.
        let back = async {
            while journal.lock()[home - 1].sessions == sessions[home - 1] {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.expect("the client of the killed node comes back");
    }
    settled(&dev).await;
    assert!(listeners.try_join_next().is_none(), "a listener failed");
    listeners.abort_all();
    // One master a term, in everybody's eyes.
    let mut masters: BTreeMap<u64, String> = BTreeMap::new();
    for heard in journal.lock().iter() {
        for (term, master, _) in &heard.elected {
            assert_eq!(masters.entry(*term).or_insert_with(|| master.clone()), master, "two masters in term {term}");
        }
    }
    assert!(masters.len() >= kills);
    // The log is the same on every node, and one chain.
    let rest = dev.rest();
    let mut logs: Vec<Value> = Vec::new();
    for url in dev.urls() {
        logs.push(rest.get(&url, "/sync/master-election-logs?limit=1000").await.unwrap());
    }
    assert!(logs.iter().all(|log| *log == logs[0]), "{logs:#?}");
    let mut chain = logs[0]["logs"].as_array().unwrap().clone();
    chain.reverse();
    assert!(chain.len() >= kills, "{chain:?}");
    for pair in chain.windows(2) {
        assert_eq!(pair[1]["previous_master_id"], pair[0]["new_master_id"], "{chain:#?}");
        assert!(pair[1]["term"].as_u64() > pair[0]["term"].as_u64(), "{chain:#?}");
    }
    for (term, master) in &masters {
        let row = chain.iter().find(|row| row["term"].as_u64() == Some(*term));
        assert_eq!(row.unwrap()["new_master_id"], master.as_str(), "what clients heard is what is logged");
    }
    dev.same_digest().await;
}
