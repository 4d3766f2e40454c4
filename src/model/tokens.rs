//! Tokens that were revoked before they end by themselves. Only the command here revokes one.

use super::effect::Effect;
use super::error::Code;
use super::refusal::{ApplyResult, refuse};
use super::state::State;
use crate::ids::UnixMs;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Empty, TokenRevoke};

pub(super) mod revoked;

impl State {
    pub fn is_revoked(&self, jti: &str) -> bool {
        self.tokens.contains(jti)
    }

    pub(super) fn token_revoke(&mut self, c: TokenRevoke) -> ApplyResult {
        // Rows whose token has ended by itself long ago have done their work.
        let long_ago = self.meta.now().minus_ms(limits::REVOKED_DAYS * 86_400_000);
        self.tokens.drop_ended(&mut self.txn, long_ago);
        if !self.tokens.takes(&c.jti) {
            let why =
                "so many tokens are revoked that no more can be remembered: change the key, which ends all tokens";
            return refuse(Code::Unavailable, why);
        }
        self.tokens.revoke(&mut self.txn, &c.jti, UnixMs(c.exp_ms));
        self.audit("token_revoke", "revoke", false, &c.by, format!("Token {} revoked", c.jti));
        self.effect(Effect::TokenRevoked { jti: c.jti });
        Ok(Reply::Done(Empty {}))
    }
}
