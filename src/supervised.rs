//! Tasks that run for as long as the node does. One that panics ends the node, with the reason: a node that goes on
//! without one of them is half dead, and says that it is well.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;

/// Which of a node's tasks failed first. A clone is a handle on the same.
#[derive(Clone, Debug)]
pub struct TaskFailures(Arc<watch::Sender<Option<String>>>);

impl Default for TaskFailures {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl TaskFailures {
    /// The task, whose panic is reported here under this name.
    pub fn guard<F>(&self, name: &'static str, task: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        let failures = self.clone();
        async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                failures.report(format!("the task {name} panicked: {}", words(&*panic)));
            }
        }
    }

    /// A task ended that should not have.
    pub fn report(&self, why: String) {
        tracing::error!("{why}");
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(why);
            }
            is_first
        });
    }

    /// Resolves with the first failure.
    pub async fn first(&self) -> String {
        let mut failures = self.0.subscribe();
        match failures.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The sender lives as long as this.
            Err(_) => String::new(),
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_panic_is_told_by_the_tasks_name_and_an_end_in_order_is_none() {
        let failures = TaskFailures::default();
        failures.guard("calm", async {}).await;
        assert!(failures.first().now_or_never().is_none());
        failures.guard("clock", async { panic!("at {}", 7) }).await;
        failures.guard("late", async { panic!("later") }).await;
        assert_eq!(failures.first().await, "the task clock panicked: at 7");
    }
}
