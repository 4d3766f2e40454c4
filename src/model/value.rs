//! JSON values: whether two are the same, and whether one can be read by everybody.
//!
//! What is stored and sent stays the client's bytes. Values are compared where bytes would mislead: `20` is `20.0`,
//! `"\u0041"` is `"A"`, and an object's fields have no order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use crate::limits;

#[cfg(test)]
mod tests;

/// Are these the same JSON value? Numbers are compared by their exact decimal value, strings by their code points,
/// objects without order (of a field that comes twice the last one counts), arrays in order. Nothing at all stands
/// for `{}`. What is no JSON is only equal to the same bytes.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    a == b || parse(or_empty(a)).is_some_and(|a| parse(or_empty(b)).is_some_and(|b| a == b))
}

fn or_empty(json: &[u8]) -> &[u8] {
    if json.is_empty() { b"{}" } else { json }
}

/// Why some JSON is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It is no JSON, or not UTF-8.
    Malformed,
    NotAnObject,
    TooDeep,
    /// A `\u` escape of half a surrogate pair: no Unicode string has it, and strict readers refuse it.
    NotUnicode,
    /// Its number becomes infinite in every client that reads numbers as IEEE 754 doubles.
    NumberTooLarge,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("is not valid JSON"),
            Self::NotAnObject => f.write_str("must be an object"),
            Self::TooDeep => write!(f, "is nested deeper than {} levels", limits::JSON_DEPTH),
            Self::NotUnicode => f.write_str("holds a string that is not valid Unicode (half a surrogate pair)"),
            Self::NumberTooLarge => f.write_str("holds a number beyond the range of a 64-bit float"),
        }
    }
}

/// Is this an object that every client can read? One pass, nothing is kept. Nothing at all stands for `{}`.
pub(crate) fn check_object(json: &[u8]) -> Result<(), Flaw> {
    if json.is_empty() {
        return Ok(());
    }
    if std::str::from_utf8(json).is_err() {
        return Err(Flaw::Malformed);
    }
    let mut reader = JsonReader { json, at: 0 };
    reader.space();
    let object = reader.peek() == Some(b'{');
    reader.value::<UnicodeCheck>(limits::JSON_DEPTH)?;
    reader.end()?;
    if object { Ok(()) } else { Err(Flaw::NotAnObject) }
}

/// The same for what is known to be a JSON object that is not nested too deep: what holds neither a `\u` escape nor
/// a number that could be too large is only looked through.
pub(crate) fn check_parsed_object(json: &str) -> Result<(), Flaw> {
    if is_plain(json.as_bytes()) { Ok(()) } else { check_object(json.as_bytes()) }
}

/// Digits that fit a double whatever they are, without an exponent.
const SAFE_DIGITS: usize = 300;

fn is_plain(json: &[u8]) -> bool {
    let mut digits = 0;
    let mut previous = 0;
    for byte in json {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                if digits > SAFE_DIGITS {
                    return false;
                }
            }
            b'e' | b'E' if digits > 0 => return false,
            b'u' if previous == b'\\' => return false,
            // The point of a number: what comes before it counts.
            b'.' if digits > 0 => {}
            _ => digits = 0,
        }
        previous = *byte;
    }
    true
}

/// What was stored before such data was refused, made readable for strict readers: half a surrogate pair becomes
/// U+FFFD, a number beyond the range of a 64-bit float becomes a string. All else stays as it is.
pub(crate) fn readable(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let mut reader = JsonReader { json, at: 0 };
    let mut in_text = false;
    while let Some(byte) = reader.peek() {
        let start = reader.at;
        match byte {
            b'\\' if in_text => {
                reader.at += 1;
                match reader.escape::<Keep>() {
                    Ok(code) if (0xD800..0xE000).contains(&code) => {
                        out.extend_from_slice(b"\\ufffd");
                        continue;
                    }
                    Ok(_) => {}
                    Err(_) => reader.at = (start + 2).min(json.len()),
                }
            }
            b'-' | b'0'..=b'9' if !in_text => {
                if let Err(Flaw::NumberTooLarge) = reader.number::<UnicodeCheck>() {
                    let number = json.get(start..reader.at).unwrap_or_default();
                    out.extend_from_slice(&[b"\"", number, b"\""].concat());
                    continue;
                }
                reader.at = reader.at.max(start + 1);
            }
            _ => {
                in_text ^= byte == b'"';
                reader.at += 1;
            }
        }
        out.extend_from_slice(json.get(start..reader.at).unwrap_or_default());
    }
    out
}

