//! Pairing: a device without a token shows a code, a person approves it, and the device takes its token. And tokens
//! renewed.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::devices::unexpected;
use super::{OrFail, PathParts, QueryFields, RequestBody, RestError, RestResult, Source, answer, fresh};
use crate::consensus::runtime::random;
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller, RequestOrigin};
use crate::gateway::http::connections::came_late;
use crate::gateway::protocol::json::push_object;
use crate::gateway::protocol::{BadPayload, ServerEvent};
use crate::ids::UnixMs;
use crate::limits;
use crate::model::access::ClassNumber;
use crate::model::error::{Code, Error};
use crate::model::pairing::{CODE_LENGTH, CODE_LETTERS, valid_code};
use crate::model::visible::is_name;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{PairAsk, PairClaim, PairDecide, Pairing, PairingStatus};
use crate::tls::admission::group_of;
use crate::token::{Claims, Class};

/// How often a device asks what became of its code.
const POLL_SECONDS: u64 = 3;
/// Each of 64 random bits.
const SECRET_WORDS: usize = 4;

/// Somebody without a token, by address: asks no more often than a device that waits for a person.
pub(super) struct Stranger {
    /// For whoever decides, and for the log.
    address: Option<IpAddr>,
    /// What its rates are counted by.
    group: String,
    /// What it calls its secret.
    secret: Option<String>,
}

impl FromRequestParts<Arc<Gateway>> for Stranger {
    type Rejection = RestError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, RestError> {
        let address = RequestOrigin::of(parts).address();
        let group = address.map(|address| group_of(address).to_string()).unwrap_or_default();
        gateway.stranger_rates.check(&group).or_fail(gateway)?;
        Ok(Self { address, group, secret: auth::token_of(parts).map(str::to_owned) })
    }
}

/// A body of somebody without a token: a little at most.
pub(super) struct SmallBody(RequestBody);

impl FromRequest<Arc<Gateway>> for SmallBody {
    type Rejection = RestError;

    async fn from_request(request: Request, gateway: &Arc<Gateway>) -> Result<Self, RestError> {
        let read = axum::body::to_bytes(request.into_body(), limits::PAIR_BODY).await;
        let body = read.map_err(|error| {
            let (status, why) = match came_late(&error) {
                true => (408, "the body comes too slowly".to_owned()),
                false => (413, format!("the body may have at most {} bytes", limits::PAIR_BODY)),
            };
            RestError::new(gateway, Error::new(Code::InvalidData, why)).with_status(status)
        })?;
        Ok(Self(RequestBody(body)))
    }
}

fn draw_code() -> String {
    let letter = || char::from(CODE_LETTERS[(random() % CODE_LETTERS.len() as u64) as usize]);
    (0..CODE_LENGTH).map(|_| letter()).collect()
}

fn draw_secret() -> String {
    (0..SECRET_WORDS).map(|_| format!("{:016x}", random())).collect()
}

/// What the log may know of a secret.
fn hash(secret: &str) -> Bytes {
    Bytes::copy_from_slice(ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref())
}

/// What holds a token or a secret is stored nowhere on its way.
fn unstored(answer: Response) -> Response {
    ([(CACHE_CONTROL, "no-store")], answer).into_response()
}

/// `POST /device/pair`
pub(super) async fn ask(State(gateway): State<Arc<Gateway>>, stranger: Stranger, body: SmallBody) -> RestResult {
    gateway.pairing_rates.check(&stranger.group).or_fail(&gateway)?;
    // Of all strangers together: each ask is a command.
    gateway.all_pairings.check("").or_fail(&gateway)?;
    let (device_id, name) = body.0.read(&gateway, Code::Registration, |f| {
        let device_id = if f.has("device_id") { f.device_id()? } else { String::new() };
        let name = f.maybe_text("name", limits::PAIR_NAME)?.unwrap_or_default();
        if !is_name(&name) {
            return Err(BadPayload::field("name", "must not hold control or invisible characters"));
        }
        Ok((device_id, name))
    })?;
    let secret = draw_secret();
    let address = stranger.address.map(|address| address.to_string()).unwrap_or_default();
    let ask = PairAsk { code: draw_code(), secret_hash: hash(&secret), device_id, name, address };
    let outcome = gateway.cluster.propose(Intent::PairAsk(ask)).await.or_fail(&gateway)?;
    let Some(Given::Pairing(row)) = outcome.result else { return Err(unexpected(&gateway)) };
    Ok(unstored(answer(|o| {
        o.flag("success", true).text("code", &row.code).text("secret", &secret);
        o.time("expires", row.expires_ms).number("poll_seconds", POLL_SECONDS).time("timestamp", outcome.at_ms);
    })))
}

/// Who guesses is counted and logged as one with a wrong token is.
fn no_such_code(gateway: &Gateway, stranger: &Stranger) -> RestError {
    let why = "there is no such code, it has expired, or the secret is not its own";
    let error = Error::new(Code::NotRegistered, why);
    gateway.refusals.count(stranger.address, &error);
    RestError::new(gateway, error)
}

