//! The state and the one way to change it: [`State::apply`].

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use super::effect::Effect;
use super::error::{Code, Error};
use super::tables::{Key, Tables, TablesError, TablesRead, get_row};
use crate::proto::{Applied, Batch, Meta, Outcome, outcome};

/// Where an entry stands in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    /// The log id as consensus encodes it; kept with the rows, never looked into.
    pub log_id: Bytes,
}

/// What applying one batch gave.
#[derive(Debug, Default)]
pub struct Done {
    /// One for every command, in order.
    pub outcomes: Vec<Outcome>,
    /// What the sessions are to be sent, in order.
    pub effects: Vec<Effect>,
}

pub struct State {
    tables: Box<dyn Tables>,
    applied: Applied,
    meta: Meta,
}

impl State {
    /// The state that the rows hold.
    pub fn open(tables: Box<dyn Tables>) -> Result<Self, TablesError> {
        let mut state = Self { tables, applied: Applied::default(), meta: Meta::default() };
        state.reload()?;
        Ok(state)
    }

    /// Reads everything from the rows again.
    pub fn reload(&mut self) -> Result<(), TablesError> {
        self.applied = self.tables.applied();
        self.meta = get_row(&*self.tables, &Key::Meta)?.unwrap_or_default();
        Ok(())
    }

    pub fn reader(&self) -> Arc<dyn TablesRead> {
        self.tables.reader()
    }

    pub fn applied(&self) -> Applied {
        self.applied.clone()
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Applies the commands of one entry; their rows leave as one atomic write.
    pub fn apply(&mut self, at: Position, batch: Bytes) -> Result<Done, TablesError> {
        let batch = Batch::decode(batch).map_err(|_| TablesError::Corrupt(Key::Meta))?;
        let mut done = Done::default();
        for _command in batch.commands {
            done.outcomes.push(Outcome::default());
        }
        self.commit(at);
        Ok(done)
    }

    /// Applies an entry without commands.
    pub fn apply_other(&mut self, at: Position, membership: Option<Bytes>) {
        if let Some(membership) = membership {
            self.applied.membership = membership;
        }
        self.commit(at);
    }

    fn commit(&mut self, at: Position) {
        self.applied.index = at.index;
        self.applied.last_log_id = at.log_id;
        self.tables.commit(self.applied.clone());
    }
}

/// The outcome as a result: a refusal is an error with its documented code.
pub fn into_result(outcome: Outcome) -> Result<Outcome, Error> {
    match outcome.result {
        Some(outcome::Result::Refused(refused)) => {
            Err(Error::new(Code::of(refused.code).unwrap_or(Code::Internal), refused.message))
        }
        _ => Ok(outcome),
    }
}

#[allow(dead_code)]
fn digest_of(bytes: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(bytes);
    hash.digest128()
}