/// A field of an object, as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonField<'a> {
    /// The name with its quotes and escapes.
    pub raw_name: &'a [u8],
    pub raw_value: &'a [u8],
}

/// The fields of an object by their unescaped names; of one that comes twice, the last. `None`: it is no object.
pub(crate) fn fields(json: &[u8]) -> Option<BTreeMap<Cow<'_, [u8]>, JsonField<'_>>> {
    let mut reader = JsonReader { json: or_empty(json), at: 0 };
    let mut fields = BTreeMap::new();
    reader.space();
    reader
        .object(|reader, name, raw_name| {
            let start = reader.at;
            reader.value::<Skip>(DEPTH)?;
            let raw_value = reader.json.get(start..reader.at).unwrap_or_default();
            fields.insert(name, JsonField { raw_name, raw_value });
            Ok(())
        })
        .ok()?;
    reader.end().ok()?;
    Some(fields)
}

/// Nesting that is read of what is stored already: more than any client was ever let write.
const DEPTH: usize = 128;

fn parse(json: &[u8]) -> Option<Value<'_>> {
    let mut reader = JsonReader { json, at: 0 };
    reader.space();
    let value = reader.value::<Keep>(DEPTH).ok()?;
    reader.end().ok()?;
    Some(value)
}

#[derive(Debug, PartialEq)]
enum Value<'a> {
    Null,
    Flag(bool),
    Number(Number<'a>),
    Text(Cow<'a, [u8]>),
    Array(Vec<Value<'a>>),
    /// By name, each once.
    Object(Vec<(Cow<'a, [u8]>, Value<'a>)>),
}

/// `0.digits × 10^exponent`, where the first and the last digit are not 0; no digits: zero.
#[derive(Debug, PartialEq)]
struct Number<'a> {
    negative: bool,
    digits: Cow<'a, [u8]>,
    exponent: Exponent<'a>,
}

#[derive(Debug, PartialEq)]
enum Exponent<'a> {
    Small(i128),
    /// More digits than fit: compared as they are written.
    Huge {
        negative: bool,
        digits: &'a [u8],
        plus: i128,
    },
}

/// Digits of an exponent that always fit into an `i128`, with what the point adds.
const EXPONENT_DIGITS: usize = 36;

impl<'a> Number<'a> {
    fn new(negative: bool, whole: &'a [u8], fraction: &'a [u8], exponent: (bool, &'a [u8])) -> Self {
        let digits = match (whole, fraction) {
            (_, []) => Cow::Borrowed(whole),
            ([] | [b'0'], _) => Cow::Borrowed(fraction),
            _ => Cow::Owned([whole, fraction].concat()),
        };
        // A single 0 before the point was left out above.
        let point = if matches!(whole, [b'0']) && !fraction.is_empty() { 0 } else { whole.len() };
        let leading = digits.iter().take_while(|d| **d == b'0').count();
        let end = digits.len() - digits.iter().rev().take_while(|d| **d == b'0').count();
        if leading >= end {
            return Self { negative: false, digits: Cow::Borrowed(&[]), exponent: Exponent::Small(0) };
        }
        let digits = match digits {
            Cow::Borrowed(digits) => Cow::Borrowed(digits.get(leading..end).unwrap_or_default()),
            Cow::Owned(digits) => Cow::Owned(digits.get(leading..end).unwrap_or_default().to_vec()),
        };
        let plus = point as i128 - leading as i128;
        let (below, power) = exponent;
        let power = power.get(power.iter().take_while(|d| **d == b'0').count()..).unwrap_or_default();
        let exponent = if power.len() <= EXPONENT_DIGITS {
            let power = power.iter().fold(0i128, |n, d| n * 10 + i128::from(d - b'0'));
            Exponent::Small(if below { -power } else { power } + plus)
        } else {
            Exponent::Huge { negative: below, digits: power, plus }
        };
        Self { negative, digits, exponent }
    }
}

/// Appends bytes that equal values share and others do not.
pub(super) fn canonical(json: &[u8], out: &mut Vec<u8>) {
    match parse(or_empty(json)) {
        Some(value) => value.write(out),
        None => write_part(b'x', json, out),
    }
}

fn write_part(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    out.extend_from_slice(bytes);
}

impl Value<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(b'n'),
            Self::Flag(flag) => out.push(if *flag { b't' } else { b'f' }),
            Self::Number(number) => {
                write_part(if number.negative { b'-' } else { b'+' }, &number.digits, out);
                match &number.exponent {
                    Exponent::Small(power) => write_part(b'e', &power.to_be_bytes(), out),
                    Exponent::Huge { negative, digits, plus } => {
                        write_part(if *negative { b'd' } else { b'u' }, digits, out);
                        out.extend_from_slice(&plus.to_be_bytes());
                    }
                }
            }
            Self::Text(text) => write_part(b's', text, out),
            Self::Array(items) => {
                write_part(b'a', &(items.len() as u64).to_be_bytes(), out);
                items.iter().for_each(|item| item.write(out));
            }
            Self::Object(fields) => {
                write_part(b'o', &(fields.len() as u64).to_be_bytes(), out);
                for (name, value) in fields {
                    write_part(b's', name, out);
                    value.write(out);
                }
            }
        }
    }
}

