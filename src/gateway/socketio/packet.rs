//! Socket.IO packets as clients send them: a digit, perhaps a namespace and an ack id, then JSON.

use engineioxide::Str;

use crate::gateway::wire::Bad;

#[derive(Debug, PartialEq)]
pub enum Packet {
    /// `auth` is the JSON that came with it.
    Connect {
        namespace: String,
        auth: Option<String>,
    },
    Disconnect,
    /// `body` is `["event", …]`, not looked into yet.
    Event {
        body: Str,
        ack: Option<i64>,
    },
    /// A client's answer to a callback; the server asks for none.
    Ack,
    /// Stands in the queue for a packet that could not be read, so that its error comes in its turn.
    Bad(Bad),
}

impl Packet {
    pub fn parse(text: Str) -> Result<Self, Bad> {
        let kind = text.as_bytes().first().copied();
        let (namespace, at) = namespace(&text);
        match kind {
            Some(b'0') => {
                let auth = Some(&text[at..]).filter(|t| !t.is_empty()).map(str::to_owned);
                Ok(Self::Connect { namespace: namespace.to_owned(), auth })
            }
            Some(b'1') => Ok(Self::Disconnect),
            Some(b'2') => {
                let digits = text[at..].bytes().take_while(u8::is_ascii_digit).count();
                let body = at + digits;
                let ack = match &text[at..body] {
                    "" => None,
                    id => Some(id.parse().map_err(|_| Bad::payload("the packet's ack id is too large"))?),
                };
                Ok(Self::Event { body: text.slice(body..text.len()), ack })
            }
            Some(b'3' | b'6') => Ok(Self::Ack),
            Some(b'5') => Err(Bad::payload("binary data is not understood here")),
            _ => Err(Bad::payload("this is not a Socket.IO packet")),
        }
    }

    /// What it weighs in a queue.
    pub fn len(&self) -> usize {
        match self {
            Self::Event { body, .. } => body.len(),
            _ => 0,
        }
    }
}

/// The namespace, empty for the root, and where it ends. It stands between the digit and a comma.
fn namespace(text: &str) -> (&str, usize) {
    match text.get(1..) {
        Some(rest) if rest.starts_with('/') => match rest.split_once(',') {
            // An old client's namespace may carry a query.
            Some((name, _)) => (name.split('?').next().unwrap_or(name), 2 + name.len()),
            None => (rest.split('?').next().unwrap_or(rest), text.len()),
        },
        _ => ("", text.len().min(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Packet, Bad> {
        Packet::parse(Str::from(text.to_owned()))
    }

    fn event(body: &str, ack: Option<i64>) -> Packet {
        Packet::Event { body: Str::from(body.to_owned()), ack }
    }

    #[test]
    fn packets_are_read() {
        let connect = |namespace: &str, auth: Option<&str>| Packet::Connect {
            namespace: namespace.into(),
            auth: auth.map(Into::into),
        };
        assert_eq!(parse("0").unwrap(), connect("", None));
        assert_eq!(parse(r#"0{"token":"t"}"#).unwrap(), connect("", Some(r#"{"token":"t"}"#)));
        assert_eq!(parse(r#"0/admin,{"a":1}"#).unwrap(), connect("/admin", Some(r#"{"a":1}"#)));
        assert_eq!(parse("0/admin?x=1").unwrap(), connect("/admin", None));
        assert_eq!(parse("1").unwrap(), Packet::Disconnect);
        assert_eq!(parse(r#"2["e",{}]"#).unwrap(), event(r#"["e",{}]"#, None));
        assert_eq!(parse(r#"212["e"]"#).unwrap(), event(r#"["e"]"#, Some(12)));
        assert_eq!(parse(r#"2/x,7["e"]"#).unwrap(), event(r#"["e"]"#, Some(7)));
        assert_eq!(parse("31[]").unwrap(), Packet::Ack);
        for bad in ["", "x", "9", "é", "51-[\"e\"]", "299999999999999999999[\"e\"]"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
