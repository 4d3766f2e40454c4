//! The codes that need several nodes, a disk or a process of their own to be real.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Instant;

use serde_json::{Value, json};
use tillsync::clock::{Clock, SystemClock};
use tillsync::model::error::Code;
use tillsync::token::{Class, KeyRing};

use crate::harness::{Dev, NODES, PATIENCE, tillsync};
use crate::single_node::{Alone, wait};

async fn ask(method: &str, url: String, token: &str, body: Option<Value>) -> reqwest::Result<(u16, Value)> {
    let request = reqwest::Client::new().request(method.parse().unwrap(), url).bearer_auth(token);
    let request = if let Some(body) = body { request.json(&body) } else { request };
    let response = request.send().await?;
    let status = response.status().as_u16();
    Ok((status, response.json().await?))
}

fn is(answer: &(u16, Value), code: Code) {
    let (status, body) = answer;
    assert_eq!((*status, &body["error_code"]), (code.row().http, &json!(code.to_string())), "{body}");
    assert_eq!(body["retry"], code.row().retry.name(), "{body}");
}

fn write() -> Option<Value> {
    Some(json!({"device_id": "d", "new_data": {"a": 1}}))
}

/// A cluster with a device `d`, its leader, and the others.
async fn cluster() -> (Dev, usize, Vec<usize>) {
    let dev = Dev::start(&["--no-restart"]);
    let leader = dev.ready().await[0].leader.unwrap() as usize;
    let url = format!("{}/device/register", dev.urls()[leader - 1]);
    assert_eq!(ask("POST", url, &dev.token(), Some(json!({"device_id": "d"}))).await.unwrap().0, 200);
    let others = (1..=NODES).filter(|n| *n != leader).collect();
    (dev, leader, others)
}

#[tokio::test]
async fn error_1001_connection_timeout_and_1002_network_unreachable() {
    // Between two batches nothing is in the leader's log alone: such a round shows only what is surely not written.
    for _ in 0..5 {
        if unknown_when_the_others_die().await > 0 {
            return;
        }
    }
    panic!("no command was ever on its way");
}

/// How many of eight writers on the leader cannot know what became of their command.
async fn unknown_when_the_others_die() -> usize {
    let (dev, leader, others) = cluster().await;
    let url = |path: &str| format!("{}{path}", dev.urls()[leader - 1]);
    let peer = url(&format!("/system/network?node={}", others[0]));
    assert_eq!(ask("GET", peer.clone(), &dev.token(), None).await.unwrap().0, 200);
    assert_eq!(ask("GET", url("/system/network?node=9"), &dev.token(), None).await.unwrap().0, 400);
    // Under load, so that some command is in the leader's log, and in nobody else's, when the others die.
    let (first, mut begun) = tokio::sync::mpsc::channel::<()>(1);
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let (url, token, first) = (url(&format!("/data/t/{n}")), dev.token(), first.clone());
            tokio::spawn(async move {
                loop {
                    let answer = ask("POST", url.clone(), &token, write()).await.unwrap();
                    if answer.0 != 200 {
                        return answer;
                    }
                    let _ = first.try_send(());
                }
            })
        })
        .collect();
    begun.recv().await.unwrap();
    dev.kill(&others);
    let mut unknown = 0;
    for writer in writers {
        let answer = writer.await.unwrap();
        // What had to wait behind it is surely not written.
        let code = if answer.1["error_code"] == "1001" { Code::Timeout } else { Code::NoMaster };
        is(&answer, code);
        unknown += usize::from(code == Code::Timeout);
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask("GET", peer.clone(), &dev.token(), None).await.unwrap();
        if answer.0 == 502 {
            is(&answer, Code::PeerUnreachable);
            break;
        }
        assert!(Instant::now() < end, "the dead node counts as reachable: {answer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (status, network) = ask("GET", url("/system/network"), &dev.token(), None).await.unwrap();
    assert_eq!((status, network["unreachable"].as_array().unwrap().len()), (200, 2), "{network}");
    unknown
}

#[tokio::test]
async fn error_2005_master_unavailable() {
    let (dev, leader, others) = cluster().await;
    dev.kill(&[leader, others[0]]);
    let url = |path: &str| format!("{}{path}", dev.urls()[others[1] - 1]);
    // At first it may not know that the leader is gone: then it cannot rule out that the command arrived.
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask("POST", url("/data/t/1"), &dev.token(), write()).await.unwrap();
        if answer.1["error_code"] == "2005" {
            is(&answer, Code::NoMaster);
            assert_eq!(answer.1["retry_after_ms"], 500);
            break;
        }
        is(&answer, Code::Timeout);
        assert!(Instant::now() < end);
    }
}

/// From now on the process can write to no file. It was told to live on when it tries.
fn no_more_writes(pid: u32) {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a limit for our own child, which was not waited for.
    let done = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_FSIZE, &none, std::ptr::null_mut()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[tokio::test]
async fn error_5001_database_connection_failed() {
    let alone = Alone::new();
    let mut command = tillsync();
    command.args(["serve", "--log-level", "info", "--config"]).arg(alone.config(1, ""));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: only an async-signal-safe call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let keys = KeyRing::read(&alone.path("token.key")).unwrap();
    let token = keys.issue("d", Class::Admin, SystemClock.now_ms(), 3_600).unwrap().0;
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", alone.ports[0]);
    let (end, body) = (Instant::now() + PATIENCE, json!({"device_id": "d"}));
    while !matches!(ask("POST", url("/device/register"), &token, Some(body.clone())).await, Ok((200, _))) {
        assert!(Instant::now() < end, "the node does not serve");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    no_more_writes(child.id());
    // What cannot be made durable is not acknowledged, whatever the client hears of it.
    let answer = ask("POST", url("/data/t/1"), &token, write()).await;
    assert!(!matches!(answer, Ok((200, _))), "{answer:?}");
    let mut said = String::new();
    let (mut out, mut logged) = (child.stderr.take().unwrap(), child.stdout.take().unwrap());
    // Read all the while: a full pipe would hold the node up.
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        logged.read_to_string(&mut log).map(|_| log)
    });
    let status = wait(child);
    out.read_to_string(&mut said).unwrap();
    let log = log.join().unwrap().unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("5001: ") && !said.contains("panicked"), "{said}");
    let folder = format!("data folder {}: the node stopped by itself: ", alone.data().display());
    assert!(said.contains(&folder) && said.contains("File too large"), "{said}");
    // There was nothing that it could have handed over.
    assert!(log.contains("stopping") && !log.contains("handing over"), "{log}");
}

#[test]
fn error_5001_a_damaged_folder() {
    let alone = Alone::new();
    alone.run_once();
    let engine = std::fs::read_dir(alone.data().join("engine")).unwrap();
    for file in engine.map(|f| f.unwrap().path()).filter(|f| f.is_file()) {
        let turned: Vec<u8> = std::fs::read(&file).unwrap().into_iter().map(|b| !b).collect();
        std::fs::write(&file, turned).unwrap();
    }
    let (code, said) = alone.fails(&alone.config(1, ""));
    assert!(code == 1 && said.contains("5001: "), "{said}");
}

#[test]
fn error_5004_configuration_error() {
    let alone = Alone::new();
    let (code, said) = alone.fails(&alone.config(1, "device_rate = \"fast\""));
    assert!(code == 2 && said.contains("5004: ") && said.contains("device_rate"), "{said}");
    assert!(!alone.data().exists(), "nothing is written");
}
