//! Who may speak: tokens on requests, and what their bearers may do (design, section 8).

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::request::Parts;

use super::Gateway;
use super::rates::Turn;
use super::rest::Failure;
use crate::limits;
use crate::model::error::{Code, Error};
use crate::token::{Claims, Class};

/// The token of a request: the `Authorization` header, or the `token` query parameter that browsers' WebSockets
/// need. It is never written to a log.
pub fn token_of(parts: &Parts) -> Option<&str> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let bearer = header.and_then(|v| {
        let (scheme, token) = v.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    bearer.or_else(|| {
        let query = parts.uri.query()?;
        query.split('&').find_map(|pair| pair.strip_prefix("token=")).filter(|t| !t.is_empty())
    })
}

/// Checks a token: 3001 if it is missing, malformed, wrongly signed or revoked, 3002 if it has expired.
pub fn check(gateway: &Gateway, token: Option<&str>) -> Result<Claims, Error> {
    let token = token.ok_or_else(|| Error::new(Code::Credentials, "a token is needed"))?;
    let claims = gateway.keys.verify(token, gateway.cluster.clock().now_ms())?;
    still_good(gateway, &claims)?;
    Ok(claims)
}

/// Whether what was checked once still holds: for whatever lives longer than one request.
pub fn still_good(gateway: &Gateway, claims: &Claims) -> Result<(), Error> {
    if claims.exp.saturating_mul(1_000) <= gateway.now_ms() {
        return Err(Error::new(Code::TokenExpired, "the token has expired"));
    }
    if !gateway.keys.holds(claims) {
        return Err(Error::new(Code::Credentials, "the key that signed the token is not valid any more"));
    }
    if gateway.cluster.replica().hot().is_revoked(&claims.jti) {
        return Err(Error::new(Code::Credentials, "the token was revoked"));
    }
    Ok(())
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

/// Who asks over REST: the token is good, and asks no more often than it may.
async fn caller(parts: &Parts, gateway: &Gateway) -> Result<(Claims, Turn), Failure> {
    let claims = check(gateway, token_of(parts)).map_err(|e| Failure::new(gateway, e))?;
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    // Without a length, as if it were the longest body.
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    let bytes = if chunked { limits::FRAME as u64 } else { length.unwrap_or(0).min(limits::FRAME as u64) };
    let turn = gateway.rates.request(&claims, bytes).await.map_err(|e| Failure::new(gateway, e))?;
    Ok((claims, turn))
}

/// The bearer of a REST request's token, and its turn to be answered. A device of that id is here from now on.
pub struct Caller(pub Claims, #[allow(dead_code)] Turn);

impl FromRequestParts<Arc<Gateway>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Failure> {
        let (claims, turn) = caller(parts, gateway).await?;
        gateway.presence.seen_over_rest(gateway, &claims.sub, &claims);
        Ok(Self(claims, turn))
    }
}

/// An admin who moves all rows of the cluster out or in. That is somebody at the tools and not a device at work: a
/// device whose id the token bears is not here because of it. Else an export would change what it writes down.
pub struct Operator(pub Claims, #[allow(dead_code)] Turn);

impl FromRequestParts<Arc<Gateway>> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Failure> {
        let (claims, turn) = caller(parts, gateway).await?;
        must_be_admin(&claims, "export and import").map_err(|e| Failure::new(gateway, e))?;
        Ok(Self(claims, turn))
    }
}
