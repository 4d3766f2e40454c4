//! Sync states: how far each device has come.

use super::effect::Effect;
use super::error::Code;
use super::refusal::{ApplyResult, refuse};
use super::state::State;
use super::tables::TablesError;
use crate::ids::{Seq, UnixMs};
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    Delivered, Device, Empty, SyncBegin, SyncComplete, SyncErrorReport, SyncState, SyncStatePut, SyncStatus, SyncType,
};

pub(super) mod states;

/// `last_sync_timestamp` of a device that says that it synced but was never sent anything: a time that every change
/// was committed after.
const NEVER_SENT_MS: u64 = 1;

/// A number for a set of tables; 0 for all of them. A device's recorded cursor is good for the tables that were synced.
pub(crate) fn scope(tables: Option<&[String]>) -> u64 {
    let Some(tables) = tables else { return 0 };
    let mut names: Vec<&str> = tables.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    xxhash_rust::xxh3::xxh3_64(names.join("\0").as_bytes()).max(1)
}

impl State {
    pub fn sync_state(&self, device_id: &str) -> Option<&SyncState> {
        self.sync_states.get(device_id)
    }

    /// Changes that the device has not seen: what was set as base, and all since then but its own.
    pub fn pending_changes(&self, sync: &SyncState) -> u64 {
        let since = self.meta.head_seq.saturating_sub(sync.base_seq);
        sync.base.saturating_add(since.saturating_sub(self.audit.changes_by(&sync.device_id, Seq(sync.base_seq))))
    }

    /// Changes of others since the device went offline; 0 once it has synced, or was sent them when it resumed.
    pub fn offline_changes(&self, device: &Device) -> u64 {
        // Rows of older versions have no `away`.
        if !device.away && device.offline_seq == 0 {
            return 0;
        }
        let own = self.audit.changes_by(&device.device_id, Seq(device.offline_seq));
        self.meta.head_seq.saturating_sub(device.offline_seq).saturating_sub(own)
    }

    pub(super) fn sync_begin(&mut self, c: SyncBegin) -> ApplyResult {
        let mut sync = self.existing_sync(&c.device_id)?;
        sync.sync_status = SyncStatus::Syncing.into();
        sync.sync_id.clone_from(&c.sync_id);
        let kind = if c.sync_type() == SyncType::Incremental { "incremental" } else { "full" };
        sync.full_owed |= c.sync_type() == SyncType::Full;
        self.audit("sync_request", kind, false, &c.device_id, format!("Sync {} requested ({kind})", c.sync_id));
        Ok(self.updated(sync))
    }

    pub(super) fn sync_complete(&mut self, c: SyncComplete) -> ApplyResult {
        let mut sync = self.existing_sync(&c.device_id)?;
        sync.sync_status = SyncStatus::Synced.into();
        sync.last_error_message = None;
        if c.nothing_sent {
            sync.last_sync_ms = sync.last_sync_ms.max(NEVER_SENT_MS);
        } else {
            self.synced(&mut sync, &c)?;
        }
        let last_sync_ms = sync.last_sync_ms;
        let details = format!("Sync complete: {} changes", c.changes_count);
        self.audit("sync_complete", "complete", false, &c.device_id, details);
        self.effect(Effect::SyncCompleted {
            device_id: c.device_id,
            sync_timestamp_ms: UnixMs(c.sync_timestamp_ms),
            changes_count: c.changes_count,
            at_ms: UnixMs(last_sync_ms),
        });
        Ok(self.updated(sync))
    }

