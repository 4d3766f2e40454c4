//! JSON values: whether two are the same, and whether one can be read by everybody.
//!
//! What is stored and sent stays the client's bytes. Values are compared where bytes would mislead: `20` is `20.0`,
//! `"\u0041"` is `"A"`, and an object's fields have no order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use crate::limits;

/// Are these the same JSON value? Numbers are compared by their exact decimal value, strings by their code points,
/// objects without order (of a field that comes twice the last one counts), arrays in order. Nothing at all stands
/// for `{}`. What is no JSON is only equal to the same bytes.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a == b || parse(or_empty(a)).is_some_and(|a| parse(or_empty(b)).is_some_and(|b| a == b))
}

fn or_empty(json: &[u8]) -> &[u8] {
    if json.is_empty() { b"{}" } else { json }
}

/// Why some JSON is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
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
pub fn check_object(json: &[u8]) -> Result<(), Flaw> {
    if json.is_empty() {
        return Ok(());
    }
    if std::str::from_utf8(json).is_err() {
        return Err(Flaw::Malformed);
    }
    let mut reader = Reader { json, at: 0 };
    reader.space();
    let object = reader.peek() == Some(b'{');
    reader.value::<Check>(limits::JSON_DEPTH)?;
    reader.end()?;
    if object { Ok(()) } else { Err(Flaw::NotAnObject) }
}

