//! A code is approved once at most and gives one token at most, if somebody approved it and nobody refused it.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::history::{History, OpOutcome, Order, Ordered};

#[derive(Default)]
struct CodeOrders<'a> {
    approved: Vec<&'a Order>,
    refused: Vec<&'a Order>,
    tokens: Vec<&'a Order>,
}

pub(super) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut codes = BTreeMap::<&str, CodeOrders<'_>>::new();
    for order in history.orders.iter().filter(|order| order.outcome != OpOutcome::Failed) {
        match &order.ordered {
            Ordered::Approve { code, .. } => codes.entry(code).or_default().approved.push(order),
            Ordered::Refuse { code, .. } => codes.entry(code).or_default().refused.push(order),
            Ordered::Token { code: Some(code), .. } => codes.entry(code).or_default().tokens.push(order),
            _ => {}
        }
    }
    let sure = |orders: &[&Order]| orders.iter().filter(|order| order.outcome == OpOutcome::Ok).count();
    for (code, CodeOrders { approved, refused, tokens }) in codes {
        let decided = sure(&approved) + sure(&refused);
        finding.require(decided <= 1, || format!("code {code} was decided {decided} times"));
        let given = sure(&tokens);
        finding.require(given <= 1, || format!("code {code} gave {given} tokens"));
        if let Some(token) = tokens.iter().find(|order| order.outcome == OpOutcome::Ok) {
            let let_in = approved.iter().any(|order| order.invoked < token.returned);
            finding
                .require(let_in, || format!("code {code} gave a token on node {}, and nobody approved it", token.node));
            finding.require(sure(&refused) == 0, || format!("code {code} gave a token, and was refused"));
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    fn order(at: u64, ordered: Ordered) -> Order {
        let (invoked, returned, error) = (at, at + 2, String::new());
        let (invoked_us, returned_us, outcome) = (invoked, returned, OpOutcome::Ok);
        Order { node: 1, ordered, invoked, invoked_us, returned, returned_us, outcome, error }
    }

    fn of(orders: Vec<Order>) -> Finding {
        check(&History { orders, ..good() })
    }

    #[test]
    fn codes_that_let_in_twice_or_without_a_person_are_found() {
        let (code, device) = (|| "C".to_owned(), || "d".to_owned());
        let approve = |at| order(at, Ordered::Approve { code: code(), device: device() });
        let refuse = order(20, Ordered::Refuse { code: code(), device: device() });
        let token =
            |at, number| order(at, Ordered::Token { device: device(), number, renews: None, code: Some(code()) });
        assert!(of(vec![approve(10), token(20, 1)]).violations.is_empty());
        wrong(&of(vec![approve(10), approve(20)]), "decided 2 times");
        wrong(&of(vec![approve(10), token(20, 1), token(30, 2)]), "gave 2 tokens");
        wrong(&of(vec![token(20, 1)]), "nobody approved it");
        wrong(&of(vec![approve(40), token(20, 1)]), "nobody approved it");
        wrong(&of(vec![approve(10), refuse, token(30, 1)]), "was refused");
    }
}
