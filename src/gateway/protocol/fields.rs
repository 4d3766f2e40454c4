//! Reading a client's JSON object field by field, so that every error names its field.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::ids::RecordId;
use crate::limits;
use crate::model::time::IsoTime;
use crate::model::value;
use crate::model::visible::is_name;

/// What is wrong with a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPayload {
    pub field: Option<String>,
    pub message: String,
}

impl BadPayload {
    pub fn field(name: &str, why: impl fmt::Display) -> Self {
        Self { field: Some(name.to_owned()), message: format!("{name} {why}") }
    }

    pub fn payload(message: impl Into<String>) -> Self {
        Self { field: None, message: message.into() }
    }
}

/// The fields of one JSON object, values unread.
#[derive(Debug)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Checks that the text is one JSON object, nested at most [`limits::JSON_DEPTH`] deep.
    pub fn parse(json: &'a str) -> Result<Self, BadPayload> {
        if !json.trim_start().starts_with('{') {
            return match serde_json::from_str::<serde::de::IgnoredAny>(json) {
                Ok(_) => Err(BadPayload::payload("the payload must be a JSON object")),
                Err(_) => Err(BadPayload::payload("the payload is not valid JSON")),
            };
        }
        if depth(json) > limits::JSON_DEPTH {
            return Err(BadPayload::payload(format!("the payload is nested more than {} deep", limits::JSON_DEPTH)));
        }
        Self::of_any_depth(json).ok_or_else(|| BadPayload::payload("the payload is not valid JSON"))
    }

    /// The fields of what is refused anyway, however deep it is nested: its answer must still find its request.
    pub fn of_any_depth(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// The value of a field; null counts as absent. Of a repeated field the last one counts, as everywhere.
    fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.get());
        found.filter(|v| *v != "null")
    }

    fn required(&self, name: &str) -> Result<&'a str, BadPayload> {
        self.get(name).ok_or_else(|| BadPayload::field(name, "is required"))
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// A string of at most `max` bytes.
    pub fn maybe_text(&self, name: &str, max: usize) -> Result<Option<String>, BadPayload> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        let text = parse_text(raw).ok_or_else(|| BadPayload::field(name, "must be a string"))?;
        if text.len() > max {
            return Err(BadPayload::field(name, format_args!("is longer than {max} bytes")));
        }
        Ok(Some(text))
    }

    pub fn text(&self, name: &str, max: usize) -> Result<String, BadPayload> {
        self.required(name)?;
        self.maybe_text(name, max).map(Option::unwrap_or_default)
    }

    /// A required string that is a name: not empty, nothing that a reader does not see.
    pub fn name(&self, name: &str, max: usize) -> Result<String, BadPayload> {
        let text = self.text(name, max)?;
        if text.trim().is_empty() {
            return Err(BadPayload::field(name, "must not be empty"));
        }
        if !is_name(&text) {
            return Err(BadPayload::field(name, "must not hold control or invisible characters"));
        }
        Ok(text)
    }

    pub fn device_id(&self) -> Result<String, BadPayload> {
        self.name("device_id", limits::DEVICE_ID)
    }

    /// One of some documented words.
    pub fn maybe_word<T>(
        &self,
        name: &str,
        words: &str,
        of: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, BadPayload> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        let word = parse_text(raw).and_then(|w| of(&w));
        word.map(Some).ok_or_else(|| BadPayload::field(name, format_args!("must be {words}")))
    }

    pub fn word<T>(&self, name: &str, words: &str, of: impl Fn(&str) -> Option<T>) -> Result<T, BadPayload> {
        self.required(name)?;
        self.maybe_word(name, words, of)?.ok_or_else(|| BadPayload::field(name, "is required"))
    }

    /// A whole number within 64 bits; `5.0` is one, `5.5` is not.
    pub fn record_id(&self) -> Result<RecordId, BadPayload> {
        self.required("record_id")?;
        self.maybe_record_id("record_id").map(Option::unwrap_or_default)
    }

    pub fn maybe_record_id(&self, name: &str) -> Result<Option<RecordId>, BadPayload> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        integer(raw)
            .map(|id| Some(RecordId(id)))
            .ok_or_else(|| BadPayload::field(name, "must be a whole number within 64 bits"))
    }

    /// A whole number from 0 to `max`.
    pub fn maybe_count(&self, name: &str, max: u64) -> Result<Option<u64>, BadPayload> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        let number = integer(raw).and_then(|n| u64::try_from(n).ok()).filter(|n| *n <= max);
        let bad = || match max {
            u64::MAX => BadPayload::field(name, "must be a whole number, 0 or more"),
            _ => BadPayload::field(name, format_args!("must be a number from 0 to {max}")),
        };
        number.map(Some).ok_or_else(bad)
    }

    pub fn maybe_flag(&self, name: &str) -> Result<Option<bool>, BadPayload> {
        match self.get(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(BadPayload::field(name, "must be true or false")),
        }
    }

    /// An ISO 8601 time as Unix milliseconds; one without an offset is taken as UTC.
    pub fn maybe_time(&self, name: &str) -> Result<Option<u64>, BadPayload> {
        Ok(self.maybe_iso(name)?.map(|at| at.unix_ms().get()))
    }

    /// An ISO 8601 time as its writer meant it.
    pub fn maybe_iso(&self, name: &str) -> Result<Option<IsoTime>, BadPayload> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        let time = parse_text(raw).and_then(|t| IsoTime::parse(&t));
        time.map(Some).ok_or_else(|| BadPayload::field(name, "must be an ISO 8601 time"))
    }

    /// A JSON object as it came, at most [`limits::RECORD_DATA`] bytes, that every client can read.
    pub fn maybe_object(&self, name: &str) -> Result<Option<&'a str>, BadPayload> {
        let raw = self.maybe_raw_object(name)?;
        if let Some(flaw) = raw.and_then(|raw| value::check_parsed_object(raw).err()) {
            return Err(BadPayload::field(name, flaw));
        }
        Ok(raw)
    }

    fn maybe_raw_object(&self, name: &str) -> Result<Option<&'a str>, BadPayload> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        if !raw.starts_with('{') {
            return Err(BadPayload::field(name, "must be an object"));
        }
        if raw.len() > limits::RECORD_DATA {
            return Err(BadPayload::field(name, format_args!("is larger than {} bytes", limits::RECORD_DATA)));
        }
        Ok(Some(raw))
    }

    pub fn object(&self, name: &str) -> Result<&'a str, BadPayload> {
        self.required(name)?;
        self.maybe_object(name)?.ok_or_else(|| BadPayload::field(name, "is required"))
    }

    /// The fields of an object inside this one.
    pub fn maybe_fields(&self, name: &str) -> Result<Option<Fields<'a>>, BadPayload> {
        match self.maybe_raw_object(name)? {
            None => Ok(None),
            Some(raw) => Fields::parse(raw).map(Some),
        }
    }

    /// At most `count` strings of at most `max` bytes each.
    pub fn maybe_texts(&self, name: &str, count: usize, max: usize) -> Result<Option<Vec<String>>, BadPayload> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        let texts: Vec<String> =
            serde_json::from_str(raw).map_err(|_| BadPayload::field(name, "must be an array of strings"))?;
        if texts.len() > count {
            return Err(BadPayload::field(name, format_args!("holds more than {count} entries")));
        }
        if texts.iter().any(|t| t.len() > max) {
            return Err(BadPayload::field(name, format_args!("holds an entry longer than {max} bytes")));
        }
        Ok(Some(texts))
    }
}