/// The same for what is known to be a JSON object that is not nested too deep: what holds neither a `\u` escape nor
/// a number that could be too large is only looked through.
pub fn check_parsed_object(json: &str) -> Result<(), Flaw> {
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
pub fn readable(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let mut reader = Reader { json, at: 0 };
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
                if let Err(Flaw::NumberTooLarge) = reader.number::<Check>() {
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
pub struct Field<'a> {
    /// The name with its quotes and escapes.
    pub raw_name: &'a [u8],
    pub raw_value: &'a [u8],
}

/// The fields of an object by their unescaped names; of one that comes twice, the last. `None`: it is no object.
pub fn fields(json: &[u8]) -> Option<BTreeMap<Cow<'_, [u8]>, Field<'_>>> {
    let mut reader = Reader { json: or_empty(json), at: 0 };
    let mut fields = BTreeMap::new();
    reader.space();
    reader
        .object(|reader, name, raw_name| {
            let start = reader.at;
            reader.value::<Skip>(DEPTH)?;
            let raw_value = reader.json.get(start..reader.at).unwrap_or_default();
            fields.insert(name, Field { raw_name, raw_value });
            Ok(())
        })
        .ok()?;
    reader.end().ok()?;
    Some(fields)
}

/// Nesting that is read of what is stored already: more than any client was ever let write.
const DEPTH: usize = 128;

fn parse(json: &[u8]) -> Option<Value<'_>> {
    let mut reader = Reader { json, at: 0 };
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
struct Check;

impl Reading for Keep {
    const KEEP: bool = true;
    const STRICT: bool = false;
}

impl Reading for Skip {
    const KEEP: bool = false;
    const STRICT: bool = false;
}

impl Reading for Check {
    const KEEP: bool = false;
    const STRICT: bool = true;
}

struct Reader<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn same(a: &str, b: &str) -> bool {
        let (one, other) = (equal(a.as_bytes(), b.as_bytes()), equal(b.as_bytes(), a.as_bytes()));
        assert_eq!(one, other, "{a} {b}");
        one
    }

    #[test]
    fn numbers_are_the_same_by_their_exact_decimal_value() {
        for (a, b) in [
            ("20", "20.0"),
            ("20", "2e1"),
            ("20", "0.2E+2"),
            ("20", "2000e-2"),
            ("19.90", "19.9"),
            ("-0", "0"),
            ("-0.0e5", "0"),
            ("0e999", "0"),
            ("0.001", "1e-3"),
            ("100.010", "1.0001e2"),
            ("1e999999999", "10e999999998"),
            ("1e00000000000000000000000000000000000000000000003", "1000"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("9007199254740993", "9007199254740992"),
            ("9007199254740993", "9007199254740992.0"),
            ("0.1", "0.10000000000000001"),
            ("1", "-1"),
            ("1", "10"),
            ("1e999999999", "1e999999998"),
            ("1e-400", "0"),
            ("1e99999999999999999999999999999999999999999999", "1e99999999999999999999999999999999999999999998"),
            ("1", "\"1\""),
            ("0", "false"),
            ("0", "null"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn strings_are_the_same_by_code_points_and_objects_without_order() {
        for (a, b) in [
            (r#""A\n""#, "\"\\u0041\\u000a\""),
            (r#""é€😀""#, r#""\u00e9\u20AC\ud83d\uDE00""#),
            (r#""\/""#, r#""/""#),
            (r#""\ud800""#, r#""\uD800""#),
            (r#"{"a":1,"b":[1,{"c":2.0}]}"#, " { \"b\" : [ 1.0 , {\"\\u0063\" : 2}]\t, \"a\":1e0 }\n"),
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"b":2,"a":3}"#),
            ("{}", ""),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            // Composed and combining are different code points.
            ("\"\u{e9}\"", "\"e\u{301}\""),
            (r#""\ud800\ud800""#, r#""\ud800""#),
            (r#""\\u0041""#, r#""A""#),
            (r#""\ud83d \ude00""#, r#""😀""#),
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"a":1,"b":2}"#),
            (r#"{"a":null}"#, "{}"),
            ("{", "{ "),
            ("01", "1"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn what_not_everybody_can_read_is_told() {
        for (json, flaw) in [
            (r#"{"a":"\ud800"}"#, Flaw::NotUnicode),
            (r#"{"a":"\udc00\ud800"}"#, Flaw::NotUnicode),
            (r#"{"a":["\ud800\u0041"]}"#, Flaw::NotUnicode),
            (r#"{"\ud83d":1}"#, Flaw::NotUnicode),
            (r#"{"a":1e999}"#, Flaw::NumberTooLarge),
            (r#"{"a":-1E400}"#, Flaw::NumberTooLarge),
            (r#"{"a":1.7976931348623159e308}"#, Flaw::NumberTooLarge),
            (r#"{"a":1e999999999999999999999999999}"#, Flaw::NumberTooLarge),
            ("[]", Flaw::NotAnObject),
            ("1", Flaw::NotAnObject),
            ("{\"a\":1,}", Flaw::Malformed),
            ("{\"a\":\"\u{1}\"}", Flaw::Malformed),
            ("{} {}", Flaw::Malformed),
            ("{\"a\":.5}", Flaw::Malformed),
        ] {
            assert_eq!(check_object(json.as_bytes()), Err(flaw), "{json}");
        }
        assert_eq!(check_object(b"{\"a\":\"\xff\"}"), Err(Flaw::Malformed));
        for json in [r#"{"a":"\ud83d\ude00","b":1.7976931348623157e308,"c":1e-999,"d":0e999}"#, " {} ", ""] {
            assert_eq!(check_object(json.as_bytes()), Ok(()), "{json}");
        }
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
        assert_eq!(check_object(nested(limits::JSON_DEPTH).as_bytes()), Ok(()));
        assert_eq!(check_object(nested(limits::JSON_DEPTH + 1).as_bytes()), Err(Flaw::TooDeep));
        // As deep as a row could ever be, and far beyond.
        assert!(!same(&nested(200_000), &nested(200_001)));
    }

    #[test]
    fn what_is_stored_already_is_made_readable() {
        for (stored, read) in [
            (r#"{"a":"cut \ud83d","\ude00":1}"#, r#"{"a":"cut \ufffd","\ufffd":1}"#),
            (r#"{"a":[1e999,-1E400,1e5],"b":"1e999 \" \\"}"#, r#"{"a":["1e999","-1E400",1e5],"b":"1e999 \" \\"}"#),
            (r#"{"a":"\ud83d\ude00 \u0041 \\ud800"}"#, r#"{"a":"\ud83d\ude00 \u0041 \\ud800"}"#),
        ] {
            assert_eq!(String::from_utf8(readable(stored.as_bytes())).unwrap(), read);
            assert!(serde_json::from_str::<serde_json::Value>(read).is_ok());
        }
    }

    #[test]
    fn the_fast_look_misses_nothing() {
        let long = format!("{{\"a\":{}}}", "9".repeat(400));
        let split = format!("{{\"a\":{}.5e1}}", "9".repeat(3));
        for json in [r#"{"a":"\ud800"}"#, r#"{"a":1e5}"#, r#"{"a":1.E5}"#, &long, &split] {
            assert!(!is_plain(json.as_bytes()), "{json}");
        }
        assert_eq!(check_parsed_object(&long), Err(Flaw::NumberTooLarge));
        assert!(is_plain(br#"{"name":"Espresso","price":1.80,"code":"ue","n":[1,22,333]}"#));
    }

    /// A value and nothing else: what the texts of a value are compared with.
    #[derive(Clone, Debug)]
    enum Model {
        Null,
        Flag(bool),
        /// `digits × 10^power`.
        Number(i64, i8),
        Text(String),
        Array(Vec<Model>),
        Object(Vec<(String, Model)>),
    }

    fn model_equal(a: &Model, b: &Model) -> bool {
        match (a, b) {
            (Model::Null, Model::Null) => true,
            (Model::Flag(a), Model::Flag(b)) => a == b,
            (Model::Number(a, p), Model::Number(b, q)) => {
                let scaled = |n: i64, p: i8| i128::from(n) * 10i128.pow((p + 10) as u32);
                scaled(*a, *p) == scaled(*b, *q)
            }
            (Model::Text(a), Model::Text(b)) => a.chars().eq(b.chars()),
            (Model::Array(a), Model::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| model_equal(a, b)),
            (Model::Object(a), Model::Object(b)) => {
                let last = |o: &[(String, Model)], name: &str| o.iter().rev().find(|(n, _)| n == name).cloned();
                let within = |a: &[(String, Model)], b: &[(String, Model)]| {
                    a.iter().all(|(name, _)| match (last(a, name), last(b, name)) {
                        (Some((_, a)), Some((_, b))) => model_equal(&a, &b),
                        _ => false,
                    })
                };
                within(a, b) && within(b, a)
            }
            _ => false,
        }
    }

    /// Few different ones, so that equal ones meet.
    fn value() -> impl Strategy<Value = Model> {
        let text = || prop::sample::select(vec!["", "a", "A", "\u{e9}", "\u{1F600}", "\"\\/\n", "\u{0}"]);
        let number = prop_oneof![
            (-20..20i64, -3..4i8),
            (prop::sample::select(vec![9_007_199_254_740_993, 9_007_199_254_740_992, 100, -1_000]), -10..10i8),
        ];
        let leaf = prop_oneof![
            Just(Model::Null),
            any::<bool>().prop_map(Model::Flag),
            number.prop_map(|(n, p)| Model::Number(n, p)),
            text().prop_map(|t| Model::Text(t.to_owned())),
        ];
        leaf.prop_recursive(3, 12, 3, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Model::Array),
                prop::collection::vec((text().prop_map(str::to_owned), inner), 0..4).prop_map(Model::Object),
            ]
        })
    }

    /// The value in one of its many spellings; every `style` gives another one.
    fn spell(value: &Model, style: &mut u64, out: &mut String) {
        let mut choose = |of: u64| {
            *style = style.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*style >> 33) % of
        };
        let space = [" ", "", "\n", ""][choose(4) as usize];
        out.push_str(space);
        match value {
            Model::Null => out.push_str("null"),
            Model::Flag(flag) => out.push_str(&flag.to_string()),
            Model::Number(n, power) => {
                let (sign, digits) = (if *n < 0 { "-" } else { "" }, n.unsigned_abs().to_string());
                match choose(4) {
                    0 => out.push_str(&format!("{sign}{digits}e{power}")),
                    1 => out.push_str(&format!("{sign}{digits}.00E{power:+}")),
                    2 => out.push_str(&format!("{sign}0.00{digits}e{}", i32::from(*power) + digits.len() as i32 + 2)),
                    _ if *power >= 0 => out.push_str(&format!(
                        "{sign}{}",
                        if *n == 0 { "0".into() } else { digits + &"0".repeat(*power as usize) }
                    )),
                    _ => {
                        let below = usize::from(power.unsigned_abs());
                        let padded = format!("{digits:0>width$}", width = below + 1);
                        let (whole, fraction) = padded.split_at(padded.len() - below);
                        out.push_str(&format!("{sign}{whole}.{fraction}"));
                    }
                }
            }
            Model::Text(text) => spell_text(text, choose(3), out),
            Model::Array(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    spell(item, style, out);
                }
                out.push(']');
            }
            Model::Object(fields) => {
                // Another order, but fields of the same name keep theirs.
                let mut fields = fields.clone();
                if choose(2) == 0 {
                    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                let how = choose(3);
                out.push('{');
                for (i, (name, field)) in fields.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    spell_text(name, how, out);
                    out.push(':');
                    spell(field, style, out);
                }
                out.push('}');
            }
        }
        out.push_str(space);
    }

    fn spell_text(text: &str, how: u64, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            if how == 0 || c < ' ' {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&if how == 1 { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") });
                }
            } else if matches!(c, '"' | '\\') || (how == 1 && c == '/') {
                out.push('\\');
                out.push(c);
            } else {
                out.push(c);
            }
        }
        out.push('"');
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn two_texts_are_equal_when_their_values_are(a in value(), b in value(), mut style in any::<u64>()) {
            let mut texts = [String::new(), String::new(), String::new()];
            for (text, value) in texts.iter_mut().zip([&a, &a, &b]) {
                spell(value, &mut style, text);
            }
            let [a1, a2, b1] = &texts;
            prop_assert!(equal(a1.as_bytes(), a2.as_bytes()), "{} {}", a1, a2);
            prop_assert_eq!(equal(a1.as_bytes(), b1.as_bytes()), model_equal(&a, &b), "{} {}", a1, b1);
        }

        #[test]
        fn a_strict_reader_takes_what_the_check_takes(
            value in value(),
            mut style in any::<u64>(),
            cut in any::<prop::sample::Index>(),
            put in prop::sample::select(vec!["", "\\ud800", "e999", "\\", "\"", ",", "}", "1", "\\ude00", ".", "-"]),
        ) {
            let mut text = String::from("{\"a\":");
            spell(&value, &mut style, &mut text);
            text.push('}');
            let at = cut.index(text.len() + 1);
            if text.is_char_boundary(at) {
                text.insert_str(at, put);
            }
            let whole = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            let made = serde_json::from_slice::<serde_json::Value>(&readable(text.as_bytes())).is_ok();
            prop_assert_eq!(made, whole, "{}", text);
            let strict = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|v| v.is_object());
            prop_assert_eq!(check_object(text.as_bytes()).is_ok(), strict, "{}", text);
            if strict {
                prop_assert_eq!(check_parsed_object(&text), Ok(()));
                let fields: Vec<String> = fields(text.as_bytes()).unwrap().into_keys()
                    .map(|name| String::from_utf8(name.into_owned()).unwrap()).collect();
                let known: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(fields, known.into_keys().collect::<Vec<_>>());
            }
        }

        #[test]
        fn hostile_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = check_object(&bytes);
            let _ = fields(&bytes);
            let _ = readable(&bytes);
            prop_assert!(equal(&bytes, &bytes.clone()));
        }
    }
}
