//! The cluster as the gateway sees it: any node takes any request.
//!
//! - [`Cluster`] and what it speaks of: `api`
//! - `boot` puts a node together, `raft_cluster` is that node: it composes the rooms below
//! - `lifecycle`: how far this node has come with the cluster
//! - `propose`: a command's way to the leader, in order and exactly once
//! - `read_index`: answers linearizable reads
//! - [`elections`]: of the master, and who leads: `coordinator` runs them, `bridge` gives the lead to who reaches more nodes,
//!   `fast_failover` hurries when the leader's process has ended
//! - `membership`: who belongs to the cluster, where it is reached, and whether this node may take part
//! - `peers`: what a node knows of the others, and holds against them: clock, data, room

mod api;
pub mod boot;
pub mod elections;
mod leaving;
mod lifecycle;
pub(crate) mod membership;
pub(crate) mod peers;
mod propose;
pub mod raft_cluster;
mod read_index;
#[cfg(test)]
mod tests;

pub use self::api::{
    Cluster, ClusterStatus, CountSessions, MembershipChange, MembershipChanged, NodeInfo, PeerState, SharedCluster,
};
