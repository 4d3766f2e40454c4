//! Who may speak: tokens on requests, and what their bearers may do (docs/design.md, section 8).

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, SEC_WEBSOCKET_PROTOCOL, TRANSFER_ENCODING};
use axum::http::request::Parts;

use crate::gateway::Gateway;
use crate::gateway::http::connections::ClientAddress;
use crate::gateway::http::rest::reply::RestError;
use crate::gateway::rates::RequestTurn;
use crate::limits;
use crate::model::error::{Code, Error};
use crate::proto::{Asker, DataUpdate};
use crate::token::{Claims, Class};

/// How a browser's WebSocket, which cannot send headers, offers its token as a subprotocol: before the token, and the one
/// that is then chosen. Unlike a query, proxies do not write it down.
pub const SUBPROTOCOL: &str = "tillsync";
const SUBPROTOCOL_TOKEN: &str = "tillsync.token.";

/// The token of a request: the `Authorization` header, the `token` query parameter, or what stands among the subprotocols
/// of a WebSocket. It is never written to a log.
pub fn token_of(parts: &Parts) -> Option<&str> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let bearer = header.and_then(|v| {
        let (scheme, token) = v.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let in_query = || {
        let query = parts.uri.query()?;
        query.split('&').find_map(|pair| pair.strip_prefix("token=")).filter(|t| !t.is_empty())
    };
    let in_protocols = || {
        let offered = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
        offered.flat_map(|v| v.split(',')).find_map(|name| name.trim().strip_prefix(SUBPROTOCOL_TOKEN))
    };
    bearer.or_else(in_query).or_else(in_protocols)
}

/// Where a request, or a connection that began with one, comes from.
#[derive(Clone, Default)]
pub struct RequestOrigin {
    peer: Option<ClientAddress>,
    /// For the log.
    address: Option<IpAddr>,
}

impl RequestOrigin {
    pub fn of(parts: &Parts) -> Self {
        let peer = ClientAddress::of(parts).cloned();
        let address = peer.as_ref().map(|peer| peer.address(&parts.headers));
        Self { peer, address }
    }

    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// A good token was seen: its connection stays when strangers need room.
    pub fn vouch(&self, claims: &Claims) {
        if let Some(peer) = &self.peer {
            peer.vouch(claims);
        }
    }
}

/// Checks the token of whoever comes in: one that is refused is counted and logged, a good one vouches for the connection.
pub fn admit(gateway: &Gateway, origin: &RequestOrigin, token: Option<&str>) -> Result<Claims, Error> {
    let checked = check(gateway, token);
    match &checked {
        Ok(claims) => origin.vouch(claims),
        Err(error) => gateway.refusals.count(origin.address, error),
    }
    checked
}

/// Checks a token: 3001 if it is missing, malformed, wrongly signed or revoked, 3002 if it has expired.
pub fn check(gateway: &Gateway, token: Option<&str>) -> Result<Claims, Error> {
    let token = token.ok_or_else(|| Error::new(Code::Credentials, "a token is needed"))?;
    clock_is_right(gateway)?;
    let claims = gateway.keys.verify(token, gateway.cluster.clock().now_ms())?;
    still_good(gateway, &claims)?;
    Ok(claims)
}

/// Whether what was checked once still holds: for whatever lives longer than one request.
pub fn still_good(gateway: &Gateway, claims: &Claims) -> Result<(), Error> {
    clock_is_right(gateway)?;
    if claims.exp.saturating_mul(1_000) <= gateway.now_ms() {
        return Err(Error::new(Code::TokenExpired, "the token has expired"));
    }
    if !gateway.keys.holds(claims) {
        return Err(Error::new(Code::Credentials, "the key that signed the token is not valid any more"));
    }
    let state = gateway.cluster.replica().state();
    if state.is_revoked(&claims.jti) {
        return Err(Error::new(Code::Credentials, "the token was revoked"));
    }
    state.refusal_of(&claims.sub, claims.iat).map_or(Ok(()), Err)
}

/// When the device's own token was issued; 0 if somebody else speaks for it.
pub fn own_token_iat(claims: &Claims, device_id: &str) -> u64 {
    if claims.sub == device_id { claims.iat.max(1) } else { 0 }
}

/// 3003 if tokens of the class may not read the table.
pub fn may_read(gateway: &Gateway, claims: &Claims, table: &str) -> Result<(), Error> {
    if gateway.cluster.replica().state().access().may_read(claims.class.number(), table) {
        return Ok(());
    }
    let why = format!("table_name {table:?} is a table that tokens of class {} may not read", claims.class);
    Err(Error::new(Code::Forbidden, why).about("table_name", None))
}

/// A change by this token: it carries what the token is, so that its rights are decided where it stands in the log.
/// What no repeat can be known by is refused here already.
pub fn sign_update(gateway: &Gateway, claims: &Claims, update: &mut DataUpdate) -> Result<(), Error> {
    update.class = claims.class.number().number();
    update.token_iat = own_token_iat(claims, &update.device_id);
    if update.n > 0 || !update.request_id.is_empty() {
        return Ok(());
    }
    let allowed = gateway.cluster.replica().state().may_write(claims.class.number(), &update.table_name);
    allowed.map_err(|why| Error::new(Code::Forbidden, format!("table_name {why}")).about("table_name", None))
}

/// A token that this node signs. Its time of issue is the state's: a revocation that is still to come covers it, whatever
/// the clocks say, and one that has come does not. The state must be fresh.
pub fn new_token(
    gateway: &Gateway,
    sub: &str,
    class: Class,
    jti: Option<String>,
    seconds: u64,
) -> Result<(String, Claims), Error> {
    let iat = {
        let state = gateway.cluster.replica().state();
        let revoked = state.gate(sub).map_or(0, |gate| gate.not_before);
        (state.meta().now_ms / 1_000).max(revoked + 1)
    };
    gateway.keys.issue_at(sub, class, jti, iat, gateway.now_ms() / 1_000 + seconds)
}

/// A token in place of this one, for as long as that one was made for, and no longer than one of a paired device lives.
/// It keeps the name: whoever takes that back takes back all that came of it. The state must be fresh.
pub fn renewed(gateway: &Gateway, claims: &Claims) -> Result<(String, Claims), Error> {
    still_good(gateway, claims)?;
    let seconds = claims.exp.saturating_sub(claims.iat).min(gateway.settings.paired_token.as_secs());
    new_token(gateway, &claims.sub, claims.class, Some(claims.jti.clone()), seconds)
}

/// By a wrong clock good tokens have ended, and ended ones are good: a client that was told so would throw its token away.
fn clock_is_right(gateway: &Gateway) -> Result<(), Error> {
    match gateway.cluster.objection() {
        Some(why) => Err(Error::new(Code::Unavailable, why)),
        None => Ok(()),
    }
}

pub fn must_be_admin(claims: &Claims, what: &str) -> Result<(), Error> {
    if claims.class == Class::Admin {
        return Ok(());
    }
    Err(Error::new(Code::Forbidden, format!("only admins may {what}")))
}

/// A device acts for itself only; admins and managers act for others.
pub fn may_speak_for(claims: &Claims, device_id: &str) -> Result<(), Error> {
    if claims.sub == device_id || claims.class.is_privileged() {
        return Ok(());
    }
    Err(Error::new(Code::Forbidden, format!("this token may act for device {:?} only", claims.sub)))
}

/// Whoever asks, as commands carry it: what a device may do is looked at again where they are applied.
pub fn asker(claims: &Claims) -> Asker {
    match claims.class {
        Class::Admin => Asker::Admin,
        Class::Manager => Asker::Manager,
        Class::AssistantManager | Class::InventoryAssistant | Class::SalesAssistant => Asker::Device,
    }
}

pub fn must_be_privileged(claims: &Claims, what: &str) -> Result<(), Error> {
    if claims.class.is_privileged() {
        return Ok(());
    }
    Err(Error::new(Code::Forbidden, format!("only admins and managers may {what}")))
}

pub fn may_claim(claims: &Claims, priority: Option<u32>) -> Result<(), Error> {
    let bound = claims.class.priority();
    if priority.is_some_and(|p| p > bound) {
        return Err(Error::new(Code::Forbidden, format!("priority may be at most {bound} for a {}", claims.class)));
    }
    Ok(())
}

/// Among a request's extensions once its token was good: only then more than a little of its body is read.
#[derive(Clone, Copy)]
pub struct Authenticated;

/// Who asks over REST: the token is good, and asks no more often than it may.
async fn caller(parts: &mut Parts, gateway: &Gateway) -> Result<(Claims, RequestTurn), RestError> {
    let claims = admit(gateway, &RequestOrigin::of(parts), token_of(parts)).map_err(|e| RestError::new(gateway, e))?;
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    // Without a length, as if it were the longest body.
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    let bytes = if chunked { limits::FRAME as u64 } else { length.unwrap_or(0).min(limits::FRAME as u64) };
    let turn =
        gateway.rates.request(&claims, bytes, parts.extensions.get()).await.map_err(|e| RestError::new(gateway, e))?;
    parts.extensions.insert(Authenticated);
    Ok((claims, turn))
}

/// The bearer of a REST request's token, and its turn to be answered. A device of that id is here from now on.
pub struct Caller(pub Claims, #[allow(dead_code)] RequestTurn);

impl FromRequestParts<Arc<Gateway>> for Caller {
    type Rejection = RestError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, RestError> {
        let (claims, turn) = caller(parts, gateway).await?;
        gateway.presence.seen_over_rest(gateway, &claims.sub, &claims);
        Ok(Self(claims, turn))
    }
}

/// An admin who moves all rows of the cluster out or in. That is somebody at the tools and not a device at work: a
/// device whose id the token bears is not here because of it. Else an export would change what it writes down.
pub struct Operator(pub Claims, #[allow(dead_code)] RequestTurn);

impl FromRequestParts<Arc<Gateway>> for Operator {
    type Rejection = RestError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, RestError> {
        let (claims, turn) = caller(parts, gateway).await?;
        must_be_admin(&claims, "export and import").map_err(|e| RestError::new(gateway, e))?;
        if !gateway.cluster.replica().state().access().reads_all(claims.class.number()) {
            let why = "there are tables that admins may not read: an export without them would not be whole";
            return Err(RestError::new(gateway, Error::new(Code::Forbidden, why)));
        }
        Ok(Self(claims, turn))
    }
}
