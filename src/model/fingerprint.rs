//! What a request asked for, as one number: to tell its repeat from another request under the same name when the
//! change that it became is gone.
//!
//! By value, not by bytes, as [`super::value::equal`] compares: equal values have the same fingerprint.

use xxhash_rust::xxh3::xxh3_128;

use super::value;
use crate::proto::{Change, DataUpdate};

/// Did the request that became this change ask for the same? Both were checked to hold an object.
pub(super) fn same_request(change: &Change, c: &DataUpdate) -> bool {
    change.table_name == c.table_name
        && change.record_id == c.record_id
        && change.operation == c.operation
        && value::equal(&change.data, &c.data)
}

/// What a `data_update` asks for.
pub(super) fn of_request(c: &DataUpdate) -> u128 {
    print(&c.table_name, c.record_id, c.operation, &c.data)
}

/// What the request asked for that became this change.
pub(super) fn of_change(change: &Change) -> u128 {
    print(&change.table_name, change.record_id, change.operation, &change.data)
}

fn print(table: &str, record: i64, operation: i32, data: &[u8]) -> u128 {
    let mut out = Vec::with_capacity(data.len() + table.len() + 32);
    out.extend_from_slice(&(table.len() as u64).to_be_bytes());
    out.extend_from_slice(table.as_bytes());
    out.extend_from_slice(&record.to_be_bytes());
    out.extend_from_slice(&operation.to_be_bytes());
    value::canonical(data, &mut out);
    // 0 stands for a fingerprint that is not known.
    xxh3_128(&out).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prints(data: &str) -> u128 {
        print("t", 1, 1, data.as_bytes())
    }

    #[test]
    fn equal_values_have_one_fingerprint_and_others_another() {
        for (a, b) in [
            (r#"{"a":20,"b":[1,"A"]}"#, r#" {"b": [1.0, "\u0041"], "a":2e1} "#),
            (r#"{"a":-0.0}"#, r#"{"a":0}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("", "{}"),
            (r#"{"a":1e-2}"#, r#"{"a":0.010}"#),
            (
                r#"{"a":1e99999999999999999999999999999999999999999}"#,
                r#"{"a":1.0e99999999999999999999999999999999999999999}"#,
            ),
            (r#"{"a":"\ud800"}"#, r#"{ "a":"\ud800"}"#),
        ] {
            assert_eq!(prints(a), prints(b), "{a} {b}");
            assert!(value::equal(a.as_bytes(), b.as_bytes()), "{a} {b}");
        }
        for (a, b) in [
            (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#),
            (r#"{"a":"1"}"#, r#"{"a":1}"#),
            (r#"{"a":1}"#, r#"{"a":-1}"#),
            (r#"{"a":1}"#, r#"{"a":10}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#),
            (r#"{"a":null}"#, "{}"),
            (r#"{"a":[[1],2]}"#, r#"{"a":[[1,2]]}"#),
            (r#"{"a":"\ud800"}"#, r#"{"a":"\ud801"}"#),
            (
                r#"{"a":1e99999999999999999999999999999999999999999}"#,
                r#"{"a":1e99999999999999999999999999999999999999998}"#,
            ),
            ("[", "{"),
            (r#"{"a":{"b":1},"c":2}"#, r#"{"a":{"b":1,"c":2}}"#),
        ] {
            assert_ne!(prints(a), prints(b), "{a} {b}");
            assert!(!value::equal(a.as_bytes(), b.as_bytes()), "{a} {b}");
        }
        let base = print("t", 1, 1, b"{}");
        assert!([print("u", 1, 1, b"{}"), print("t", 2, 1, b"{}"), print("t", 1, 2, b"{}")].iter().all(|p| *p != base));
    }

    /// A value as two clients may write it.
    fn written_twice() -> impl Strategy<Value = (String, String)> {
        let leaf = prop_oneof![
            (-50..50i64).prop_map(|n| (format!("{n}"), format!("{n}.0"))),
            (1..50i64).prop_map(|n| (format!("{n}0"), format!("{n}e1"))),
            "[a-c]{0,3}".prop_map(|t| {
                let escaped: String = t.bytes().map(|b| format!("\\u{b:04x}")).collect();
                (format!("\"{t}\""), format!("\"{escaped}\""))
            }),
            Just(("true".into(), "true".into())),
            Just(("null".into(), " null".into())),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| {
                    let (a, b): (Vec<_>, Vec<_>) = items.into_iter().unzip();
                    (format!("[{}]", a.join(",")), format!("[ {} ]", b.join(" , ")))
                }),
                prop::collection::btree_map("[x-z]{1,2}", inner, 0..4).prop_map(|fields| {
                    let a: Vec<_> = fields.iter().map(|(name, (a, _))| format!("\"{name}\":{a}")).collect();
                    let b: Vec<_> = fields.iter().rev().map(|(name, (_, b))| format!("\"{name}\": {b}")).collect();
                    (format!("{{{}}}", a.join(",")), format!("{{{}}}", b.join(",")))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn however_a_value_is_written(one in written_twice(), two in written_twice()) {
            let object = |v: &str| format!(r#"{{"v":{v}}}"#);
            prop_assert_eq!(prints(&object(&one.0)), prints(&object(&one.1)));
            prop_assert!(value::equal(object(&one.0).as_bytes(), object(&one.1).as_bytes()));
            let same = value::equal(object(&one.0).as_bytes(), object(&two.1).as_bytes());
            prop_assert_eq!(same, prints(&object(&one.0)) == prints(&object(&two.1)));
        }
    }
}