/// What reading makes of a value.
trait Reading {
    /// The value itself is wanted.
    const KEEP: bool;
    /// What not everybody can read is an error. What is stored already may have it.
    const STRICT: bool;
}

struct Keep;
struct Skip;
struct UnicodeCheck;

impl Reading for Keep {
    const KEEP: bool = true;
    const STRICT: bool = false;
}

impl Reading for Skip {
    const KEEP: bool = false;
    const STRICT: bool = false;
}

impl Reading for UnicodeCheck {
    const KEEP: bool = false;
    const STRICT: bool = true;
}

struct JsonReader<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> JsonReader<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Nothing but space is left.
    fn end(&mut self) -> Result<(), Flaw> {
        self.space();
        if self.at == self.json.len() { Ok(()) } else { Err(Flaw::Malformed) }
    }

    fn word(&mut self, word: &[u8], value: Value<'a>) -> Result<Value<'a>, Flaw> {
        if !self.json.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(Flaw::Malformed);
        }
        self.at += word.len();
        Ok(value)
    }

    /// The value that begins here; null when it is not kept.
    fn value<R: Reading>(&mut self, depth: usize) -> Result<Value<'a>, Flaw> {
        match self.peek() {
            Some(b'{') => {
                let deeper = depth.checked_sub(1).ok_or(Flaw::TooDeep)?;
                let mut fields = Vec::new();
                self.object_of::<R>(|reader, name, _| {
                    let value = reader.value::<R>(deeper)?;
                    if R::KEEP {
                        fields.push((name, value));
                    }
                    Ok(())
                })?;
                // Stable: of those with the same name the last one stays last.
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                fields.dedup_by(|later, kept| {
                    let same = later.0 == kept.0;
                    if same {
                        std::mem::swap(later, kept);
                    }
                    same
                });
                Ok(Value::Object(fields))
            }
            Some(b'[') => {
                let deeper = depth.checked_sub(1).ok_or(Flaw::TooDeep)?;
                self.array::<R>(deeper)
            }
            Some(b'"') => Ok(Value::Text(self.text::<R>()?)),
            Some(b'-' | b'0'..=b'9') => self.number::<R>(),
            Some(b't') => self.word(b"true", Value::Flag(true)),
            Some(b'f') => self.word(b"false", Value::Flag(false)),
            Some(b'n') => self.word(b"null", Value::Null),
            _ => Err(Flaw::Malformed),
        }
    }

    fn array<R: Reading>(&mut self, deeper: usize) -> Result<Value<'a>, Flaw> {
        self.at += 1;
        self.space();
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            self.space();
            let item = self.value::<R>(deeper)?;
            if R::KEEP {
                items.push(item);
            }
            self.space();
            match self.next() {
                Some(b',') => {}
                Some(b']') => return Ok(Value::Array(items)),
                _ => return Err(Flaw::Malformed),
            }
        }
    }

    fn object(&mut self, each: impl FnMut(&mut Self, Cow<'a, [u8]>, &'a [u8]) -> Result<(), Flaw>) -> Result<(), Flaw> {
        self.object_of::<Keep>(each)
    }

    /// Calls `each` where a field's value begins.
    fn object_of<R: Reading>(
        &mut self,
        mut each: impl FnMut(&mut Self, Cow<'a, [u8]>, &'a [u8]) -> Result<(), Flaw>,
    ) -> Result<(), Flaw> {
        if !self.take(b'{') {
            return Err(Flaw::Malformed);
        }
        self.space();
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            self.space();
            let start = self.at;
            let name = self.text::<R>()?;
            let raw_name = self.json.get(start..self.at).unwrap_or_default();
            self.space();
            if !self.take(b':') {
                return Err(Flaw::Malformed);
            }
            self.space();
            each(self, name, raw_name)?;
            self.space();
            match self.next() {
                Some(b',') => {}
                Some(b'}') => return Ok(()),
                _ => return Err(Flaw::Malformed),
            }
        }
    }

    /// A string, unescaped when it is kept: UTF-8, and half a surrogate pair as if it were a code point.
    fn text<R: Reading>(&mut self) -> Result<Cow<'a, [u8]>, Flaw> {
        if !self.take(b'"') {
            return Err(Flaw::Malformed);
        }
        let mut unescaped: Option<Vec<u8>> = None;
        loop {
            let from = self.at;
            while self.peek().is_some_and(|b| b >= 0x20 && b != b'"' && b != b'\\') {
                self.at += 1;
            }
            let run = self.json.get(from..self.at).unwrap_or_default();
            if let Some(text) = &mut unescaped {
                text.extend_from_slice(run);
            }
            match self.next() {
                // Without an escape, what stands between the quotes is the string.
                Some(b'"') => return Ok(unescaped.map_or(Cow::Borrowed(run), Cow::Owned)),
                Some(b'\\') => {
                    let code = self.escape::<R>()?;
                    if R::KEEP {
                        push_code(unescaped.get_or_insert_with(|| run.to_vec()), code);
                    }
                }
                _ => return Err(Flaw::Malformed),
            }
        }
    }

    /// What stands behind a backslash, as a code point or half a surrogate pair.
    fn escape<R: Reading>(&mut self) -> Result<u32, Flaw> {
        let code = match self.next().ok_or(Flaw::Malformed)? {
            plain @ (b'"' | b'\\' | b'/') => u32::from(plain),
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => 0x0A,
            b'r' => 0x0D,
            b't' => 0x09,
            b'u' => {
                let first = self.hex()?;
                if (0xD800..0xDC00).contains(&first) && self.json.get(self.at..self.at + 2) == Some(b"\\u") {
                    let back = self.at;
                    self.at += 2;
                    let second = self.hex()?;
                    if (0xDC00..0xE000).contains(&second) {
                        return Ok(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00));
                    }
                    self.at = back;
                }
                first
            }
            _ => return Err(Flaw::Malformed),
        };
        if R::STRICT && (0xD800..0xE000).contains(&code) { Err(Flaw::NotUnicode) } else { Ok(code) }
    }

    fn hex(&mut self) -> Result<u32, Flaw> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.next().and_then(|b| char::from(b).to_digit(16)).ok_or(Flaw::Malformed)?;
            code = code * 16 + digit;
        }
        Ok(code)
    }

    fn digits(&mut self) -> &'a [u8] {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        self.json.get(start..self.at).unwrap_or_default()
    }

    fn number<R: Reading>(&mut self) -> Result<Value<'a>, Flaw> {
        let start = self.at;
        let negative = self.take(b'-');
        let whole = self.digits();
        if whole.is_empty() || (whole.len() > 1 && whole.starts_with(b"0")) {
            return Err(Flaw::Malformed);
        }
        let mut fraction: &[u8] = &[];
        if self.take(b'.') {
            fraction = self.digits();
            if fraction.is_empty() {
                return Err(Flaw::Malformed);
            }
        }
        let mut exponent: (bool, &[u8]) = (false, &[]);
        if self.take(b'e') || self.take(b'E') {
            let below = self.take(b'-');
            if !below {
                self.take(b'+');
            }
            exponent = (below, self.digits());
            if exponent.1.is_empty() {
                return Err(Flaw::Malformed);
            }
        }
        if R::STRICT && (!exponent.1.is_empty() || whole.len() > SAFE_DIGITS) {
            let text = std::str::from_utf8(self.json.get(start..self.at).unwrap_or_default());
            let number: Option<f64> = text.ok().and_then(|text| text.parse().ok());
            if !number.is_some_and(f64::is_finite) {
                return Err(Flaw::NumberTooLarge);
            }
        }
        if !R::KEEP {
            return Ok(Value::Null);
        }
        Ok(Value::Number(Number::new(negative, whole, fraction, exponent)))
    }
}

/// UTF-8, also of half a surrogate pair, which no valid UTF-8 is equal to.
fn push_code(out: &mut Vec<u8>, code: u32) {
    match char::from_u32(code) {
        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => {
            let continued = |shift: u32| 0x80 | (code >> shift & 0x3F) as u8;
            out.extend_from_slice(&[0xE0 | (code >> 12) as u8, continued(6), continued(0)]);
        }
    }
}
