//! A folder that was put back to an older copy, and a machine that was cloned.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{both, three_ports, tillsync};
use crate::processes::Processes;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => {
                fs::copy(&path, &to).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_a_folder_and_a_clone_end_with_a_sentence_and_disturb_nobody() {
    let mut nodes = Processes::found(3).await;
    assert!(nodes.stop(3).await.success());
    let (older, clone) = (nodes.path("older"), nodes.path("clone"));
    copy(&nodes.data(3), &older);
    copy(&nodes.data(3), &clone);
    nodes.start(3);
    nodes.ready().await;
    // A cloned machine: the same folder and number under another address. However often it is started.
    for _ in 0..2 {
        let ports = three_ports();
        let mut command = tillsync();
        command.args(["serve", "--config"]).arg(nodes.config(3));
        command.arg("--set").arg(format!("data_dir={}", clone.display()));
        command.args(["--set", &format!("gateway_listen=127.0.0.1:{ports}")]);
        command.args(["--set", &format!("raft_listen=127.0.0.1:{}", ports + 1)]);
        let ended = tokio::task::block_in_place(|| command.output()).unwrap();
        let said = both(&ended);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains("copy from before its start 2") && said.contains("new number"), "{said}");
    }
    nodes.ready().await;
    // The folder itself is put back.
    nodes.kill(3);
    fs::remove_dir_all(nodes.data(3)).unwrap();
    fs::rename(&older, nodes.data(3)).unwrap();
    for _ in 0..2 {
        nodes.start(3);
        let ended = nodes.ended(3).await;
        assert_eq!(ended.code(), Some(2), "{}", nodes.said(3));
    }
    assert!(nodes.said(3).contains("copy from before its start 2"), "{}", nodes.said(3));
}

/// The whole cluster is put back to older disks: nothing can tell its nodes, but devices come with cursors of what is
/// lost, and must not take other changes for what follows them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_of_a_lost_future_are_refused_also_when_the_cluster_has_written_on() {
    let mut nodes = Processes::found(1).await;
    let (rest, url) = (nodes.rest(), nodes.url(1));
    let _: Value = rest.post(&url, "/device/register", &json!({ "device_id": "till-1" })).await.unwrap();
    let write = async |price: u64| -> (u64, String) {
        let record = json!({ "device_id": "till-1", "new_data": { "price": price } });
        let ack: Value = rest.post(&url, "/data/stock/1", &record).await.unwrap();
        (ack["seq"].as_u64().unwrap(), ack["cursor"].as_str().unwrap().to_owned())
    };
    let (seq, kept) = write(1).await;
    assert!(nodes.stop(1).await.success());
    let older = nodes.path("older");
    copy(&nodes.data(1), &older);
    nodes.start(1);
    nodes.ready().await;
    let mut lost = Vec::new();
    for price in 2..5 {
        lost.push(write(price).await.1);
    }
    nodes.kill(1);
    fs::remove_dir_all(nodes.data(1)).unwrap();
    fs::rename(&older, nodes.data(1)).unwrap();
    nodes.start(1);
    nodes.ready().await;
    for price in 2..7 {
        write(price).await;
        for cursor in &lost {
            let error = rest.changes(&url, Some(cursor), &[]).await.unwrap_err().to_string();
            assert!(error.contains("1005") && error.contains("another history"), "{error}");
        }
    }
    let page = rest.changes(&url, Some(&kept), &[]).await.unwrap();
    assert_eq!((page.changes.len(), page.changes[0].seq), (5, seq + 1));
}
