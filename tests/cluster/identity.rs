//! A folder that was put back to an older copy, and a machine that was cloned.

use std::fs;
use std::path::Path;

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
