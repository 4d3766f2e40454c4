//! A node whose data was changed behind its back.

use prost::Message;
use tillsync::client::rest::RestClient;
use tillsync::model::tables::RowKey;
use tillsync::proto::Meta;
use tillsync::storage::{FolderIdentity, open};
use tokio::time::{Duration, sleep, timeout};

use crate::harness::PATIENCE;
use crate::processes::Processes;

/// Changes a row of a folder that no process has open.
async fn corrupt(processes: &Processes, id: u64) {
    let identity = FolderIdentity { node_id: id, cluster_id: "fleet".into() };
    let dir = processes.data(id);
    let stores = tokio::task::spawn_blocking(move || open(&dir, &identity).unwrap()).await.unwrap();
    let (mut tables, close) = (stores.tables, stores.close);
    let mut meta = Meta::decode(tables.get(&RowKey::Meta).unwrap().unwrap()).unwrap();
    meta.term ^= 1 << 20;
    tables.put(RowKey::Meta, meta.encode_to_vec().into());
    let applied = tables.applied();
    tables.commit(applied);
    close.close().await.unwrap();
}

async fn differs_from(rest: &RestClient, processes: &Processes, at: u64, node: u64) -> Option<u64> {
    let status = rest.status(&processes.url(at)).await.unwrap();
    status.nodes.into_iter().find(|member| member.node == node).unwrap().differs_from
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_rows_were_changed_stops_with_5001_and_its_folder_is_not_opened_again() {
    let mut processes = Processes::found(3).await;
    let rest = processes.rest();
    let record = serde_json::json!({"device_id": "till-1", "new_data": {"n": 1}});
    let device = serde_json::json!({"device_id": "till-1"});
    let _: serde_json::Value = rest.post(&processes.url(1), "/device/register", &device).await.unwrap();
    let _: serde_json::Value = rest.post(&processes.url(1), "/data/stock/1", &record).await.unwrap();
    let arrived = async {
        while rest.status(&processes.url(3)).await.unwrap().head_seq < 1 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, arrived).await.unwrap();
    assert!(processes.stop(3).await.success());
    corrupt(&processes, 3).await;
    processes.start(3);
    let ended = processes.ended(3).await;
    let said = processes.said(3);
    assert!(!ended.success() && said.contains("5001"), "{said}");
    assert!(said.contains("this node holds other data than nodes 1, 2 since log index"), "{said}");
    assert!(said.contains(&processes.data(3).display().to_string()), "{said}");

    // The others go on, and say so.
    for node in [1, 2] {
        let known = async {
            while differs_from(&rest, &processes, node, 3).await.is_none() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, known).await.unwrap();
        assert_eq!(rest.status(&processes.url(node)).await.unwrap().digest_verdict, None);
        assert_eq!(differs_from(&rest, &processes, node, 3 - node).await, None);
    }
    let (shown, text) = processes.cluster(&["status".into()]).await;
    assert!(shown && text.contains("node 3 DIFFERS"), "{text}");
    let record = serde_json::json!({"device_id": "till-1", "new_data": {"n": 2}});
    let _: serde_json::Value = rest.post(&processes.url(2), "/data/stock/2", &record).await.unwrap();

    // It stays out, and what it holds stays.
    processes.start(3);
    assert!(!processes.ended(3).await.success());
    let said = processes.said(3);
    assert!(said.contains("is kept for inspection and is not opened again: this node holds other data"), "{said}");
    assert!(processes.data(3).join("identity").exists());
}
