//! How far this node has come with the cluster.

use tokio::sync::watch;

use crate::model::error::{Code, Error};

#[derive(Clone, Debug, Default)]
pub(super) enum NodeLifecycle {
    /// Nothing keeps it from taking part, as far as it knows.
    #[default]
    TakesPart,
    /// Why it takes no part yet, or not the one that its settings give it.
    Waits(String),
    /// Why it must not serve any more. Nothing comes after this.
    Ended(Error),
}

/// The lifecycle of one node, for whoever changes it, reads it or waits for its end.
#[derive(Default)]
pub(super) struct Lifecycle(watch::Sender<NodeLifecycle>);

impl Lifecycle {
    pub(super) fn takes_part(&self) {
        self.come_to(NodeLifecycle::TakesPart);
    }

    pub(super) fn waits(&self, why: impl Into<String>) {
        self.come_to(NodeLifecycle::Waits(why.into()));
    }

    /// The first reason stays.
    pub(super) fn end(&self, why: Error) {
        self.come_to(NodeLifecycle::Ended(why));
    }

    fn come_to(&self, next: NodeLifecycle) {
        self.0.send_if_modified(|now| {
            let goes_on = !matches!(now, NodeLifecycle::Ended(_));
            if goes_on {
                *now = next;
            }
            goes_on
        });
    }

    pub(super) fn why_it_waits(&self) -> Option<String> {
        match &*self.0.borrow() {
            NodeLifecycle::Waits(why) => Some(why.clone()),
            NodeLifecycle::TakesPart | NodeLifecycle::Ended(_) => None,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.0.borrow(), NodeLifecycle::Ended(_))
    }

    /// Resolves with the reason when the node must not serve any more.
    pub(super) async fn ended(&self) -> Error {
        let mut changes = self.0.subscribe();
        match changes.wait_for(|now| matches!(now, NodeLifecycle::Ended(_))).await.as_deref() {
            Ok(NodeLifecycle::Ended(why)) => why.clone(),
            // The sender lives as long as this.
            _ => Error::new(Code::Unavailable, "the node is shutting down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_has_ended_neither_waits_nor_takes_part_again() {
        let lifecycle = Lifecycle::default();
        lifecycle.waits("it is new");
        assert_eq!(lifecycle.why_it_waits().as_deref(), Some("it is new"));
        lifecycle.takes_part();
        assert_eq!((lifecycle.why_it_waits(), lifecycle.has_ended()), (None, false));
        lifecycle.end(Error::new(Code::Storage, "first"));
        lifecycle.end(Error::new(Code::Storage, "second"));
        lifecycle.waits("it is new");
        lifecycle.takes_part();
        assert!(lifecycle.has_ended() && lifecycle.ended().await.to_string().contains("first"));
        assert_eq!(lifecycle.why_it_waits(), None);
    }
}
