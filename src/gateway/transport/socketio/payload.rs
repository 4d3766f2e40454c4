//! The bodies of Engine.IO's HTTP polling: several packets in one, in the three ways that clients write them.

use bytes::{Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::Eio;
use crate::limits;

/// Between the packets of Engine.IO 4.
const SEPARATOR: u8 = 0x1e;
/// Digits of a length: more than any packet that is read has.
const DIGITS: usize = 10;

/// An Engine.IO packet of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A Socket.IO packet, with Engine.IO's `4` before it.
    Message(Utf8Bytes),
    /// An attachment of a Socket.IO packet.
    Binary,
    /// With what its pong repeats.
    Ping(String),
    Pong,
    Close,
    /// Says nothing: a noop, or a late `upgrade`.
    Nothing,
    /// Cannot be read: why.
    Bad(&'static str),
    /// More than is read of one packet. What follows it is lost.
    Huge,
}

impl Incoming {
    pub(super) fn parse(text: Utf8Bytes) -> Self {
        match text.as_bytes().first() {
            Some(b'4') => Self::Message(text),
            // A pong that repeats more than a word would be a way to fill the queue.
            Some(b'2') => Self::Ping(text[1..].chars().take(16).collect()),
            Some(b'3') => Self::Pong,
            Some(b'1') => Self::Close,
            Some(b'b') => Self::Binary,
            Some(b'5' | b'6') => Self::Nothing,
            _ => Self::Bad("this is not an Engine.IO packet"),
        }
    }

    /// What it weighs in the inbox, at most what the inbox holds.
    pub(super) fn weight(&self) -> u32 {
        let bytes = match self {
            Self::Message(text) => text.len() + 128,
            _ => 128,
        };
        bytes.min(limits::INBOX_BYTES) as u32
    }
}

fn text(bytes: Bytes) -> Incoming {
    match Utf8Bytes::try_from(bytes) {
        Ok(text) => Incoming::parse(text),
        Err(_) => Incoming::Bad("the packet is not UTF-8"),
    }
}

/// Takes a body apart as it arrives.
pub(super) struct Decoder {
    eio: Eio,
    buffer: BytesMut,
    /// Up to here the buffer was looked at without finding the end of a packet; and how many UTF-16 units it has
    /// since its beginning.
    searched: usize,
    units: usize,
    broken: bool,
}

impl Decoder {
    pub(super) fn new(eio: Eio) -> Self {
        Self { eio, buffer: BytesMut::new(), searched: 0, units: 0, broken: false }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        // After a packet that cannot be told from the next one, the rest is passed over.
        if !self.broken {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next packet that is there as a whole. `last`: nothing follows.
    pub(super) fn next(&mut self, last: bool) -> Option<Incoming> {
        if self.buffer.is_empty() {
            return None;
        }
        let found = match self.eio {
            Eio::V4 => self.separated(last),
            Eio::V3 if self.buffer[0] <= 1 => self.binary(),
            Eio::V3 => self.counted(),
        };
        match found {
            Ok(Some(packet)) => Some(packet),
            Ok(None) if last => Some(self.give_up(Incoming::Bad("the payload ends within a packet"))),
            Ok(None) => None,
            Err(why) => Some(self.give_up(why)),
        }
    }

    fn give_up(&mut self, why: Incoming) -> Incoming {
        self.broken = true;
        self.buffer = BytesMut::new();
        why
    }

    fn cut(&mut self, head: usize, packet: usize, skip: usize) -> Bytes {
        let _ = self.buffer.split_to(head);
        let bytes = self.buffer.split_to(packet).freeze();
        let _ = self.buffer.split_to(skip);
        (self.searched, self.units) = (0, 0);
        bytes
    }

    /// Engine.IO 4: packets with a separator between them.
    fn separated(&mut self, last: bool) -> Result<Option<Incoming>, Incoming> {
        let end = self.buffer[self.searched..].iter().position(|b| *b == SEPARATOR).map(|at| self.searched + at);
        self.searched = self.buffer.len();
        let length = end.unwrap_or(self.buffer.len());
        if length > limits::PACKET_READ {
            return Err(Incoming::Huge);
        }
        match end {
            Some(end) => Ok(Some(text(self.cut(0, end, 1)))),
            None if last => Ok(Some(text(self.cut(0, length, 0)))),
            None => Ok(None),
        }
    }

    /// Engine.IO 3, text: the length in UTF-16 units, as JavaScript counts, a colon, the packet.
    fn counted(&mut self) -> Result<Option<Incoming>, Incoming> {
        let Some(colon) = self.buffer.iter().take(DIGITS + 1).position(|b| *b == b':') else {
            let bad = self.buffer.len() > DIGITS || !self.buffer.iter().all(u8::is_ascii_digit);
            return if bad { Err(Incoming::Bad("the payload has no length")) } else { Ok(None) };
        };
        let length = std::str::from_utf8(&self.buffer[..colon]).ok().and_then(|digits| digits.parse::<usize>().ok());
        let length = length.ok_or(Incoming::Bad("the payload has no length"))?;
        if length > limits::PACKET_READ {
            return Err(Incoming::Huge);
        }
        let mut at = self.searched.max(colon + 1);
        while self.units < length {
            let Some(first) = self.buffer.get(at) else { break };
            let (bytes, units) = match first {
                0xf0.. => (4, 2),
                0xe0.. => (3, 1),
                0xc0.. => (2, 1),
                _ => (1, 1),
            };
            if at + bytes > self.buffer.len() {
                break;
            }
            at += bytes;
            self.units += units;
        }
        self.searched = at;
        if self.units < length {
            return Ok(None);
        }
        Ok(Some(text(self.cut(colon + 1, at - colon - 1, 0))))
    }

    /// Engine.IO 3, bytes: 0 for text or 1, the length in bytes as digits of value 0 to 9, 255, the packet.
    fn binary(&mut self) -> Result<Option<Incoming>, Incoming> {
        let Some(end) = self.buffer.iter().take(DIGITS + 2).position(|b| *b == 0xff) else {
            let bad = self.buffer.len() > DIGITS + 1 || self.buffer[1..].iter().any(|b| *b > 9);
            return if bad { Err(Incoming::Bad("the payload has no length")) } else { Ok(None) };
        };
        if end == 1 || self.buffer[1..end].iter().any(|b| *b > 9) {
            return Err(Incoming::Bad("the payload has no length"));
        }
        let length = self.buffer[1..end].iter().fold(0_usize, |n, digit| n * 10 + usize::from(*digit));
        if length > limits::PACKET_READ {
            return Err(Incoming::Huge);
        }
        if self.buffer.len() < end + 1 + length {
            return Ok(None);
        }
        let is_text = self.buffer[0] == 0;
        let packet = self.cut(end + 1, length, 0);
        Ok(Some(if is_text { text(packet) } else { Incoming::Binary }))
    }
}

/// What answers a poll.
#[derive(Default)]
pub(super) struct Payload {
    text: String,
    pub packets: usize,
}

impl Payload {
    pub(super) fn is_empty(&self) -> bool {
        self.packets == 0
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn push(&mut self, eio: Eio, packet: &str) {
        match eio {
            Eio::V4 => {
                if self.packets > 0 {
                    self.text.push(char::from(SEPARATOR));
                }
                self.text.push_str(packet);
            }
            Eio::V3 => {
                // JavaScript counts UTF-16 units and Python code points. Without the characters on which they differ
                // both are right; everything that is sent is JSON, where an escape means the same.
                let packet = escape_astral(packet);
                self.text.push_str(&packet.chars().count().to_string());
                self.text.push(':');
                self.text.push_str(&packet);
            }
        }
        self.packets += 1;
    }

    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from(self.text)
    }
}

fn escape_astral(packet: &str) -> std::borrow::Cow<'_, str> {
    if packet.bytes().all(|b| b < 0xf0) {
        return packet.into();
    }
    let mut out = String::with_capacity(packet.len() + 32);
    for c in packet.chars() {
        if c.len_utf16() == 1 {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Incoming {
        Incoming::Message(text.to_owned().into())
    }

    /// All packets of a body that arrives in pieces of every size.
    fn read(eio: Eio, body: &[u8]) -> Vec<Incoming> {
        let whole = read_in(eio, body, body.len().max(1));
        for size in 1..body.len().min(40) {
            assert_eq!(read_in(eio, body, size), whole, "in pieces of {size}");
        }
        whole
    }

    fn read_in(eio: Eio, body: &[u8], size: usize) -> Vec<Incoming> {
        let (mut decoder, mut packets) = (Decoder::new(eio), Vec::new());
        for piece in body.chunks(size) {
            decoder.push(piece);
            packets.extend(std::iter::from_fn(|| decoder.next(false)));
        }
        packets.extend(std::iter::from_fn(|| decoder.next(true)));
        packets
    }

    #[test]
    fn payloads_of_version_4_are_taken_apart() {
        let body = "42[\"é\"]\x1e3\x1e2x\x1ebAQID\x1e1\x1e6\x1e7";
        let packets = read(Eio::V4, body.as_bytes());
        let bad = Incoming::Bad("this is not an Engine.IO packet");
        let expected = [
            message("42[\"é\"]"),
            Incoming::Pong,
            Incoming::Ping("x".into()),
            Incoming::Binary,
            Incoming::Close,
            Incoming::Nothing,
            bad,
        ];
        assert_eq!(packets, expected);
        assert_eq!(read(Eio::V4, b"4\xff"), [Incoming::Bad("the packet is not UTF-8")]);
        assert_eq!(read(Eio::V4, b""), []);
    }

    #[test]
    fn payloads_of_version_3_are_taken_apart() {
        // JavaScript counts the emoji as two.
        let packets = read(Eio::V3, "7:42[\"☕😀\"10:42[\"é\",{}]1:2".as_bytes());
        assert_eq!(packets[0], message("42[\"☕😀"), "seven units, of which the emoji has two");
        let packets = read(Eio::V3, "9:42[\"☕😀\"]10:42[\"é\",{}]1:2".as_bytes());
        assert_eq!(packets, [message("42[\"☕😀\"]"), message("42[\"é\",{}]"), Incoming::Ping(String::new())]);
        // Python counts bytes.
        let body = [&[0, 9, 0xff], "42[\"é\"]".as_bytes(), &[0, 1, 0xff], b"2", &[1, 3, 0xff, 4, 1, 2]].concat();
        let mut fixed = body.clone();
        fixed[1] = 8;
        assert_eq!(read(Eio::V3, &fixed), [message("42[\"é\"]"), Incoming::Ping(String::new()), Incoming::Binary]);
        for bad in [&b"x"[..], b"12345678901:4", b":4", b"5:4", &[0, 0xff, 1], &[0, 12, 0xff], &[0, 1, 2, 0xff, 4]] {
            assert!(matches!(read(Eio::V3, bad)[..], [Incoming::Bad(_)]), "{bad:?}");
        }
    }

    #[test]
    fn a_packet_beyond_what_is_read_ends_the_payload() {
        let long = vec![b'4'; limits::PACKET_READ];
        let at_limit = [&long[..], b"\x1e2"].concat();
        assert_eq!(read_in(Eio::V4, &at_limit, 1 << 20).len(), 2);
        let beyond = [&b"3\x1e"[..], &long, b"4\x1e2"].concat();
        assert_eq!(read_in(Eio::V4, &beyond, 1 << 20), [Incoming::Pong, Incoming::Huge]);
        assert_eq!(read_in(Eio::V3, b"9999999:4", 3), [Incoming::Huge]);
        assert_eq!(read_in(Eio::V3, &[0, 9, 9, 9, 9, 9, 9, 9, 0xff, b'4'], 3), [Incoming::Huge]);
    }

    #[test]
    fn what_answers_a_poll_is_counted_alike_by_javascript_and_python() {
        let mut payload = Payload::default();
        payload.push(Eio::V3, "2");
        payload.push(Eio::V3, "42[\"é☕😀\"]");
        assert_eq!(payload.into_bytes(), Bytes::from("1:220:42[\"é☕\\ud83d\\ude00\"]"));
        let mut payload = Payload::default();
        payload.push(Eio::V4, "2");
        payload.push(Eio::V4, "42[\"😀\"]");
        assert_eq!((payload.packets, payload.into_bytes()), (2, Bytes::from("2\x1e42[\"😀\"]")));
    }
}
