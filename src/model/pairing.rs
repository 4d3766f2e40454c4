//! Devices without a token that ask to be let in: each shows a code, and a person decides (docs/design.md, section 17.2).
//!
//! A pairing is a row until it expires. The secret by which the device takes its token is known here by its hash only;
//! the token is signed by the node that the device asks, when the claim has been applied.

use std::collections::BTreeMap;

use super::access::ClassNumber;
use super::device::valid_id;
use super::error::Code;
use super::refusal::{ApplyError, ApplyResult, refuse, refuse_field};
use super::row_pages::RowPages;
use super::state::State;
use super::tables::{RowKey, TablesError, TablesRead};
use super::visible::is_name;
use crate::ids::UnixMs;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Asker, PairAsk, PairClaim, PairDecide, Pairing, PairingStatus};

/// The letters and digits of codes: none that looks like another one.
pub(crate) const CODE_LETTERS: &[u8; 31] = b"23456789ABCDEFGHJKMNPQRSTUVWXYZ";
pub(crate) const CODE_LENGTH: usize = 8;
/// Bytes of SHA-256.
pub(super) const HASH: usize = 32;

/// A code as it is shown.
pub(crate) fn valid_code(code: &str) -> bool {
    code.len() == CODE_LENGTH && code.bytes().all(|byte| CODE_LETTERS.contains(&byte))
}

#[derive(Debug, Default)]
pub(super) struct Pairings(BTreeMap<String, Pairing>);

impl Pairings {
    pub(super) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let mut pairings = BTreeMap::new();
        for row in RowPages::<Pairing>::new(rows, RowKey::Pairing(String::new()), |k| matches!(k, RowKey::Pairing(_))) {
            let (_, row) = row?;
            pairings.insert(row.code.clone(), row);
        }
        Ok(Self(pairings))
    }
}

impl State {
    /// A pairing that has not expired by this time.
    pub fn pairing(&self, code: &str, now_ms: UnixMs) -> Option<&Pairing> {
        self.pairings.0.get(code).filter(|row| UnixMs(row.expires_ms) > now_ms)
    }

    /// All pairings that have not expired by this time, oldest first.
    pub fn pairings(&self, now_ms: UnixMs) -> Vec<&Pairing> {
        let mut rows: Vec<&Pairing> = self.pairings.0.values().filter(|row| UnixMs(row.expires_ms) > now_ms).collect();
        rows.sort_by_key(|row| row.asked_ms);
        rows
    }

    fn save_pairing(&mut self, row: Pairing) {
        self.put(RowKey::Pairing(row.code.clone()), &row);
        self.pairings.0.insert(row.code.clone(), row);
    }

    fn drop_pairing(&mut self, code: String) {
        self.pairings.0.remove(&code);
        self.delete(RowKey::Pairing(code));
    }

    /// The applied time goes back: a code that was given out in what is no time now ends, it would live for too long.
    pub(super) fn end_pairings_after(&mut self, now_ms: UnixMs) {
        let ends = |row: &&Pairing| UnixMs(row.expires_ms) > now_ms.plus_ms(limits::PAIRING_MS);
        let ended: Vec<String> = self.pairings.0.values().filter(ends).map(|row| row.code.clone()).collect();
        for code in ended {
            self.drop_pairing(code);
        }
    }

    pub(super) fn pair_ask(&mut self, c: PairAsk) -> ApplyResult {
        if !valid_code(&c.code) || c.secret_hash.len() != HASH {
            return refuse_field(Code::InvalidData, "code", "is none, or its secret is none");
        }
        if !c.device_id.is_empty() && !valid_id(&c.device_id) {
            return refuse_field(
                Code::Registration,
                "device_id",
                "must be 1 to 255 bytes without control or invisible characters",
            );
        }
        for (field, text, most) in [("name", &c.name, limits::PAIR_NAME), ("address", &c.address, limits::ADDRESS)] {
            if text.len() > most || !is_name(text) {
                let why = format!("must be at most {most} bytes without control or invisible characters");
                return refuse_field(Code::InvalidData, field, why);
            }
        }
        let now = self.meta.now_ms;
        let over = |row: &&Pairing| row.expires_ms <= now;
        let expired: Vec<String> = self.pairings.0.values().filter(over).map(|row| row.code.clone()).collect();
        for code in expired {
            self.drop_pairing(code);
        }
        // A code that was collected or refused waits for nobody: a whole shop may be behind one address.
        let has_ended = |row: &Pairing| matches!(row.status(), PairingStatus::Claimed | PairingStatus::Refused);
        let of_address = self.pairings.0.values().filter(|row| row.address == c.address && !has_ended(row)).count();
        let ended = self.pairings.0.values().filter(|row| has_ended(row)).min_by_key(|row| (row.asked_ms, &row.code));
        let ended = ended.map(|row| row.code.clone());
        let full = self.pairings.0.len() >= limits::PAIRINGS;
        if (full && ended.is_none()) || of_address >= limits::PAIRINGS_OF_ADDRESS {
            return refuse(Code::Unavailable, "too many devices ask to be paired: try again in some minutes");
        }
        if self.pairings.0.contains_key(&c.code) {
            return refuse(Code::Unavailable, "the code is taken: ask again");
        }
        if let (true, Some(code)) = (full, ended) {
            self.drop_pairing(code);
        }
        let row = Pairing {
            code: c.code,
            secret_hash: bytes::Bytes::copy_from_slice(&c.secret_hash),
            device_id: c.device_id,
            name: c.name,
            address: c.address,
            asked_ms: now,
            expires_ms: now + limits::PAIRING_MS,
            status: PairingStatus::Waiting.into(),
            ..Pairing::default()
        };
        self.save_pairing(row.clone());
        Ok(Reply::Pairing(row))
    }

