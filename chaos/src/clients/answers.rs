//! What an answer to a `data_update` means.

use serde_json::json;

use super::Event;
use crate::history::Outcome;

/// What is known after an answer.
pub enum End {
    Known(Outcome),
    /// To be sent again; `sure`: this try was surely not applied.
    Again {
        sure: bool,
    },
}

/// The `request_id` of the write that this answers.
pub fn answered(event: &Event) -> Option<&str> {
    let ends = match event.name.as_str() {
        "acknowledged" => true,
        "error" => event.data["event"] == json!("data_update"),
        _ => false,
    };
    event.data["request_id"].as_str().filter(|_| ends)
}

pub fn end(event: &Event) -> End {
    match (event.name.as_str(), event.data["retry"].as_str()) {
        ("acknowledged", _) if event.data["seq"].as_u64().is_some() => End::Known(Outcome::Ok),
        // It lost a conflict, or waits for a decision that never comes here: it is not in the log.
        ("acknowledged", _) => End::Known(Outcome::Failed),
        _ if event.data["error_code"] == json!("2002") => End::Known(Outcome::Failed),
        (_, Some("safe")) => End::Again { sure: true },
        (_, Some("same_request_id")) => End::Again { sure: false },
        _ => End::Known(Outcome::Failed),
    }
}

/// Repeats of a write that was decided are answered as the first was.
pub fn tells_of_all(event: &Event) -> bool {
    event.name == "acknowledged" || event.data["error_code"] == json!("2002")
}

pub fn error(event: &Event) -> String {
    match event.name.as_str() {
        "error" => format!("{} {}", event.data["error_code"], event.data["error"]),
        _ => String::new(),
    }
}
