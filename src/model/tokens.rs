//! Tokens that were revoked before they end by themselves.

use super::effect::Effect;
use super::error::Code;
use super::refusal::{ApplyResult, refuse};
use super::state::State;
use super::tables::RowKey;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Empty, Revoked, TokenRevoke};

impl State {
    pub(super) fn token_revoke(&mut self, c: TokenRevoke) -> ApplyResult {
        // Rows whose token has ended by itself long ago have done their work.
        let long_ago = self.meta.now_ms.saturating_sub(limits::REVOKED_DAYS * 86_400_000);
        let mut ended: Vec<String> =
            self.revoked.iter().filter(|(_, exp)| **exp < long_ago).map(|(jti, _)| jti.clone()).collect();
        ended.sort_unstable();
        for jti in ended.into_iter().take(limits::COMPACT_STEP as usize) {
            self.revoked.remove(&jti);
            self.delete(RowKey::Revoked(jti));
        }
        if self.revoked.len() >= limits::REVOKED && !self.revoked.contains_key(&c.jti) {
            let why =
                "so many tokens are revoked that no more can be remembered: change the key, which ends all tokens";
            return refuse(Code::Unavailable, why);
        }
        let row = Revoked { jti: c.jti.clone(), exp_ms: c.exp_ms };
        self.put(RowKey::Revoked(c.jti.clone()), &row);
        self.revoked.insert(c.jti.clone(), c.exp_ms);
        self.audit("token_revoke", "revoke", false, &c.by, format!("Token {} revoked", c.jti));
        self.effect(Effect::TokenRevoked { jti: c.jti });
        Ok(Reply::Done(Empty {}))
    }
}
