//! A token that was taken back does nothing more, and a suspended device neither, on any node and whatever clocks say;
//! nobody else is refused for it; who was forgotten is not listed. Between an order and its answer both are right.

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::{History, OpOutcome, Order, Ordered};

/// A node that is cut off refuses by what it knew before, at its door, until it has caught up: longer than faults last.
const BEHIND_US: u64 = 5_000_000;

/// What a token was used for.
struct TokenUse<'a> {
    what: String,
    token: u64,
    from: u64,
    from_us: u64,
    to: u64,
    done: bool,
    error: &'a str,
}

struct Got<'a> {
    device: &'a str,
    from: u64,
    to: u64,
}

pub(super) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let got: HashMap<u64, Got<'_>> = history.orders.iter().filter_map(got).collect();
    let of = |device: &str, is_it: fn(&Ordered) -> Option<&String>| -> Vec<&Order> {
        let about = |order: &&Order| is_it(&order.ordered).is_some_and(|of| of == device);
        history.orders.iter().filter(|order| order.outcome != OpOutcome::Failed).filter(about).collect()
    };
    for used in uses(history) {
        let Some(token) = got.get(&used.token) else { continue };
        let (what, device) = (&used.what, token.device);
        let revoked = of(device, |o| if let Ordered::Revoke { device } = o { Some(device) } else { None });
        let suspended = of(device, |o| if let Ordered::Suspend { device } = o { Some(device) } else { None });
        let resumed = of(device, |o| if let Ordered::Resume { device } = o { Some(device) } else { None });
        if used.done {
            let out =
                revoked.iter().find(|o| o.outcome == OpOutcome::Ok && token.to < o.invoked && o.returned < used.from);
            finding.require(out.is_none(), || {
                format!("{what} was let, with token {} of {device}, which had been taken back", used.token)
            });
            let out = suspended.iter().filter(|o| o.outcome == OpOutcome::Ok && o.returned < used.from);
            let out = out.filter(|o| !resumed.iter().any(|r| r.returned > o.invoked && r.invoked < used.to)).count();
            finding.require(out == 0, || format!("{what} was let, while {device} was suspended"));
        }
        if used.error.contains("taken back") {
            let may = revoked.iter().any(|o| o.invoked < used.to && o.returned >= token.from);
            finding.require(may, || {
                format!("{what} was refused ({}), though nobody took token {} back", used.error, used.token)
            });
        }
        if used.error.contains("is suspended") {
            let ended = |o: &Order| {
                let ends = |r: &&&Order| {
                    r.outcome == OpOutcome::Ok
                        && r.invoked > o.returned
                        && r.returned_us.saturating_add(BEHIND_US) < used.from_us
                };
                resumed.iter().any(|r| ends(&r))
            };
            let may = suspended.iter().any(|o| o.invoked < used.to && !ended(o));
            finding.require(may, || format!("{what} was refused ({}), though {device} was not suspended", used.error));
        }
    }
    forgotten(history, &mut finding);
    finding
}

fn got(order: &Order) -> Option<(u64, Got<'_>)> {
    let Ordered::Token { device, number, .. } = &order.ordered else { return None };
    let is_here = order.outcome == OpOutcome::Ok;
    is_here.then_some((*number, Got { device, from: order.invoked, to: order.returned }))
}

fn uses(history: &History) -> Vec<TokenUse<'_>> {
    let mut uses = Vec::new();
    // Deletes have no value of their own.
    let named = |(value, _): &(&str, u64)| !value.is_empty();
    let written: HashMap<&str, u64> =
        history.ops.iter().filter_map(|op| Some((op.asked.as_write()?.2, op.invoked))).filter(named).collect();
    for op in &history.ops {
        let Some(token) = &op.token else { continue };
        let what = format!("operation {} of {} on node {}", op.id, op.device, op.node);
        let (from, to, done) = (op.invoked, op.returned, op.outcome == OpOutcome::Ok);
        let from_us = op.invoked_us;
        uses.push(TokenUse { what, token: token.number, from, from_us, to, done, error: &op.error });
    }
    for shown in &history.shown {
        // A live change is shown after it was asked for.
        let Some(from) = shown.asked.or_else(|| written.get(&*shown.value).copied()) else { continue };
        let what = format!(
            "session {} of {}, shown change {} on node {},",
            shown.session, shown.device, shown.seq, shown.node
        );
        uses.push(TokenUse {
            what,
            token: shown.token.number,
            from,
            from_us: shown.us,
            to: shown.tick,
            done: true,
            error: "",
        });
    }
    for order in &history.orders {
        let Ordered::Token { device, renews: Some(token), .. } = &order.ordered else { continue };
        let what = format!("renewing on node {} by {device}", order.node);
        let (from, to, done) = (order.invoked, order.returned, order.outcome == OpOutcome::Ok);
        let from_us = order.invoked_us;
        uses.push(TokenUse { what, token: *token, from, from_us, to, done, error: &order.error });
    }
    uses
}

