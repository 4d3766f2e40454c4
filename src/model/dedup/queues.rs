//! Each device's durable queues: how far each has come, for ever. What makes a client's retries exact however long
//! its queue is.
//!
//! A queue is one number, the `n` of its newest entry that was applied. The number rides in the change that the entry
//! became; it is a row of its own only when that change is compacted, or when the entry became no change.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::client::RequestNames;
use crate::ids::{DeviceNumber, UnixMs};
use crate::limits;
use crate::model::error::Code;
use crate::model::refusal::{ApplyError, ApplyResult, refuse_field};
use crate::model::row_pages::RowPages;
use crate::model::state::State;
use crate::model::tables::{RowKey, TablesError, TablesRead};
use crate::proto::outcome::Result as Reply;
use crate::proto::{Change, DataUpdate, Empty, Queue};

#[cfg(test)]
mod tests;

const DAY_MS: u64 = 86_400_000;

/// The queues of all devices, by device number and id.
#[derive(Debug, Default)]
pub(in crate::model) struct DeviceQueues {
    queues: HashMap<DeviceNumber, HashMap<Arc<str>, Queue>>,
    /// Those that are not forgotten, by the day on which they were used last.
    by_day: BTreeSet<(u64, DeviceNumber, Arc<str>)>,
    /// Queues of all devices, forgotten ones included.
    count: usize,
}

impl DeviceQueues {
    pub(super) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let mut queues = Self::default();
        let from = RowKey::Queue { device: DeviceNumber(0), queue: String::new() };
        for row in RowPages::new(rows, from, |k| matches!(k, RowKey::Queue { .. })) {
            if let (RowKey::Queue { device, queue }, row) = row? {
                queues.set(device, &queue, row);
            }
        }
        Ok(queues)
    }

    /// From a change that is kept.
    pub(super) fn load_change(&mut self, device: DeviceNumber, change: &Change) {
        if change.n > 0 {
            self.advance(device, &change.queue, change.n, UnixMs(change.committed_ms));
        }
    }

    pub(super) fn get(&self, device: DeviceNumber, queue: &str) -> Option<&Queue> {
        self.queues.get(&device)?.get(queue)
    }

    /// The entry was applied. Rows and changes are read in any order: the greater `n` counts, and forgotten is forgotten.
    pub(super) fn advance(&mut self, device: DeviceNumber, queue: &str, n: u64, used_ms: UnixMs) {
        if self.get(device, queue).is_none_or(|known| known.last < n && !known.forgotten) {
            self.set(device, queue, Queue { last: n, used_ms: used_ms.get(), forgotten: false });
        }
    }

    fn set(&mut self, device: DeviceNumber, queue: &str, row: Queue) {
        let queues = self.queues.entry(device).or_default();
        let known = queues.get_key_value(queue).map(|(id, old)| (id.clone(), *old));
        let (id, old) = match known {
            Some((id, old)) => (id, Some(old)),
            None => (Arc::from(queue), None),
        };
        queues.insert(id.clone(), row);
        self.count += usize::from(old.is_none());
        let day = |row: &Queue| (!row.forgotten).then_some(row.used_ms / DAY_MS);
        let (before, now) = (old.as_ref().and_then(day), day(&row));
        if before == now {
            return;
        }
        if let Some(day) = before {
            self.by_day.remove(&(day, device, id.clone()));
        }
        if let Some(day) = now {
            self.by_day.insert((day, device, id));
        }
    }

    pub(in crate::model) fn of_device(&self, device: DeviceNumber) -> impl Iterator<Item = (&Arc<str>, &Queue)> {
        self.queues.get(&device).into_iter().flatten().filter(|(_, row)| !row.forgotten)
    }

    /// The device is forgotten, and so are its queues: their ids, in order. They are refused if it comes back.
    pub(super) fn forget_device(&mut self, device: DeviceNumber) -> Vec<Arc<str>> {
        let mut ids: Vec<Arc<str>> = self.of_device(device).map(|(id, _)| id.clone()).collect();
        ids.sort_unstable();
        for id in &ids {
            let used_ms = self.get(device, id).map_or(0, |known| known.used_ms);
            self.set(device, id, Queue { last: 0, used_ms, forgotten: true });
        }
        ids
    }

    fn idle_at(&self, now_ms: UnixMs) -> bool {
        self.by_day.first().is_some_and(|(day, ..)| is_idle(*day, now_ms))
    }

    /// The queues that may be forgotten by this time, the longest unused first, at most `limit`.
    fn idle(&self, now_ms: UnixMs, limit: usize) -> Vec<(DeviceNumber, Arc<str>)> {
        let idle = self.by_day.iter().take_while(|(day, ..)| is_idle(*day, now_ms));
        idle.take(limit).map(|(_, device, queue)| (*device, queue.clone())).collect()
    }
}

