//! What the room on the nodes' disks allows the cluster to write.
//!
//! An entry is on the disks of all voters, so it makes no difference through which node it comes. One full disk stops
//! nothing: the node ends when nothing fits any more, and the others go on. But those that are left must be a majority.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::ids::NodeId;
use crate::proto::DiskStatus;
use crate::storage::room::{DiskRoom, RoomState, megabytes};

/// A node's room, as far as it is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeRoom {
    pub node: NodeId,
    pub voter: bool,
    pub reachable: bool,
    /// Bytes and what they allow; `None`: it never said, or is of an older version.
    pub free: Option<(u64, RoomState)>,
}

impl NodeRoom {
    fn state(&self) -> RoomState {
        self.free.map_or(RoomState::Plenty, |(_, state)| state)
    }
}

/// What all nodes' room allows. Bulk loads wait for every node; other writes for a majority that can take them.
fn allowed(nodes: &[NodeRoom]) -> RoomState {
    let voters = || nodes.iter().filter(|node| node.voter);
    let full = voters().filter(|node| node.reachable && node.state() == RoomState::Full).count();
    let can_take = voters().filter(|node| node.reachable && node.state() != RoomState::Full).count();
    if full > 0 && can_take <= voters().count() / 2 {
        RoomState::Full
    } else if nodes.iter().any(|node| node.reachable && node.state() != RoomState::Plenty) {
        RoomState::Low
    } else {
        RoomState::Plenty
    }
}

/// Whose disks they are, for whoever is refused.
fn reason(state: RoomState, nodes: &[NodeRoom]) -> Option<String> {
    let short =
        nodes.iter().filter(|node| node.reachable && (node.state() == RoomState::Full || state == RoomState::Low));
    let each: Vec<String> = short
        .filter(|node| node.state() != RoomState::Plenty)
        .filter_map(|node| Some(format!("node {} has {} MiB left", node.node, megabytes(node.free?.0))))
        .collect();
    match state {
        RoomState::Plenty => None,
        RoomState::Low => Some(format!("disks are low ({}): bulk loads wait until there is room", each.join(", "))),
        RoomState::Full => {
            Some(format!("disks are full ({}): only deletes are taken until there is room", each.join(", ")))
        }
    }
}

/// The node's own room, and what all rooms allow.
pub(crate) struct SharedRoom {
    own: Arc<DiskRoom>,
    /// A [`RoomState`], read for each write.
    allowed: AtomicU8,
    why: Mutex<Option<String>>,
}

impl SharedRoom {
    pub(crate) fn new(own: Arc<DiskRoom>) -> Self {
        Self { own, allowed: AtomicU8::new(RoomState::Plenty as u8), why: Mutex::default() }
    }

    pub(crate) fn allowed(&self) -> RoomState {
        let now = self.allowed.load(Ordering::Relaxed);
        RoomState::ALL.into_iter().find(|state| *state as u8 == now).unwrap_or_default()
    }

    pub(crate) fn why(&self) -> Option<String> {
        self.why.lock().clone()
    }

    /// This node's, by what was measured last.
    pub(crate) fn own(&self) -> Option<(u64, RoomState)> {
        Some((self.own.free()?, self.own.state()))
    }

    /// The same, as the other nodes are told.
    pub(crate) fn own_status(&self) -> Option<DiskStatus> {
        let (free, state) = self.own()?;
        Some(DiskStatus { free, low: state == RoomState::Low, full: state == RoomState::Full })
    }

    /// Decides anew, and tells the operator what has changed.
    pub(crate) fn judge(&self, nodes: &[NodeRoom]) {
        let state = allowed(nodes);
        let why = reason(state, nodes);
        (*self.why.lock()).clone_from(&why);
        let before = self.allowed();
        self.allowed.store(state as u8, Ordering::Relaxed);
        match (before, state) {
            (before, state) if before == state => {}
            (RoomState::Full, _) => tracing::info!("devices can write again: most of the nodes have room"),
            (_, RoomState::Full) => {
                tracing::warn!("devices are refused with 5003: {}", why.unwrap_or_default());
            }
            _ => {}
        }
    }
}

