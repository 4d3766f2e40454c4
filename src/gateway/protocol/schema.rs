//! A field of a payload: what it may hold, as a JSON schema and as an example.

use serde_json::{Map, Value, json};

use crate::limits;
use crate::model::access::CLASSES;
use crate::model::visible::NOT_IN_NAMES;

/// What a field may hold.
#[derive(Clone, Copy, Debug)]
pub enum FieldKind {
    /// A name of at most so many bytes: not empty, nothing that a reader does not see.
    Name(usize),
    /// Text of at most so many bytes.
    Text(usize),
    Word(&'static [&'static str]),
    /// A whole number from 0 to this.
    Count(u64),
    /// A whole number from 1 to this.
    Size(u64),
    RecordId,
    Number,
    Flag,
    Time,
    /// Any JSON object.
    Data,
    /// An object whose values are these words.
    Words(&'static [&'static str]),
    /// At most so many strings of at most so many bytes.
    Texts(usize, usize),
    Counts,
    Object(&'static [FieldDescription]),
    List(&'static [FieldDescription]),
    OrNull(&'static FieldKind),
}

#[derive(Clone, Copy, Debug)]
pub struct FieldDescription {
    pub name: &'static str,
    pub kind: FieldKind,
    pub required: bool,
    /// Ours: the document does not know it.
    pub extension: bool,
    pub about: &'static str,
}

/// A documented field that must be there.
pub const fn must(name: &'static str, kind: FieldKind, about: &'static str) -> FieldDescription {
    FieldDescription { name, kind, required: true, extension: false, about }
}

/// A documented field that may be left out.
pub const fn may(name: &'static str, kind: FieldKind, about: &'static str) -> FieldDescription {
    FieldDescription { name, kind, required: false, extension: false, about }
}

/// A field of ours that is always there.
pub const fn plus(name: &'static str, kind: FieldKind, about: &'static str) -> FieldDescription {
    FieldDescription { name, kind, required: true, extension: true, about }
}

/// A field of ours that may be left out.
pub const fn more(name: &'static str, kind: FieldKind, about: &'static str) -> FieldDescription {
    FieldDescription { name, kind, required: false, extension: true, about }
}

/// Who writes the payload: clients may write null for a field that they leave out, the server leaves it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadWriter {
    Client,
    Server,
}

/// The greatest number that the schemas name: what fits into 64 bits with a sign.
const COUNT_MAX: u64 = i64::MAX as u64;

impl FieldKind {
    pub fn schema(&self, writer: PayloadWriter) -> Value {
        match self {
            // Not only spaces; lengths count bytes, so the pattern is the sure part.
            Self::Name(max) => json!({
                "type": "string", "minLength": 1, "maxLength": max,
                "pattern": format!("^[^{NOT_IN_NAMES}]*[^{NOT_IN_NAMES} ][^{NOT_IN_NAMES}]*$"),
            }),
            Self::Text(max) => json!({"type": "string", "maxLength": max}),
            Self::Word(words) => json!({"type": "string", "enum": words}),
            Self::Count(max) => json!({"type": "integer", "minimum": 0, "maximum": (*max).min(COUNT_MAX)}),
            Self::Size(max) => json!({"type": "integer", "minimum": 1, "maximum": max}),
            Self::RecordId => json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX}),
            Self::Number => json!({"type": "number"}),
            Self::Flag => json!({"type": "boolean"}),
            Self::Time => json!({"type": "string", "format": "date-time"}),
            Self::Data => json!({"type": "object"}),
            Self::Words(words) => {
                json!({"type": "object", "additionalProperties": {"type": "string", "enum": words}})
            }
            Self::Texts(count, max) => {
                json!({"type": "array", "maxItems": count, "items": {"type": "string", "maxLength": max}})
            }
            Self::Counts => json!({"type": "array", "items": {"type": "integer", "minimum": 0}}),
            Self::Object(fields) => object_schema(fields, writer),
            Self::List(fields) => json!({"type": "array", "items": object_schema(fields, writer)}),
            Self::OrNull(kind) => or_null(kind.schema(writer)),
        }
    }

    fn example(&self) -> Value {
        match self {
            Self::Name(_) | Self::Text(_) => json!("text"),
            Self::Word(words) => json!(words.first()),
            Self::Count(max) | Self::Size(max) => json!(7.min(*max)),
            Self::RecordId => json!(42),
            Self::Number => json!(0.25),
            Self::Flag => json!(false),
            Self::Time => json!("2026-11-22T10:00:00.000Z"),
            Self::Data => json!({"name": "Café", "price": 9.5}),
            Self::Words(words) => json!({"products": words.first(), "*": words.last()}),
            Self::Texts(..) => json!(["products"]),
            Self::Counts => json!([1, 2, 3]),
            Self::Object(fields) => example(fields),
            Self::List(fields) => json!([example(fields)]),
            Self::OrNull(kind) => kind.example(),
        }
    }
}

