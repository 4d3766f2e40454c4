//! A client's requests: what a repeat is answered, and what is written down for it.

use prost::Message;

use super::client::{KeptAnswer, RequestNames};
use crate::ids::{DeviceNumber, Seq, UnixMs};
use crate::model::error::Code;
use crate::model::fingerprint;
use crate::model::refusal::{ApplyError, refuse_field};
use crate::model::state::State;
use crate::model::tables::{RowKey, TablesError};
use crate::proto::outcome::Result as Reply;
use crate::proto::{Accepted, DataUpdate, Outcome, Requested};

pub(in crate::model) fn accepted(seq: Seq, timestamp_ms: UnixMs) -> Reply {
    Reply::Accepted(Accepted { seq: seq.get(), timestamp_ms: timestamp_ms.get(), ..Accepted::default() })
}

impl State {
    /// What the update's request was answered when it was applied; `None`: it is new, or has no `request_id`.
    pub(in crate::model) fn repeated_request(
        &mut self,
        c: &DataUpdate,
        device: DeviceNumber,
    ) -> Result<Option<Reply>, ApplyError> {
        let Some(kept) = self.requests.find(device, &c.request_id) else { return Ok(None) };
        let Some(given) = self.first_answer(c, device, kept)? else {
            let why = "was used for another table_name, record_id, operation or new_data";
            return refuse_field(Code::InvalidData, "request_id", why);
        };
        // A request that was applied before its client had a queue, or that it put into a new one.
        let entry = RequestNames { request_id: "", ..RequestNames::of(c) };
        self.answer_by_row(device, &entry, c, given.clone());
        Ok(Some(given))
    }

    /// What the first request under this name was answered; `None` if it asked for something else.
    pub(super) fn first_answer(
        &self,
        c: &DataUpdate,
        device: DeviceNumber,
        kept: KeptAnswer,
    ) -> Result<Option<Reply>, TablesError> {
        match kept {
            KeptAnswer::Change { seq, timestamp_ms } => {
                let same = match self.recent.get(seq) {
                    Some(change) => fingerprint::same_request(change, c),
                    None => {
                        let change = self.change(seq)?.ok_or(TablesError::Corrupt(RowKey::Changes(seq.get())))?;
                        fingerprint::same_request(&change, c)
                    }
                };
                Ok(same.then(|| accepted(seq, timestamp_ms)))
            }
            KeptAnswer::Row { slot } => {
                let key = RowKey::Requested { device, slot };
                let row: Requested = self.row(&key)?.ok_or_else(|| TablesError::Corrupt(key.clone()))?;
                let print = (u128::from(row.print_high) << 64) | u128::from(row.print_low);
                if print != 0 && print != fingerprint::of_request(c) {
                    return Ok(None);
                }
                let outcome = Outcome::decode(row.outcome).map_err(|_| TablesError::Corrupt(key.clone()))?;
                Ok(Some(outcome.result.ok_or(TablesError::Corrupt(key))?))
            }
        }
    }

    /// The update is answered by something else than its own change: a repeat finds the answer in a row.
    pub(in crate::model) fn answer_update_by_row(&mut self, device: DeviceNumber, asked: &DataUpdate, given: Reply) {
        self.answer_by_row(device, &RequestNames::of(asked), asked, given);
    }

    fn answer_by_row(&mut self, device: DeviceNumber, names: &RequestNames<'_>, asked: &DataUpdate, given: Reply) {
        if names.is_none() {
            return;
        }
        let (number, slot) = self.requests.remember(device, names);
        self.put_request(device, slot, number, names, fingerprint::of_request(asked), given);
        self.advance_queue(device, names);
    }

    /// The number with which a change answers its request, from 1; 0: it answers none.
    pub(in crate::model) fn next_request_number(&self, device: DeviceNumber, c: &DataUpdate) -> u64 {
        if RequestNames::of(c).is_none() { 0 } else { self.requests.next_number(device) + 1 }
    }

    /// Writes down what a request was answered.
    pub(super) fn put_request(
        &mut self,
        device: DeviceNumber,
        slot: u32,
        number: u64,
        names: &RequestNames<'_>,
        print: u128,
        given: Reply,
    ) {
        let outcome = Outcome { at_ms: self.meta.now_ms, result: Some(given), ..Outcome::default() };
        let row = Requested {
            number,
            request_id: names.request_id.to_owned(),
            outcome: outcome.encode_to_vec().into(),
            print_high: (print >> 64) as u64,
            print_low: print as u64,
            queue: names.queue.to_owned(),
            n: names.n,
        };
        self.put(RowKey::Requested { device, slot }, &row);
    }
}
