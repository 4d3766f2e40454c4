//! `tillsync load` across the loss of the leader, and a second time.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Dev, PATIENCE, both, csv, succeeds, tillsync};

const LINES: usize = 4_000;

fn load(dev: &Dev, file: &str, table: &str) -> Command {
    let mut command = tillsync();
    command.arg("load").arg(dev.path(file)).args(["--table", table, "--key", "id", "--url", &dev.url_flag()]);
    command.arg("--data").arg(dev.data());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_killed_during_a_load_loses_and_doubles_nothing() {
    let dev = Dev::start(&[]);
    csv(&dev.path("orders.csv"), LINES);
    let leader = dev.ready().await[0].leader.unwrap() as usize;
    let child = load(&dev, "orders.csv", "orders").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (rest, urls, end) = (dev.rest(), dev.urls(), Instant::now() + PATIENCE);
    while rest.status(&urls[0]).await.unwrap().head_seq < LINES as u64 / 4 {
        assert!(Instant::now() < end, "the load does not go on");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    dev.kill(&[leader]);
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}\n{}", both(&output), dev.logs());
    dev.ready().await;

    let feed = dev.same_feed("orders").await;
    let records: HashSet<i64> = feed.iter().map(|c| c.record_id).collect();
    assert_eq!((feed.len(), records.len()), (LINES, LINES), "none is lost, none is doubled");
    let one = feed.iter().find(|c| c.record_id == 7).unwrap();
    assert_eq!(one.data, serde_json::json!({"id": 7, "name": "Article 7, large", "price": 7.5, "zip": "07"}));
    dev.same_digest().await;

    let again = succeeds(&mut load(&dev, "orders.csv", "orders"));
    assert!(again.contains("nothing sent"), "{again}");
    assert_eq!(dev.same_feed("orders").await.len(), LINES);

    // A longer file: only the new lines go.
    csv(&dev.path("orders.csv"), LINES + 10);
    let more = succeeds(&mut load(&dev, "orders.csv", "orders"));
    assert!(more.contains("10 lines sent"), "{more}");
    assert_eq!(dev.same_feed("orders").await.len(), LINES + 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_sends_nothing() {
    let dev = Dev::start(&[]);
    for (text, says) in [
        (&b"no,b\n1,2\n"[..], "there is no column \"id\""),
        (b"id,b\n1,2\n2,3\n1,4\n", "line 4: column \"id\": 1 stands in line 2 already"),
        (b"id,b\n1,2\n2,\xff\n", "line 3: column \"b\": not UTF-8"),
    ] {
        std::fs::write(dev.path("bad.csv"), text).unwrap();
        let output = load(&dev, "bad.csv", "bad").output().unwrap();
        let said = both(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says) && said.contains("bad.csv") && said.lines().count() == 1, "{said}");
    }
    assert_eq!(dev.same_feed("bad").await, []);
}
