//! The automatic merge of two versions of a record, field by field.

use super::value;

/// Whether a field was changed is decided on its value; what is written are the bytes of the side that is taken.
pub(super) fn merge_objects(base: &[u8], local: &[u8], remote: &[u8], remote_wins: bool) -> Option<Vec<u8>> {
    let base = value::fields(base).unwrap_or_default();
    let local = value::fields(local)?;
    let remote = value::fields(remote)?;
    let mut merged = vec![b'{'];
    let same = |a: Option<&value::JsonField<'_>>, b: Option<&value::JsonField<'_>>| match (a, b) {
        (Some(a), Some(b)) => value::equal(a.raw_value, b.raw_value),
        (a, b) => a.is_none() && b.is_none(),
    };
    let mut names: Vec<_> = local.keys().chain(remote.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (b, l, r) = (base.get(name), local.get(name), remote.get(name));
        let take_remote = match (same(l, b), same(r, b)) {
            (true, false) => true,
            (false, true) => false,
            _ => remote_wins,
        };
        if let Some(field) = if take_remote { r } else { l } {
            if merged.len() > 1 {
                merged.push(b',');
            }
            merged.extend_from_slice(field.raw_name);
            merged.push(b':');
            merged.extend_from_slice(field.raw_value);
        }
    }
    merged.push(b'}');
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_keeps_what_only_one_side_changed() {
        let merged = |remote_wins| {
            let out = merge_objects(
                br#"{"price":1,"stock":5,"name":"a","gone":1}"#,
                br#"{"price":2,"stock":5,"name":"b"}"#,
                br#"{"price":1,"stock":4,"name":"c","gone":1,"new":1.50}"#,
                remote_wins,
            );
            String::from_utf8(out.unwrap()).unwrap()
        };
        // price: only here; stock, new: only there; gone: removed here; name: both, so the winner's.
        assert_eq!(merged(true), r#"{"name":"c","new":1.50,"price":2,"stock":4}"#);
        assert_eq!(merged(false), r#"{"name":"b","new":1.50,"price":2,"stock":4}"#);
        assert_eq!(merge_objects(b"", b"[]", b"{}", true), None);
    }
}
