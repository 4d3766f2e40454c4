//! The little that is read of an object store's XML: the texts of elements by their name. What is not as expected is not found.

/// The texts of all elements of a name that have no elements in them, or what is in those that have.
pub(super) fn all<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let (mut rest, mut found) = (xml, Vec::new());
    while let Some(at) = rest.find(&open) {
        rest = &rest[at + open.len()..];
        // Another name that begins like this one, or an element without an end.
        if !rest.starts_with(['>', ' ', '\t', '\r', '\n']) {
            continue;
        }
        let Some((attributes, inside)) = rest.split_once('>') else { break };
        if attributes.ends_with('/') {
            continue;
        }
        let Some((inside, after)) = inside.split_once(&close) else { break };
        found.push(inside);
        rest = after;
    }
    found
}

/// The text of the first one.
pub(super) fn first(xml: &str, name: &str) -> Option<String> {
    all(xml, name).first().map(|text| unescaped(text))
}

pub(super) fn unescaped(text: &str) -> String {
    let (mut rest, mut out) = (text, String::with_capacity(text.len()));
    while let Some((before, after)) = rest.split_once('&') {
        out += before;
        let decoded = after.split_once(';').and_then(|(name, after)| {
            let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
            let c = match name {
                "amp" => Some('&'),
                "lt" => Some('<'),
                "gt" => Some('>'),
                "quot" => Some('"'),
                "apos" => Some('\''),
                _ => name
                    .strip_prefix("#x")
                    .and_then(|digits| number(digits, 16))
                    .or_else(|| name.strip_prefix('#').and_then(|digits| number(digits, 10))),
            };
            c.map(|c| (c, after))
        });
        match decoded {
            Some((c, after)) => {
                out.push(c);
                rest = after;
            }
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read() {
        let xml = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3/\"><IsTruncated>false</IsTruncated>\
                   <Contents><Key>a&amp;b&#x2F;c&#65;</Key><Size>3</Size></Contents><KeyCount>2</KeyCount><Empty/>\
                   <Contents><Key>d &unknown; e</Key></Contents></ListBucketResult>";
        assert_eq!(all(xml, "Key").into_iter().map(unescaped).collect::<Vec<_>>(), ["a&b/cA", "d &unknown; e"]);
        assert_eq!(
            (first(xml, "IsTruncated"), first(xml, "Empty"), first(xml, "Cont")),
            (Some("false".into()), None, None)
        );
        assert_eq!(all(xml, "Contents").len(), 2);
        for broken in ["<Key>", "<Key", "<Key>a</Ke", "<Key/><Key", "&", "&#xFFFFFFFF;"] {
            assert!(all(broken, "Key").is_empty(), "{broken}");
            unescaped(broken);
        }
    }
}
