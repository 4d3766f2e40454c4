//! Watches who leads, who is master, and whether nodes that have come equally far hold the same.

use std::collections::HashMap;
use std::time::Duration;

use tillsync::client::rest::NodeStatus;
use tillsync::ids::RaftTerm;
use tokio::time::sleep;

use super::cluster::OperatedCluster;
use crate::history::Sample;
use crate::recorder::Recorder;

const EVERY: Duration = Duration::from_millis(200);

/// Until it is aborted.
pub(super) async fn watch(cluster: OperatedCluster, recorder: Recorder) {
    let mut boots: HashMap<usize, u64> = HashMap::new();
    let mut seen: HashMap<usize, (u64, Option<String>, u64)> = HashMap::new();
    let mut led = RaftTerm::default();
    loop {
        for (place, status) in cluster.statuses().await.into_iter().enumerate() {
            let Ok(status) = status else {
                // It may come back as another process, which begins from what was on its disk.
                *boots.entry(place).or_default() += 1;
                continue;
            };
            if status.leader == Some(status.node) && status.term > led {
                led = status.term;
                recorder.led(status.node, status.term.get());
            }
            let now = (status.digest_index, status.master.clone(), status.master_term.get());
            if seen.get(&place) != Some(&now) {
                seen.insert(place, now);
                let boot = boots.get(&place).copied().unwrap_or(0);
                recorder.sample(sample(&recorder, status, boot));
            }
        }
        sleep(EVERY).await;
    }
}

fn sample(recorder: &Recorder, status: NodeStatus, boot: u64) -> Sample {
    let (tick, us) = recorder.now();
    let knows = Sample::knows(&status);
    Sample {
        tick,
        us,
        node: status.node,
        boot,
        applied: status.digest_index,
        digest: status.digest,
        // The head belongs to another moment than the digest.
        head: 0,
        masters: status.master.iter().cloned().collect(),
        master: status.master.unwrap_or_default(),
        master_term: status.master_term.get(),
        electing: 0,
        settled: 0,
        version: status.cluster_version.unwrap_or(1),
        knows,
        ungated: 0,
    }
}
