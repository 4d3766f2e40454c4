//! Writing JSON: straight into one buffer, with what is JSON already copied in as it is.

use crate::ids::UnixMs;
use crate::model::time::iso;

/// An object on its way into a buffer. [`Object::end`] closes it.
pub struct Object<'b> {
    out: &'b mut Vec<u8>,
    first: bool,
}

impl<'b> Object<'b> {
    pub fn new(out: &'b mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn name(&mut self, name: &str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.name(name);
        push_text(self.out, value);
        self
    }

    /// An empty string stands for null.
    pub fn text_or_null(&mut self, name: &str, value: &str) -> &mut Self {
        if value.is_empty() { self.raw(name, b"null") } else { self.text(name, value) }
    }

    /// Left out when absent.
    pub fn maybe_text(&mut self, name: &str, value: Option<&str>) -> &mut Self {
        if let Some(value) = value {
            self.text(name, value);
        }
        self
    }

    pub fn number(&mut self, name: &str, value: impl Into<i128>) -> &mut Self {
        self.name(name);
        push_integer(self.out, value.into());
        self
    }

    pub fn maybe_number(&mut self, name: &str, value: Option<impl Into<i128>>) -> &mut Self {
        if let Some(value) = value {
            self.number(name, value);
        }
        self
    }

    pub fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        self.raw(name, if value { b"true" } else { b"false" })
    }

    pub fn time(&mut self, name: &str, ms: u64) -> &mut Self {
        self.name(name);
        push_time(self.out, ms);
        self
    }

    /// JSON as it is.
    pub fn raw(&mut self, name: &str, json: &[u8]) -> &mut Self {
        self.name(name);
        self.out.extend_from_slice(json);
        self
    }

    /// A record's data; nothing stands for an empty object.
    pub fn data(&mut self, name: &str, json: &[u8]) -> &mut Self {
        self.raw(name, if json.is_empty() { b"{}" } else { json })
    }

    pub fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.name(name);
        let mut inner = Object::new(self.out);
        fill(&mut inner);
        inner.end();
        self
    }

    pub fn array<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Vec<u8>, T),
    ) -> &mut Self {
        self.name(name);
        self.out.push(b'[');
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            each(self.out, item);
        }
        self.out.push(b']');
        self
    }

    pub fn end(&mut self) {
        self.out.push(b'}');
    }
}

/// A whole object as bytes.
pub(crate) fn object(fill: impl FnOnce(&mut Object<'_>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    push_object(&mut out, fill);
    out
}

pub(crate) fn push_object(out: &mut Vec<u8>, fill: impl FnOnce(&mut Object<'_>)) {
    let mut object = Object::new(out);
    fill(&mut object);
    object.end();
}

pub(crate) fn push_text(out: &mut Vec<u8>, value: &str) {
    let plain = value.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\');
    if plain {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        // Writing to a Vec cannot fail.
        let _ = serde_json::to_writer(out, value);
    }
}

fn push_integer(out: &mut Vec<u8>, value: i128) {
    let mut digits = [0u8; 40];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

fn push_time(out: &mut Vec<u8>, ms: u64) {
    out.push(b'"');
    out.extend_from_slice(iso(UnixMs(ms)).as_bytes());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_json() {
        let out = object(|o| {
            o.text("a", "q\"\\\n\u{1}é").text_or_null("b", "").number("c", -7i64).number("d", u64::MAX);
            o.maybe_text("gone", None).flag("e", true).time("t", 1_500).data("f", b"").raw("g", b"[1]");
            o.object("h", |o| {
                o.number("x", 0u64);
            });
            o.array("i", [1u64, 2], |out, n| push_object(out, |o| o.number("n", n).end_noop()));
        });
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let want = serde_json::json!({
            "a": "q\"\\\n\u{1}é", "b": null, "c": -7, "d": u64::MAX, "e": true, "t": "1970-01-01T00:00:01.500Z",
            "f": {}, "g": [1], "h": {"x": 0}, "i": [{"n": 1}, {"n": 2}],
        });
        assert_eq!(value, want);
    }

    impl Object<'_> {
        fn end_noop(&mut self) {}
    }
}