    /// The gateway has looked at the token already, but it may have been taken back since, and a node that was broken
    /// into says what it likes: what a token may let in is decided here.
    fn may_let_in(&self, c: &PairDecide) -> Result<(), ApplyError> {
        let ceiling = match c.asker() {
            Asker::Unset => return Ok(()),
            Asker::Device => return refuse(Code::Forbidden, "only admins and managers may let a device in"),
            Asker::Manager => ClassNumber::named("manager"),
            Asker::Admin => ClassNumber::named("admin"),
        };
        let Some(principal) = self.txn.principal.as_ref().filter(|principal| principal.sub == c.by) else {
            return refuse_field(Code::InvalidData, "by", "is not the subject of the token that decides");
        };
        if self.is_revoked(&principal.jti) {
            return refuse(Code::Credentials, "the token was revoked");
        }
        self.must_be_let_in(&principal.sub, 0)?;
        // Classes are numbered from the highest down.
        let class = ClassNumber::of(c.class).filter(|_| c.approved);
        match (class, ceiling) {
            (Some(class), Some(ceiling)) if class.number() < ceiling.number() => {
                let why = format!("may be {} at most for a token of that class", ceiling.name());
                refuse_field(Code::Forbidden, "class", why)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn pair_decide(&mut self, c: PairDecide) -> ApplyResult {
        self.may_let_in(&c)?;
        let Some(row) = self.pairing(&c.code, self.meta.now()).cloned() else {
            return refuse(Code::NotRegistered, "there is no such code, or it has expired");
        };
        if row.status() != PairingStatus::Waiting {
            return refuse(Code::RoleChange, "the code was decided before");
        }
        let mut row = Pairing { by: c.by.clone(), ..row };
        if c.approved {
            let Some(class) = ClassNumber::of(c.class) else {
                return refuse_field(Code::InvalidData, "class", "is required");
            };
            if !c.device_id.is_empty() {
                row.device_id.clone_from(&c.device_id);
            }
            if !valid_id(&row.device_id) {
                return refuse_field(Code::InvalidData, "device_id", "is required: the device asked for none");
            }
            self.must_be_let_in(&row.device_id, 0)?;
            row.class = class.number();
            row.status = PairingStatus::Approved.into();
            let details = format!("Device {} from {} paired as {}", row.device_id, shown(&row.address), class.name());
            self.audit("device_pair", "approve", false, &c.by, details);
        } else {
            row.status = PairingStatus::Refused.into();
            let details = format!("Pairing of {:?} from {} refused", row.device_id, shown(&row.address));
            self.audit("device_pair", "refuse", false, &c.by, details);
        }
        self.save_pairing(row.clone());
        Ok(Reply::Pairing(row))
    }

    /// The device takes its token: whoever comes second gets none.
    pub(super) fn pair_claim(&mut self, c: PairClaim) -> ApplyResult {
        let Some(row) = self.pairing(&c.code, self.meta.now()).filter(|row| row.secret_hash == c.secret_hash) else {
            return refuse(Code::NotRegistered, "there is no such code, or it has expired");
        };
        if row.status() != PairingStatus::Approved {
            return refuse(Code::RoleChange, "the code is not approved, or its token was taken");
        }
        let row = Pairing { status: PairingStatus::Claimed.into(), ..row.clone() };
        self.must_be_let_in(&row.device_id, 0)?;
        self.audit("device_pair", "claim", false, &row.device_id, format!("Token of code {} handed out", row.code));
        self.save_pairing(row.clone());
        Ok(Reply::Pairing(row))
    }
}

fn shown(address: &str) -> &str {
    if address.is_empty() { "an unknown address" } else { address }
}

#[cfg(test)]
mod tests;
