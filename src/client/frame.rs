//! Events as both socket transports carry them, for a client.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// A `/ws` text frame.
#[derive(Deserialize)]
pub struct WsFrame<'a> {
    #[serde(borrow)]
    pub event: Cow<'a, str>,
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
}

/// An event of the server.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedEvent {
    pub name: String,
    pub data: Value,
}

impl ReceivedEvent {
    /// A text field of the payload.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        self.data.get(key).and_then(Value::as_u64)
    }

    /// The code and the words of an `error` or `sync_error`.
    pub fn error(&self) -> Option<(Option<u32>, String)> {
        let words = match self.name.as_str() {
            "error" => self.text("error"),
            "sync_error" => self.text("error_message"),
            _ => return None,
        };
        let code = self.text("error_code").and_then(|c| c.parse().ok());
        Some((code, words.unwrap_or("no reason given").to_owned()))
    }
}

/// A `/ws` frame around data that is JSON already.
pub fn ws_frame(event: &str, data: &str) -> String {
    format!(r#"{{"event":"{event}","data":{data}}}"#)
}

/// `device_online`, as the commands of this binary send it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeviceOnlineFrame<'a> {
    pub device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub capabilities: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribe: Option<&'a [&'a str]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<&'a str>,
}

impl<'a> DeviceOnlineFrame<'a> {
    /// A device that only writes: it hears no broadcasts and does not stand for master.
    pub fn tool(device_id: &'a str) -> Self {
        Self { device_id, capabilities: &["no-master"], subscribe: Some(&[]), ..Self::default() }
    }
}

/// `data_update`, with data that is JSON already.
#[derive(Clone, Debug, Serialize)]
pub struct DataUpdateFrame<'a> {
    pub device_id: &'a str,
    pub table_name: &'a str,
    pub record_id: i64,
    pub operation: &'a str,
    pub request_id: &'a str,
    pub new_data: &'a RawValue,
    /// A part of a bulk load: it waits while disks are low.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bulk: bool,
}

/// JSON of a payload of ours. They are maps with text keys, which always serialise.
pub fn json<T: Serialize>(payload: &T) -> String {
    serde_json::to_string(payload).unwrap_or_else(|_| "null".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_comes_online_without_broadcasts() {
        let data = json(&DeviceOnlineFrame::tool("d"));
        assert_eq!(data, r#"{"device_id":"d","capabilities":["no-master"],"subscribe":[]}"#);
        let frame = ws_frame("device_online", &data);
        let parsed: WsFrame<'_> = serde_json::from_str(&frame).unwrap();
        assert_eq!((parsed.event.as_ref(), parsed.data.unwrap().get()), ("device_online", data.as_str()));
    }

    #[test]
    fn errors_are_read_from_both_error_events() {
        let event = |name: &str, data| ReceivedEvent { name: name.into(), data };
        let error = event("error", serde_json::json!({"error": "no", "error_code": "2005"}));
        assert_eq!(error.error(), Some((Some(2005), "no".into())));
        let error = event("sync_error", serde_json::json!({"error_message": "no"}));
        assert_eq!(error.error(), Some((None, "no".into())));
        assert_eq!(event("acknowledged", serde_json::json!({})).error(), None);
    }
}