/// Until somebody lets it in again, a device that was forgotten is not there.
fn forgotten(history: &History, finding: &mut Finding) {
    for look in history.orders.iter().filter(|order| order.outcome != OpOutcome::Unknown) {
        let Ordered::Look { device: of } = &look.ordered else { continue };
        let gone = history.orders.iter().rev().find(|order| {
            let is_it = matches!(&order.ordered, Ordered::Forget { device } if device == of);
            is_it && order.outcome == OpOutcome::Ok && order.returned < look.invoked
        });
        let Some(gone) = gone else { continue };
        let back = history.orders.iter().any(|order| {
            let is_it = matches!(&order.ordered, Ordered::Approve { device, .. } if device == of);
            is_it
                && order.outcome != OpOutcome::Failed
                && order.returned > gone.invoked
                && order.invoked < look.returned
        });
        finding.require(back || look.outcome == OpOutcome::Failed, || {
            format!("node {} lists {of}, which was forgotten and is not let in again", look.node)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, op, wrong};
    use super::*;
    use crate::history::{NumberedToken, Op, OpRequest};

    fn order(at: u64, ordered: Ordered, outcome: OpOutcome) -> Order {
        let (invoked, returned) = (at, if outcome == OpOutcome::Unknown { u64::MAX } else { at + 2 });
        let (invoked_us, returned_us, error) = (invoked, returned, String::new());
        Order { node: 1, ordered, invoked, invoked_us, returned, returned_us, outcome, error }
    }

    fn d() -> String {
        "d".into()
    }

    fn token(at: u64, number: u64, renews: Option<u64>) -> Order {
        order(at, Ordered::Token { device: d(), number, renews, code: None }, OpOutcome::Ok)
    }

    fn revoke(at: u64) -> Order {
        order(at, Ordered::Revoke { device: d() }, OpOutcome::Ok)
    }

    fn read(id: u64, number: u64, outcome: OpOutcome, error: &str) -> Op {
        let token = Some(NumberedToken { number, class: "c".into() });
        let asked = OpRequest::Read { table: "stock".into(), record: 1 };
        Op { token, outcome, error: error.into(), ..op(id, asked) }
    }

    fn of(orders: Vec<Order>, ops: Vec<Op>) -> Finding {
        let mut history = good();
        history.ops.extend(ops);
        check(&History { orders, ..history })
    }

    #[test]
    fn a_token_that_goes_on_after_it_was_taken_back_is_found() {
        let with = |ops| of(vec![token(1, 1, None), revoke(200)], ops);
        wrong(&with(vec![read(30, 1, OpOutcome::Ok, "")]), "had been taken back");
        assert!(with(vec![read(30, 1, OpOutcome::Unknown, "")]).violations.is_empty());
        assert!(with(vec![read(20, 1, OpOutcome::Ok, "")]).violations.is_empty(), "asked at the same time");
        wrong(&with(vec![read(10, 1, OpOutcome::Failed, "tokens were taken back")]), "nobody took token 1 back");
        assert!(with(vec![read(30, 1, OpOutcome::Failed, "tokens were taken back")]).violations.is_empty());
        wrong(&of(vec![token(1, 1, None), revoke(200), token(210, 2, Some(1))], vec![]), "renewing");
        let newer = of(vec![revoke(200), token(210, 2, None)], vec![read(30, 2, OpOutcome::Ok, "")]);
        assert!(newer.violations.is_empty());
        let refused = read(30, 2, OpOutcome::Failed, "tokens were taken back");
        wrong(&of(vec![revoke(200), token(210, 2, None)], vec![refused]), "nobody took token 2 back");
    }

    #[test]
    fn a_device_that_goes_on_while_it_is_suspended_is_found() {
        let suspend = || order(200, Ordered::Suspend { device: d() }, OpOutcome::Ok);
        let resume = |at| order(at, Ordered::Resume { device: d() }, OpOutcome::Ok);
        let with = |orders: Vec<Order>, op| of([vec![token(1, 1, None)], orders].concat(), vec![op]);
        wrong(&with(vec![suspend()], read(30, 1, OpOutcome::Ok, "")), "was suspended");
        assert!(with(vec![suspend(), resume(250)], read(30, 1, OpOutcome::Ok, "")).violations.is_empty());
        let refused = || read(30, 1, OpOutcome::Failed, "device is suspended");
        assert!(with(vec![suspend()], refused()).violations.is_empty());
        assert!(with(vec![suspend(), resume(250)], refused()).violations.is_empty(), "the node may not know yet");
        let later = Op { invoked_us: 2 * BEHIND_US, ..refused() };
        wrong(&with(vec![suspend(), resume(250)], later), "was not suspended");
    }

    #[test]
    fn a_forgotten_device_that_is_listed_is_found() {
        let forget = || order(200, Ordered::Forget { device: d() }, OpOutcome::Ok);
        let look = |outcome| order(300, Ordered::Look { device: d() }, outcome);
        let approve = order(250, Ordered::Approve { code: "C".into(), device: d() }, OpOutcome::Ok);
        wrong(&of(vec![forget(), look(OpOutcome::Ok)], vec![]), "was forgotten");
        assert!(of(vec![forget(), look(OpOutcome::Failed)], vec![]).violations.is_empty());
        assert!(of(vec![forget(), approve, look(OpOutcome::Ok)], vec![]).violations.is_empty());
    }
}