/// `GET /device/pair/{code}`: with the secret as its bearer. Once it is approved, the token: to the first who asks.
pub(super) async fn poll(
    State(gateway): State<Arc<Gateway>>,
    stranger: Stranger,
    PathParts(code): PathParts<String>,
) -> RestResult {
    let secret_hash = hash(stranger.secret.as_deref().unwrap_or_default());
    let find = || {
        let state = gateway.cluster.replica().state();
        state.pairing(&code, UnixMs(gateway.now_ms())).filter(|row| row.secret_hash == secret_hash).cloned()
    };
    let row = match find() {
        Some(row) => row,
        // Whoever has the right secret is never kept waiting by those who guess.
        None => {
            gateway.wrong_pairings.check(&stranger.group).or_fail(&gateway)?;
            gateway.all_wrong_pairings.check("").or_fail(&gateway)?;
            if valid_code(&code) {
                // Another node may have taken it in just now.
                gateway.cluster.read_barrier().await.or_fail(&gateway)?;
            }
            find().ok_or_else(|| no_such_code(&gateway, &stranger))?
        }
    };
    let (row, token) = match row.status() {
        PairingStatus::Approved => {
            let claim = PairClaim { code, secret_hash };
            let outcome = gateway.cluster.propose(Intent::PairClaim(claim)).await.or_fail(&gateway)?;
            let Some(Given::Pairing(row)) = outcome.result else { return Err(unexpected(&gateway)) };
            gateway.cluster.read_barrier().await.or_fail(&gateway)?;
            let class = Class::numbered(row.class).ok_or_else(|| unexpected(&gateway))?;
            let token = auth::new_token(&gateway, &row.device_id, class, None, gateway.settings.paired_token.as_secs());
            (row, Some(token.or_fail(&gateway)?))
        }
        _ => (row, None),
    };
    let status = if token.is_some() { "approved" } else { status_name(row.status()) };
    Ok(unstored(answer(|o| {
        o.text("code", &row.code).text("status", status);
        if let Some((token, claims)) = &token {
            o.text("device_id", &claims.sub).text("class", claims.class.name()).text("token", token);
            o.time("expires", claims.exp.saturating_mul(1_000));
        }
        o.time("timestamp", gateway.now_ms());
    })))
}

fn status_name(status: PairingStatus) -> &'static str {
    match status {
        PairingStatus::Waiting | PairingStatus::Unset => "waiting",
        PairingStatus::Approved => "approved",
        PairingStatus::Refused => "refused",
        PairingStatus::Claimed => "claimed",
    }
}

/// `GET /device/pairings`: who asks, and from where.
pub(super) async fn list(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: QueryFields) -> RestResult {
    auth::must_be_privileged(&caller.0, "see who asks to be paired").or_fail(&gateway)?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let rows: Vec<(Pairing, bool)> = {
        let state = gateway.cluster.replica().state();
        let known = |row: &Pairing| state.device(&row.device_id).is_some();
        state.pairings(UnixMs(gateway.now_ms())).into_iter().map(|row| (row.clone(), known(row))).collect()
    };
    Ok(answer(|o| {
        o.array("pairings", &rows, |out, (row, known)| {
            push_object(out, |o| {
                o.text("code", &row.code).text("status", status_name(row.status()));
                o.text_or_null("device_id", &row.device_id).flag("known", *known);
                o.text("name", &row.name).text("address", &row.address);
                o.time("asked", row.asked_ms).time("expires", row.expires_ms);
                if let Some(class) = ClassNumber::of(row.class) {
                    o.text("class", class.name());
                }
            });
        });
        source.tell(o);
    }))
}

/// `POST /device/pairings/{code}/approve`
pub(super) async fn approve(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(code): PathParts<String>,
    body: RequestBody,
) -> RestResult {
    auth::must_be_privileged(&caller.0, "approve a device").or_fail(&gateway)?;
    let (class, device_id) = body.read(&gateway, Code::InvalidData, |f| {
        let class = f.word("class", "one of the classes", |word| word.parse::<Class>().ok())?;
        Ok((class, if f.has("device_id") { f.device_id()? } else { String::new() }))
    })?;
    if class.priority() > caller.0.class.priority() {
        let why = format!("class may be {} at most for a {}", caller.0.class, caller.0.class);
        return Err(RestError::new(&gateway, Error::new(Code::Forbidden, why).about("class", None)));
    }
    let class = class.number().number();
    decide(&gateway, &caller.0, PairDecide { code, approved: true, class, device_id, ..PairDecide::default() }).await
}

/// `POST /device/pairings/{code}/refuse`
pub(super) async fn refuse(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(code): PathParts<String>,
) -> RestResult {
    auth::must_be_privileged(&caller.0, "refuse a device").or_fail(&gateway)?;
    decide(&gateway, &caller.0, PairDecide { code, ..PairDecide::default() }).await
}

async fn decide(gateway: &Arc<Gateway>, caller: &Claims, decision: PairDecide) -> RestResult {
    let decision = PairDecide { by: caller.sub.clone(), asker: auth::asker(caller).into(), ..decision };
    let outcome = gateway.propose_for(caller, Intent::PairDecide(decision)).await.or_fail(gateway)?;
    let Some(Given::Pairing(row)) = outcome.result else { return Err(unexpected(gateway)) };
    Ok(answer(|o| {
        o.flag("success", true).text("code", &row.code).text("status", status_name(row.status()));
        o.text_or_null("device_id", &row.device_id);
        if let Some(class) = ClassNumber::of(row.class) {
            o.text("class", class.name());
        }
        o.time("timestamp", outcome.at_ms);
    }))
}

/// `POST /token/renew`
pub(super) async fn renew(State(gateway): State<Arc<Gateway>>, caller: Caller) -> RestResult {
    fresh(&gateway, &caller.0).await?;
    let (token, claims) = auth::renewed(&gateway, &caller.0).or_fail(&gateway)?;
    let at_ms = gateway.now_ms();
    Ok(unstored(answer(|o| {
        o.flag("success", true);
        ServerEvent::TokenRenewed { token: &token, claims: &claims, at_ms }.fill(o);
    })))
}
