//! Orders about others, over REST, as a person at a desk gives them, or a device about its own tokens: each is recorded
//! with what came of it.

use std::sync::Arc;

use serde_json::Value;

use super::{Request, Testbed, WorkloadPhase};
use crate::history::{OpOutcome, Order, Ordered};
use crate::rng::Rng;

/// Somebody with a token who asks any node.
pub(crate) struct Desk<T> {
    pub world: Arc<T>,
    pub token: String,
    pub rng: Rng,
}

impl<T: Testbed> Desk<T> {
    pub(crate) fn phase(&self) -> WorkloadPhase {
        *self.world.phase().borrow()
    }

    /// Gives an order to some node, and records it. The second one is the body of the answer.
    pub(crate) async fn give(&mut self, ordered: Ordered, request: Request) -> (OpOutcome, Value) {
        let Some(node) = self.rng.pick(&self.world.nodes()).cloned() else { return (OpOutcome::Failed, Value::Null) };
        let (order, body) = order(&self.world, node, &self.token, ordered, request).await;
        let outcome = order.outcome;
        self.world.recorder().order(order);
        (outcome, body)
    }

    /// Gives an order to two nodes at once, and records both.
    pub(crate) async fn give_twice(&mut self, ordered: Ordered, request: Request) {
        let nodes = self.world.nodes();
        let (Some(a), Some(b)) = (self.rng.pick(&nodes).cloned(), self.rng.pick(&nodes).cloned()) else { return };
        let (one, other) = tokio::join!(
            order(&self.world, a, &self.token, ordered.clone(), request.clone()),
            order(&self.world, b, &self.token, ordered, request),
        );
        self.world.recorder().order(one.0);
        self.world.recorder().order(other.0);
    }
}

pub(crate) fn request(method: &'static str, path: String, body: Option<Value>) -> Request {
    Request { method, path, body }
}

/// Gives an order to this node.
pub(crate) async fn order<T: Testbed>(
    world: &Arc<T>,
    (id, node): (u64, T::Node),
    token: &str,
    ordered: Ordered,
    request: Request,
) -> (Order, Value) {
    let (invoked, invoked_us) = world.recorder().now();
    let answer = world.call(node, token, request).await;
    let (returned, returned_us) = world.recorder().now();
    let (outcome, error, body) = meaning(answer);
    // What nobody knows the end of may be done later.
    let (returned, returned_us) =
        if outcome == OpOutcome::Unknown { (u64::MAX, u64::MAX) } else { (returned, returned_us) };
    (Order { node: id, ordered, invoked, invoked_us, returned, returned_us, outcome, error }, body)
}

/// An error of the server may come after the order was done: nobody knows then.
fn meaning(answer: Option<(u16, Value)>) -> (OpOutcome, String, Value) {
    let Some((status, body)) = answer else { return (OpOutcome::Unknown, "no answer".into(), Value::Null) };
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let outcome = match status {
        200..=299 => return (OpOutcome::Ok, String::new(), body),
        500.. => OpOutcome::Unknown,
        _ => OpOutcome::Failed,
    };
    (outcome, format!("{} {}", text("error_code"), text("error")), body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_refusal_is_surely_not_done() {
        let of = |status, body| meaning(Some((status, body)));
        assert_eq!(of(200, json!({})).0, OpOutcome::Ok);
        let refused = of(403, json!({ "error_code": "3003", "error": "no" }));
        assert_eq!((refused.0, refused.1.as_str()), (OpOutcome::Failed, "3003 no"));
        assert_eq!(of(503, json!({ "retry": "safe" })).0, OpOutcome::Unknown);
        assert_eq!(meaning(None).0, OpOutcome::Unknown);
    }
}
