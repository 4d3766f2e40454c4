//! Socket.IO packets as clients send them: a digit, perhaps a namespace and an ack id, then JSON.

use crate::gateway::protocol::BadPayload;

#[derive(Debug, PartialEq)]
pub(super) enum ClientPacket<'a> {
    /// `auth` is the JSON that came with it.
    Connect {
        namespace: &'a str,
        auth: Option<&'a str>,
    },
    Disconnect,
    /// `body` is `["event", …]`, not looked into yet.
    Event {
        body: &'a str,
        ack: Option<i64>,
    },
    /// An event with so many attachments, which follow as frames of their own.
    WithAttachments {
        attachments: u64,
        body: &'a str,
        ack: Option<i64>,
    },
    /// A client's answer to a callback; the server asks for none.
    Ack {
        attachments: u64,
    },
}

impl<'a> ClientPacket<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, BadPayload> {
        let kind = text.as_bytes().first().copied();
        let (attachments, rest) = match kind {
            Some(b'5' | b'6') => attachments(&text[1..])?,
            Some(_) => (0, text.get(1..).unwrap_or_default()),
            None => (0, ""),
        };
        let (namespace, rest) = namespace(rest);
        match kind {
            Some(b'0') => Ok(Self::Connect { namespace, auth: Some(rest).filter(|t| !t.is_empty()) }),
            Some(b'1') => Ok(Self::Disconnect),
            Some(b'2' | b'5') => {
                let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                let (id, body) = rest.split_at(digits);
                let ack = match id {
                    "" => None,
                    id => Some(id.parse().map_err(|_| BadPayload::payload("the packet's ack id is too large"))?),
                };
                match kind {
                    Some(b'5') => Ok(Self::WithAttachments { attachments, body, ack }),
                    _ => Ok(Self::Event { body, ack }),
                }
            }
            Some(b'3' | b'6') => Ok(Self::Ack { attachments }),
            _ => Err(BadPayload::payload("this is not a Socket.IO packet")),
        }
    }
}

/// How many attachments follow, and the rest: the number stands before a dash.
fn attachments(text: &str) -> Result<(u64, &str), BadPayload> {
    let (number, rest) =
        text.split_once('-').ok_or_else(|| BadPayload::payload("the packet has no number of attachments"))?;
    let number = number.parse().map_err(|_| BadPayload::payload("the packet has no number of attachments"))?;
    Ok((number, rest))
}

/// The namespace, empty for the root, and what follows it. It stands before a comma.
fn namespace(text: &str) -> (&str, &str) {
    if !text.starts_with('/') {
        return ("", text);
    }
    let (name, rest) = text.split_once(',').unwrap_or((text, ""));
    // An old client's namespace may carry a query.
    (name.split('?').next().unwrap_or(name), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read() {
        let parse = ClientPacket::parse;
        let event = |body, ack| ClientPacket::Event { body, ack };
        let connect = |namespace, auth| ClientPacket::Connect { namespace, auth };
        assert_eq!(parse("0").unwrap(), connect("", None));
        assert_eq!(parse(r#"0{"token":"t"}"#).unwrap(), connect("", Some(r#"{"token":"t"}"#)));
        assert_eq!(parse(r#"0/admin,{"a":1}"#).unwrap(), connect("/admin", Some(r#"{"a":1}"#)));
        assert_eq!(parse("0/admin?x=1").unwrap(), connect("/admin", None));
        assert_eq!(parse("1").unwrap(), ClientPacket::Disconnect);
        assert_eq!(parse(r#"2["e",{}]"#).unwrap(), event(r#"["e",{}]"#, None));
        assert_eq!(parse(r#"212["e"]"#).unwrap(), event(r#"["e"]"#, Some(12)));
        assert_eq!(parse(r#"2/x,7["e"]"#).unwrap(), event(r#"["e"]"#, Some(7)));
        assert_eq!(parse("31[]").unwrap(), ClientPacket::Ack { attachments: 0 });
        assert_eq!(parse("61-4[]").unwrap(), ClientPacket::Ack { attachments: 1 });
        let with = |attachments, body, ack| ClientPacket::WithAttachments { attachments, body, ack };
        assert_eq!(parse("51-[\"e\"]").unwrap(), with(1, "[\"e\"]", None));
        assert_eq!(parse("52-/x,7[\"e\"]").unwrap(), with(2, "[\"e\"]", Some(7)));
        for bad in ["", "x", "9", "é", "5[\"e\"]", "5x-[\"e\"]", "299999999999999999999[\"e\"]"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
