//! Which class of tokens may read and write which table.

use std::sync::Arc;

use axum::extract::State;

use super::{OrFail, PathParts, QueryFields, RequestBody, RestError, RestResult, Source, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::json::{Object, push_object};
use crate::gateway::protocol::{self, BadPayload, class_rights};
use crate::model::access::{CLASSES, ClassNumber, ClassRights};
use crate::model::error::Code;
use crate::proto::AccessPut;
use crate::proto::command::Intent;

/// `GET /access`: of every class for admins and managers, of its own class for every other token.
pub(super) async fn list(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: QueryFields) -> RestResult {
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let own = caller.0.class.number();
    let shown = |class: &ClassNumber| caller.0.class.is_privileged() || own == *class;
    let access = gateway.cluster.replica().state().access().clone();
    let classes = CLASSES.iter().filter_map(|name| ClassNumber::named(name)).filter(shown);
    let classes: Vec<_> = classes.map(|class| (class, access.of(class).cloned())).collect();
    Ok(answer(|o| {
        o.array("classes", &classes, |out, (class, rights)| push_object(out, |o| fill(o, *class, rights.as_deref())));
        source.tell(o);
    }))
}

/// `PUT /access/{class}`: takes the place of what was set for the class.
pub(super) async fn put(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(name): PathParts<String>,
    body: RequestBody,
) -> RestResult {
    auth::must_be_admin(&caller.0, "change what classes may do").or_fail(&gateway)?;
    let class = ClassNumber::named(&name).ok_or_else(|| {
        let why = format!("must be one of {}", CLASSES.join(", "));
        RestError::bad(&gateway, Code::InvalidData, BadPayload::field("class", why))
    })?;
    let put = body.read(&gateway, Code::InvalidData, protocol::access)?;
    let put = AccessPut { class: class.number(), by: caller.0.sub.clone(), ..put };
    gateway.propose_for(&caller.0, Intent::AccessPut(put)).await.or_fail(&gateway)?;
    // It is committed; this node may not have applied it yet.
    gateway.cluster.read_barrier().await.or_fail(&gateway)?;
    let rights = gateway.cluster.replica().state().access().of(class).cloned();
    Ok(answer(|o| {
        o.flag("success", true);
        fill(o, class, rights.as_deref());
    }))
}

fn fill(o: &mut Object<'_>, class: ClassNumber, rights: Option<&ClassRights>) {
    class_rights(o, class, rights);
    if let Some((at_ms, by)) = rights.map(ClassRights::set) {
        o.text("set_by", by).time("set_at", at_ms.get());
    }
}
