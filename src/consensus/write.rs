//! What became of a write.

use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::raft::ClientWriteResult;

use super::types::TypeConfig;
use crate::ids::NodeId;
use crate::proto::Outcome;

/// What became of one batch of commands.
#[derive(Debug)]
pub enum Written {
    Applied(Vec<Outcome>),
    /// Surely not in the log.
    TurnedAway(TurnedAway),
    /// It may be in the log.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// Leadership is being handed to this node.
    Transfer {
        to: NodeId,
    },
    /// The leader has not heard a majority for a while.
    Lease,
    NotLeader {
        leader: Option<NodeId>,
    },
}

impl Written {
    pub(super) fn of(result: Option<ClientWriteResult<TypeConfig>>) -> Self {
        match result {
            Some(Ok(written)) => Self::Applied(written.data.0),
            Some(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Self::TurnedAway(match (forward.reason, forward.leader_id) {
                    (ForwardReason::LeadershipTransfer, Some(to)) => TurnedAway::Transfer { to },
                    (ForwardReason::LeaseExpired, _) => TurnedAway::Lease,
                    (_, leader) => TurnedAway::NotLeader { leader },
                })
            }
            Some(Err(_)) | None => Self::Unknown,
        }
    }
}
