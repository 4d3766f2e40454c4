//! The tokens that are revoked, as their rows say.

use std::collections::HashMap;

use crate::ids::UnixMs;
use crate::limits;
use crate::model::row_pages::RowPages;
use crate::model::tables::{RowKey, TablesError, TablesRead};
use crate::model::txn::Txn;
use crate::proto::Revoked;

/// By the token's id: when the token ends by itself.
#[derive(Debug, Default)]
pub(in crate::model) struct RevokedTokens(HashMap<String, UnixMs>);

impl RevokedTokens {
    pub(in crate::model) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let mut revoked = HashMap::new();
        for row in RowPages::<Revoked>::new(rows, RowKey::Revoked(String::new()), |k| matches!(k, RowKey::Revoked(_))) {
            let (_, row) = row?;
            revoked.insert(row.jti, UnixMs(row.exp_ms));
        }
        Ok(Self(revoked))
    }

    pub(in crate::model) fn contains(&self, jti: &str) -> bool {
        self.0.contains_key(jti)
    }

    /// Whether there is room for this one.
    pub(super) fn takes(&self, jti: &str) -> bool {
        self.0.len() < limits::REVOKED || self.contains(jti)
    }

    pub(super) fn revoke(&mut self, txn: &mut Txn, jti: &str, exp_ms: UnixMs) {
        txn.put(RowKey::Revoked(jti.to_owned()), &Revoked { jti: jti.to_owned(), exp_ms: exp_ms.get() });
        self.0.insert(jti.to_owned(), exp_ms);
    }

    /// Drops some of those that ended by themselves before this time.
    pub(super) fn drop_ended(&mut self, txn: &mut Txn, before_ms: UnixMs) {
        let mut ended: Vec<String> =
            self.0.iter().filter(|(_, exp)| **exp < before_ms).map(|(jti, _)| jti.clone()).collect();
        ended.sort_unstable();
        for jti in ended.into_iter().take(limits::COMPACT_STEP as usize) {
            self.0.remove(&jti);
            txn.delete(RowKey::Revoked(jti));
        }
    }
}