    /// The device has what it was sent: everything up to the command's cursor.
    fn synced(&mut self, sync: &mut SyncState, c: &SyncComplete) -> Result<(), TablesError> {
        let (head, now) = (self.meta.head_seq, self.meta.now_ms);
        sync.last_sync_ms = match (c.cursor_seq, c.completed_ms) {
            (None, _) => now,
            // Nothing up to there was committed later than what comes after it.
            (Some(seq), 0) => match self.change(Seq(seq))? {
                Some(change) => self.corrections().of_change(Seq(seq), UnixMs(change.committed_ms)).get(),
                None => NEVER_SENT_MS,
            },
            (Some(_), ms) => ms.min(now),
        };
        sync.cursor_seq = c.cursor_seq.map_or(head, |seq| seq.min(head));
        sync.cursor_scope = c.scope;
        sync.full_owed = false;
        sync.base = 0;
        sync.base_seq = sync.cursor_seq;
        self.back(&c.device_id, sync.cursor_seq);
        Ok(())
    }

    /// The device has been sent everything up to `seq`: what it missed while it was offline, too.
    fn back(&mut self, device_id: &str, seq: u64) {
        let Some(device) = self.devices.get(device_id) else { return };
        if seq >= device.offline_seq && (device.away || device.offline_seq != 0) {
            let device = Device { offline_seq: 0, away: false, ..Device::clone(device) };
            self.save_device(device);
        }
    }

    /// The counts follow what a resume delivered. The cursor does not: what was sent may not have been stored.
    pub(super) fn delivered(&mut self, c: &Delivered) -> ApplyResult {
        let mut sync = self.existing_sync(&c.device_id)?;
        let seq = c.seq.min(self.meta.head_seq);
        self.back(&c.device_id, seq);
        if seq < sync.base_seq {
            return Ok(Reply::SyncState(sync));
        }
        (sync.base, sync.base_seq) = (0, seq);
        Ok(self.updated(sync))
    }

    pub(super) fn sync_state_put(&mut self, c: SyncStatePut) -> ApplyResult {
        let mut sync = self.existing_sync(&c.device_id)?;
        if let Some(status) = c.sync_status {
            sync.sync_status = status;
        }
        if let Some(count) = c.pending_changes_count {
            sync.base = count;
            sync.base_seq = self.meta.head_seq;
        }
        if let Some(message) = c.last_error_message {
            sync.last_error_message = Some(message);
        }
        self.audit("sync_state_update", "update", false, &c.device_id, format!("Sync state set by {}", c.by));
        Ok(self.updated(sync))
    }

    pub(super) fn sync_error_report(&mut self, c: SyncErrorReport) -> ApplyResult {
        let mut sync = self.existing_sync(&c.device_id)?;
        sync.sync_status = SyncStatus::Error.into();
        sync.last_error_message = Some(c.error_message.clone());
        self.audit("sync_error", "report", true, &c.device_id, format!("{}: {}", c.error_code, c.error_message));
        self.updated(sync);
        Ok(Reply::Done(Empty {}))
    }

    fn updated(&mut self, mut sync: SyncState) -> Reply {
        sync.updated_ms = self.meta.now_ms;
        self.save_sync_state(sync.clone());
        Reply::SyncState(sync)
    }

    fn existing_sync(&self, device_id: &str) -> Result<SyncState, super::refusal::ApplyError> {
        match self.sync_states.get(device_id) {
            Some(sync) => Ok(sync.clone()),
            None => refuse(Code::NotRegistered, format!("device {device_id:?} is not registered")),
        }
    }

    pub(super) fn save_sync_state(&mut self, sync: SyncState) {
        self.sync_states.save(&mut self.txn, sync);
    }

    pub(super) fn forget_sync_state(&mut self, device_id: &str) {
        self.sync_states.forget(&mut self.txn, device_id);
    }
}

/// A sync status as the document writes it.
pub(crate) fn status_name(status: SyncStatus) -> &'static str {
    match status {
        SyncStatus::Syncing => "syncing",
        SyncStatus::Synced => "synced",
        SyncStatus::Error => "error",
        SyncStatus::Pending | SyncStatus::Unset => "pending",
    }
}

/// The status of a documented name.
pub(crate) fn status_of(name: &str) -> Option<SyncStatus> {
    [SyncStatus::Pending, SyncStatus::Syncing, SyncStatus::Synced, SyncStatus::Error]
        .into_iter()
        .find(|s| status_name(*s) == name)
}
