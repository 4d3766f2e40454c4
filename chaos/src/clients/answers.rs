//! What an answer to a `data_update` means.

use serde_json::json;

use super::ReceivedEvent;
use crate::history::OpOutcome;

/// What is known after an answer.
pub(crate) enum AnswerEnd {
    Known(OpOutcome),
    /// To be sent again; `sure`: this try was surely not applied.
    Again {
        sure: bool,
    },
}

/// The `request_id` of the write that this answers.
pub(crate) fn answered(event: &ReceivedEvent) -> Option<&str> {
    let ends = match event.name.as_str() {
        "acknowledged" => true,
        "error" => event.data["event"] == json!("data_update"),
        _ => false,
    };
    event.data["request_id"].as_str().filter(|_| ends)
}

pub(crate) fn end(event: &ReceivedEvent) -> AnswerEnd {
    match (event.name.as_str(), event.data["retry"].as_str()) {
        ("acknowledged", _) if event.data["seq"].as_u64().is_some() => AnswerEnd::Known(OpOutcome::Ok),
        // It lost a conflict, or waits for a decision that never comes here: it is not in the log.
        ("acknowledged", _) => AnswerEnd::Known(OpOutcome::Failed),
        _ if event.data["error_code"] == json!("2002") => AnswerEnd::Known(OpOutcome::Failed),
        (_, Some("safe")) => AnswerEnd::Again { sure: true },
        (_, Some("same_request_id")) => AnswerEnd::Again { sure: false },
        _ => AnswerEnd::Known(OpOutcome::Failed),
    }
}

/// Repeats of a write that was decided are answered as the first was.
pub(crate) fn tells_of_all(event: &ReceivedEvent) -> bool {
    event.name == "acknowledged" || event.data["error_code"] == json!("2002")
}

pub(crate) fn error(event: &ReceivedEvent) -> String {
    match event.name.as_str() {
        "error" => format!("{} {}", event.data["error_code"], event.data["error"]),
        _ => String::new(),
    }
}