fn is_idle(day: u64, now_ms: UnixMs) -> bool {
    day + limits::QUEUE_DAYS < now_ms.get() / DAY_MS
}

fn refuse_entry<T>(field: &str, why: &str, last: u64) -> Result<T, ApplyError> {
    match refuse_field(Code::InvalidData, field, why) {
        Err(ApplyError::Refused(refused)) => {
            Err(ApplyError::Refused(crate::proto::Refused { last: Some(last), ..refused }))
        }
        other => other,
    }
}

impl State {
    /// How far a device's queue has come.
    pub fn queue(&self, device_id: &str, queue: &str) -> Option<&Queue> {
        self.queues.get(DeviceNumber(self.devices.get(device_id)?.number), queue)
    }

    /// A queue may be forgotten by this time.
    pub fn has_idle_queues(&self, now_ms: UnixMs) -> bool {
        self.queues.idle_at(now_ms)
    }

    /// What the update's entry was answered when it was applied; `None`: it comes next in its queue, or belongs to none.
    /// A gap is never taken for a repeat, and what is neither the
    /// next entry nor surely a repeat is refused.
    pub(in crate::model) fn queue_entry(
        &self,
        c: &DataUpdate,
        device: DeviceNumber,
    ) -> Result<Option<Reply>, ApplyError> {
        if c.n == 0 {
            return Ok(None);
        }
        let known = self.queues.get(device, &c.queue);
        if known.is_some_and(|queue| queue.forgotten) {
            let days = limits::QUEUE_DAYS;
            let why = format!("was not used for {days} days, or its device was, and is forgotten: begin a new one");
            return refuse_field(Code::InvalidData, "queue", why);
        }
        let last = known.map_or(0, |queue| queue.last);
        if c.n <= last {
            return self.repeated_entry(c, device, last).map(Some);
        }
        if c.after != last {
            let why = "is not the last n of this queue that was applied: go on from there";
            return refuse_entry("after", why, last);
        }
        if known.is_none() {
            self.room_for_a_queue(device)?;
        }
        Ok(None)
    }

    fn repeated_entry(&self, c: &DataUpdate, device: DeviceNumber, last: u64) -> ApplyResult {
        if let Some(kept) = self.requests.find_entry(device, &c.queue, c.n) {
            let Some(given) = self.first_answer(c, device, kept)? else {
                return refuse_entry("n", "was used for another table_name, record_id, operation or new_data", last);
            };
            return Ok(given);
        }
        // The window would have it: it was never applied. To answer that it was would lose it.
        if self.requests.remembers_from(device, &c.queue, c.n) {
            return refuse_entry("n", "was passed over: send what is still to be committed with a new n", last);
        }
        Ok(Reply::Done(Empty {}))
    }

    fn room_for_a_queue(&self, device: DeviceNumber) -> Result<(), ApplyError> {
        let of_device = self.queues.queues.get(&device).map_or(0, HashMap::len);
        if of_device >= limits::QUEUES_OF_A_DEVICE {
            let why = format!("is one too many: a device has at most {}", limits::QUEUES_OF_A_DEVICE);
            return refuse_field(Code::InvalidData, "queue", why);
        }
        if self.queues.count >= limits::QUEUES {
            let why = format!("is one too many: the cluster keeps at most {}", limits::QUEUES);
            return refuse_field(Code::InvalidData, "queue", why);
        }
        Ok(())
    }

    /// The entry was applied and became no change that says so.
    pub(super) fn advance_queue(&mut self, device: DeviceNumber, names: &RequestNames<'_>) {
        if names.n > 0 {
            self.queues.advance(device, names.queue, names.n, self.meta.now());
            self.save_queue(device, names.queue);
        }
    }

    pub(super) fn save_queue(&mut self, device: DeviceNumber, queue: &str) {
        if let Some(row) = self.queues.get(device, queue).copied() {
            self.put(RowKey::Queue { device, queue: queue.to_owned() }, &row);
        }
    }

    /// A queue that is not used any more leaves its id, so that a device that comes back after all is told.
    pub(in crate::model) fn queues_forget(&mut self) -> Reply {
        for (device, queue) in self.queues.idle(self.meta.now(), limits::COMPACT_STEP as usize) {
            let used_ms = self.queues.get(device, &queue).map_or(0, |known| known.used_ms);
            self.queues.set(device, &queue, Queue { last: 0, used_ms, forgotten: true });
            self.save_queue(device, &queue);
        }
        Reply::Done(Empty {})
    }
}
