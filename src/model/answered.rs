//! What each node's newest commands were answered: what makes a node's own retries exact.
//!
//! One row an entry and node, not one a command. A node never has a number in flight that is
//! `ORIGIN_WINDOW` behind its newest one, so whatever can still come again is among its last two windows.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::limits::ORIGIN_WINDOW;
use crate::proto::{Answer, AnsweredGroup, Origin};

/// A node's answers: by boot and number, and by group, oldest first.
#[derive(Debug, Default)]
struct Node {
    outcomes: HashMap<(u64, u64), Bytes>,
    groups: VecDeque<(u64, u64, Vec<u64>)>,
    next_group: u64,
    newest: (u64, u64),
}

/// The rows `AnsweredGroup` in memory.
#[derive(Debug, Default)]
pub(super) struct Answered {
    nodes: HashMap<u64, Node>,
    /// Answers of the entry that is being applied, by node, in order.
    fresh: Vec<(u64, AnsweredGroup)>,
}

/// A group as it is stored, and the groups that went with it.
pub(super) struct Stored {
    pub node: u64,
    pub group: u64,
    pub row: AnsweredGroup,
    pub dropped: Vec<u64>,
}

/// Answers of a group, in bytes: it must fit one value of the storage engine.
const GROUP_BYTES: usize = 3_000;

impl Answered {
    /// From a stored row; rows come in the order of their groups.
    pub fn load(&mut self, node: u64, group: u64, row: AnsweredGroup) {
        let at = self.nodes.entry(node).or_default();
        for answer in &row.answers {
            at.outcomes.insert((row.boot, answer.number), answer.outcome.clone());
            at.newest = (row.boot, answer.number);
        }
        at.groups.push_back((group, row.boot, row.answers.into_iter().map(|a| a.number).collect()));
        at.next_group = group + 1;
    }

    /// `None`: never seen. `Some(None)`: so far behind the newest of its boot that it was answered long ago.
    /// `Some(Some(outcome))`: what it was answered with.
    pub fn find(&self, origin: &Origin) -> Option<Option<Bytes>> {
        let node = self.nodes.get(&origin.node)?;
        if let Some(outcome) = node.outcomes.get(&(origin.boot, origin.number)) {
            return Some(Some(outcome.clone()));
        }
        let (boot, number) = node.newest;
        (boot == origin.boot && origin.number + 2 * ORIGIN_WINDOW <= number).then_some(None)
    }

    pub fn remember(&mut self, origin: &Origin, outcome: Bytes) {
        let node = self.nodes.entry(origin.node).or_default();
        node.outcomes.insert((origin.boot, origin.number), outcome.clone());
        if node.newest.0 != origin.boot || node.newest.1 < origin.number {
            node.newest = (origin.boot, origin.number);
        }
        let answer = Answer { number: origin.number, outcome };
        match self.fresh.iter_mut().find(|(node, group)| *node == origin.node && group.boot == origin.boot) {
            Some((_, group)) => group.answers.push(answer),
            None => self.fresh.push((origin.node, AnsweredGroup { boot: origin.boot, answers: vec![answer] })),
        }
    }

    /// The entry ends: its answers as rows.
    pub fn seal(&mut self) -> Vec<Stored> {
        let fresh = std::mem::take(&mut self.fresh);
        fresh
            .into_iter()
            .flat_map(|(node, group)| split(group).map(move |group| (node, group)))
            .map(|(node, row)| self.store(node, row))
            .collect()
    }

    fn store(&mut self, node_id: u64, row: AnsweredGroup) -> Stored {
        let node = self.nodes.entry(node_id).or_default();
        let group = node.next_group;
        node.next_group += 1;
        node.groups.push_back((group, row.boot, row.answers.iter().map(|a| a.number).collect()));
        let mut dropped = Vec::new();
        while let Some((old, boot, numbers)) = node.groups.front() {
            if node.outcomes.len() as u64 - (numbers.len() as u64) < 2 * ORIGIN_WINDOW {
                break;
            }
            for number in numbers {
                node.outcomes.remove(&(*boot, *number));
            }
            dropped.push(*old);
            node.groups.pop_front();
        }
        Stored { node: node_id, group, row, dropped }
    }
}

fn split(group: AnsweredGroup) -> impl Iterator<Item = AnsweredGroup> {
    let boot = group.boot;
    let mut parts: Vec<Vec<Answer>> = Vec::new();
    let mut bytes = GROUP_BYTES;
    for answer in group.answers {
        bytes += answer.outcome.len() + 16;
        if bytes > GROUP_BYTES {
            parts.push(Vec::new());
            bytes = answer.outcome.len() + 16;
        }
        if let Some(part) = parts.last_mut() {
            part.push(answer);
        }
    }
    parts.into_iter().map(move |answers| AnsweredGroup { boot, answers })
}
