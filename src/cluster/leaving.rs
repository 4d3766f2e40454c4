//! A node that stops hands over what it has first.

use std::time::Duration;

use tokio::time::Instant;

use super::Cluster;
use super::raft_cluster::RaftCluster;
use crate::proto::command::Intent;
use crate::proto::{DeviceShutdown, Principal};

impl RaftCluster {
    /// Before this node stops: its own device is offline, and somebody else leads, if anybody can. Clients' requests
    /// wait meanwhile, they do not fail.
    pub async fn leave(&self, node_device: &str, within: Duration) {
        if self.lifecycle.has_ended() {
            // It is no part of the cluster: there is nothing to hand over, and nobody to take it.
            return;
        }
        let left = tokio::time::timeout(within, async {
            let me = self.node_id();
            let here = self.replica().state().device(node_device).is_some_and(|d| d.is_active && d.home == me.get());
            if here {
                let reason = "the node is shutting down".into();
                let shutdown = DeviceShutdown { device_id: node_device.into(), reason };
                let said = Cluster::propose(self, Intent::DeviceShutdown(shutdown)).await;
                tracing::debug!(?said, "the node's device said goodbye");
            }
            if self.node.leading().is_none() || self.node.view().voters.len() == 1 {
                return;
            }
            match self.membership.transfer_target_soon(Instant::now() + within).await {
                Ok(to) => {
                    let node = Principal { sub: node_device.to_owned(), ..Principal::default() };
                    self.membership.give_role(to, "its node is shutting down", &node).await;
                    let handed = self.membership.transfer_leadership(to, Instant::now() + within).await;
                    tracing::info!(to = to.get(), ?handed, "leadership was handed over");
                }
                Err(why) => tracing::info!(?why, "leadership stays until this node is gone"),
            }
        });
        if left.await.is_err() {
            tracing::info!("handing over took too long");
        }
    }
}