/// What a node said of its disk.
pub(crate) fn room_said(disk: &DiskStatus) -> (u64, RoomState) {
    let state = match (disk.full, disk.low) {
        (true, _) => RoomState::Full,
        (false, true) => RoomState::Low,
        (false, false) => RoomState::Plenty,
    };
    (disk.free, state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A voter's room by a letter: p(lenty), l(ow), f(ull), u(nknown), and in capitals what cannot be reached.
    fn rooms(text: &str) -> Vec<NodeRoom> {
        let room = |(at, letter): (usize, char)| {
            let free = match letter.to_ascii_lowercase() {
                'p' => Some((9_000 * MIB, RoomState::Plenty)),
                'l' => Some((900 * MIB, RoomState::Low)),
                'f' => Some((90 * MIB, RoomState::Full)),
                _ => None,
            };
            NodeRoom { node: NodeId(at as u64 + 1), voter: true, reachable: letter.is_ascii_lowercase(), free }
        };
        text.chars().enumerate().map(room).collect()
    }

    #[test]
    fn devices_are_refused_only_where_no_majority_has_room() {
        use RoomState::{Full, Low, Plenty};
        for (nodes, state) in [
            ("p", Plenty),
            ("l", Low),
            ("f", Full),
            ("u", Plenty),
            ("ppp", Plenty),
            ("lpp", Low),
            ("lll", Low),
            ("fpp", Low),
            ("fpl", Low),
            ("ffp", Full),
            ("fff", Full),
            ("fuu", Low),
            // Who is away takes nothing: of the two that are left one must not be lost.
            ("fpP", Full),
            ("fPP", Full),
            ("lpP", Low),
            ("pPP", Plenty),
            // What a node said before it went away is no news.
            ("ppF", Plenty),
            ("ppL", Plenty),
            ("fpF", Full),
            ("ffppp", Low),
            ("fffpp", Full),
            ("fpppP", Low),
            ("ffppP", Full),
            ("pp", Plenty),
            ("fp", Full),
        ] {
            assert_eq!(allowed(&rooms(nodes)), state, "{nodes}");
        }
        let mut learner = rooms("pppf");
        learner[3].voter = false;
        assert_eq!(allowed(&learner), Low);
    }

    #[test]
    fn whose_disk_it_is_is_said() {
        let room = SharedRoom::new(DiskRoom::unbounded());
        assert_eq!((room.own(), room.own_status(), room.why()), (None, None, None));
        room.judge(&rooms("flf"));
        assert_eq!(room.allowed(), RoomState::Full);
        let full = "disks are full (node 1 has 90 MiB left, node 3 has 90 MiB left): only deletes are taken until there \
                    is room";
        assert_eq!(room.why().as_deref(), Some(full));
        room.judge(&rooms("flp"));
        let low =
            "disks are low (node 1 has 90 MiB left, node 2 has 900 MiB left): bulk loads wait until there is room";
        assert_eq!((room.allowed(), room.why().as_deref()), (RoomState::Low, Some(low)));
        room.judge(&rooms("ppp"));
        assert_eq!((room.allowed(), room.why()), (RoomState::Plenty, None));
    }

    #[test]
    fn a_nodes_own_room_is_told_as_it_is() {
        for (free, state) in [(5, RoomState::Full), (50, RoomState::Low), (500, RoomState::Plenty)] {
            let thresholds = crate::storage::room::RoomThresholds { low: 100, min: 10 };
            let own = DiskRoom::measured("d".into(), thresholds, Box::new(move || Ok(free)));
            own.measure();
            let room = SharedRoom::new(own);
            assert_eq!(room.own_status().map(|disk| room_said(&disk)), Some((free, state)));
        }
    }
}