fn parse_text(raw: &str) -> Option<String> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    // Without an escape, what stands between the quotes is the string.
    if inner.contains('\\') { serde_json::from_str(raw).ok() } else { Some(inner.to_owned()) }
}

fn integer(raw: &str) -> Option<i64> {
    if let Ok(number) = raw.parse::<i64>() {
        return Some(number);
    }
    if !raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return None;
    }
    let float: f64 = raw.parse().ok()?;
    // 2^63 itself is out of range; every float below it converts exactly.
    let bound = 9_223_372_036_854_775_808.0;
    let whole = float.fract() == 0.0 && (-bound..bound).contains(&float);
    // A long run of digits is an integer that does not fit, not a float to be rounded.
    (whole && raw.contains(['.', 'e', 'E'])).then_some(float as i64)
}

/// The deepest nesting of arrays and objects. The text need not be valid.
pub(super) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::with_capacity(8);
                while let Some((Name(name), value)) = map.next_entry()? {
                    entries.push((name, value));
                }
                Ok(Fields(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A field's name, borrowed unless it holds escapes.
pub(super) struct Name<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// `{"event": …, "data": …}`: a text frame of `/ws`. The data is as it came; null counts as absent.
pub fn envelope(text: &str) -> Result<(Cow<'_, str>, Option<&str>), BadPayload> {
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|e| {
        let valid = e.classify() == serde_json::error::Category::Data;
        BadPayload::payload(if valid {
            "a frame must be an object with event and data"
        } else {
            "the frame is not valid JSON"
        })
    })?;
    let event = fields.required("event")?;
    let event = serde_json::from_str::<Name<'_>>(event).map_err(|_| BadPayload::field("event", "must be a string"))?;
    Ok((event.0, fields.get("data")))
}

/// `["event", data, …]`: the body of a Socket.IO event packet.
pub fn event_array(text: &str) -> Result<(Cow<'_, str>, Option<&str>), BadPayload> {
    struct FieldParts<'a>(Name<'a>, Option<&'a RawValue>);
    impl<'de: 'a, 'a> Deserialize<'de> for FieldParts<'a> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_seq(FieldsVisitor).map(|(name, data)| FieldParts(name, data))
        }
    }
    struct FieldsVisitor;
    impl<'de> Visitor<'de> for FieldsVisitor {
        type Value = (Name<'de>, Option<&'de RawValue>);

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array that begins with the event's name")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let name = seq.next_element()?.ok_or_else(|| serde::de::Error::custom("no event"))?;
            let data = seq.next_element()?;
            while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok((name, data))
        }
    }
    let parts: FieldParts<'_> = serde_json::from_str(text).map_err(|e| {
        let valid = e.classify() == serde_json::error::Category::Data;
        BadPayload::payload(if valid {
            "the packet does not begin with an event's name"
        } else {
            "the packet is not valid JSON"
        })
    })?;
    Ok((parts.0.0, parts.1.map(RawValue::get)))
}