fn or_null(mut schema: Value) -> Value {
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind.take(), "null"]);
    }
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.push(Value::Null);
    }
    schema
}

impl FieldDescription {
    pub fn schema(&self, writer: PayloadWriter) -> Value {
        let mut schema = self.kind.schema(writer);
        if writer == PayloadWriter::Client && !self.required {
            schema = or_null(schema);
        }
        if let Value::Object(map) = &mut schema {
            if !self.about.is_empty() {
                map.insert("description".into(), json!(self.about));
            }
            if self.extension {
                map.insert("x-extension".into(), json!(true));
            }
        }
        schema
    }

    pub fn example(&self) -> Value {
        match self.name {
            "device_id" => json!("till-1"),
            "table_name" => json!("products"),
            "current_master" | "master_device_id" | "new_master_id" | "master_device" => json!("office-1"),
            "capabilities" => json!(["sync"]),
            "cursor" => json!("1-9d8be1f3.7"),
            "request_id" => json!("till-1-000042"),
            "queue" => json!("k3v9x2m7"),
            "n" => json!(42),
            "after" => json!(41),
            "error_code" => json!("2004"),
            "reason" if matches!(self.kind, FieldKind::Text(_)) => json!("end of day"),
            _ => self.kind.example(),
        }
    }
}

/// The schema of an object with these fields. Others may come with later versions.
pub fn object_schema(fields: &[FieldDescription], writer: PayloadWriter) -> Value {
    let properties: Map<String, Value> = fields.iter().map(|f| (f.name.to_owned(), f.schema(writer))).collect();
    let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// An object with every field.
pub fn example(fields: &[FieldDescription]) -> Value {
    fields.iter().map(|f| (f.name.to_owned(), f.example())).collect::<Map<_, _>>().into()
}

pub const DEVICE_ID: FieldKind = FieldKind::Name(limits::DEVICE_ID);
pub const TABLE_NAME: FieldKind = FieldKind::Name(limits::TABLE_NAME);
pub const REASON: FieldKind = FieldKind::Text(limits::REASON);
pub const TABLES: FieldKind = FieldKind::Texts(limits::TABLES as usize, limits::TABLE_NAME);
pub const CURSOR: FieldKind = FieldKind::Text(64);
pub const ANY_COUNT: FieldKind = FieldKind::Count(u64::MAX);
/// Text of the server, whose length nobody has to prepare for.
pub const WORDS: FieldKind = FieldKind::Text(8_192);
pub const ROLE: FieldKind = FieldKind::Word(&["master", "client"]);
pub const OPERATION: FieldKind = FieldKind::Word(&["insert", "update", "delete"]);
pub const SYNC_TYPE: FieldKind = FieldKind::Word(&["full", "incremental"]);
pub const ELECTION_REASON: FieldKind = FieldKind::Word(&["manual", "shutdown", "failure"]);
pub const METHOD: FieldKind = FieldKind::Word(&["manual", "last_writer_wins", "automatic"]);
pub const CONFLICT_TYPE: FieldKind = FieldKind::Word(&["version", "timestamp", "data"]);
pub const CLASS: FieldKind = FieldKind::Word(&CLASSES);
/// Rights by table.
pub const RIGHTS: FieldKind = FieldKind::Words(&["none", "read", "write"]);
pub const RETRY: FieldKind = FieldKind::Word(&["no", "safe", "same_request_id"]);
