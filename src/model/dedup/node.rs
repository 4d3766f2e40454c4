//! What each node's newest commands were answered: what makes a node's own retries exact.
//!
//! One row an entry, not one a command. A node never has a number in flight that is `ORIGIN_WINDOW` behind its newest
//! one, so whatever can still come again is among its last two windows.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::limits::ORIGIN_WINDOW;
use crate::proto::{Answer, AnsweredGroup, CommandId};

/// A node's answers.
#[derive(Debug, Default)]
struct NodeAnswers {
    /// By boot and number.
    outcomes: HashMap<(u64, u64), Bytes>,
    /// Boot, number and group, oldest first; at most two windows.
    order: VecDeque<(u64, u64, u64)>,
    newest: (u64, u64),
}

/// The rows `AnsweredGroup` in memory.
#[derive(Debug, Default)]
pub(in crate::model) struct NodeDedup {
    nodes: HashMap<u64, NodeAnswers>,
    /// How many answers of each group are still kept; without any, its row goes.
    kept: HashMap<u64, usize>,
    next_group: u64,
    /// Answers of the entry that is being applied, in order.
    fresh: Vec<Answer>,
}

/// A group as it is stored, and the groups that went with it.
pub(super) struct StoredGroup {
    pub(super) group: u64,
    pub(super) row: AnsweredGroup,
    pub(super) dropped: Vec<u64>,
}

/// Answers of a group, in bytes: it must fit one value of the storage engine.
const GROUP_BYTES: usize = 3_000;

impl NodeDedup {
    /// From a stored row; rows come in the order of their groups.
    pub(super) fn load(&mut self, group: u64, row: AnsweredGroup) {
        for answer in &row.answers {
            self.know(answer);
        }
        self.next_group = group;
        // A row outlives its older answers; those are forgotten as they were then.
        self.store(row);
    }

    fn know(&mut self, answer: &Answer) {
        let node = self.nodes.entry(answer.node).or_default();
        node.outcomes.insert((answer.boot, answer.number), answer.outcome.clone());
        if node.newest.0 != answer.boot || node.newest.1 < answer.number {
            node.newest = (answer.boot, answer.number);
        }
    }

    /// `None`: never seen. `Some(None)`: so far behind the newest of its boot that it was answered long ago.
    /// `Some(Some(outcome))`: what it was answered with.
    pub(super) fn find(&self, origin: &CommandId) -> Option<Option<Bytes>> {
        let node = self.nodes.get(&origin.node)?;
        if let Some(outcome) = node.outcomes.get(&(origin.boot, origin.number)) {
            return Some(Some(outcome.clone()));
        }
        let (boot, number) = node.newest;
        (boot == origin.boot && origin.number.saturating_add(2 * ORIGIN_WINDOW) <= number).then_some(None)
    }

    pub(super) fn remember(&mut self, origin: &CommandId, outcome: Bytes) {
        let answer = Answer { node: origin.node, boot: origin.boot, number: origin.number, outcome };
        self.know(&answer);
        self.fresh.push(answer);
    }

    /// The entry ends: its answers as rows.
    pub(super) fn seal(&mut self) -> Vec<StoredGroup> {
        let fresh = std::mem::take(&mut self.fresh);
        split(fresh).map(|row| self.store(row)).collect()
    }

    fn store(&mut self, row: AnsweredGroup) -> StoredGroup {
        let group = self.next_group;
        self.next_group += 1;
        self.kept.insert(group, row.answers.len());
        let mut dropped = Vec::new();
        for answer in &row.answers {
            let node = self.nodes.entry(answer.node).or_default();
            node.order.push_back((answer.boot, answer.number, group));
            if node.order.len() as u64 <= 2 * ORIGIN_WINDOW {
                continue;
            }
            let Some((boot, number, old)) = node.order.pop_front() else { continue };
            node.outcomes.remove(&(boot, number));
            let kept = self.kept.entry(old).or_default();
            *kept = kept.saturating_sub(1);
            if *kept == 0 {
                self.kept.remove(&old);
                dropped.push(old);
            }
        }
        StoredGroup { group, row, dropped }
    }
}

fn split(answers: Vec<Answer>) -> impl Iterator<Item = AnsweredGroup> {
    let mut parts: Vec<AnsweredGroup> = Vec::new();
    let mut bytes = GROUP_BYTES;
    for answer in answers {
        let size = answer.outcome.len() + 32;
        bytes += size;
        if bytes > GROUP_BYTES {
            parts.push(AnsweredGroup::default());
            bytes = size;
        }
        if let Some(part) = parts.last_mut() {
            part.answers.push(answer);
        }
    }
    parts.into_iter()
}
