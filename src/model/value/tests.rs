//! Against a slow, obvious model and against `serde_json`.

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
