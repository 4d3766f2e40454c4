//! Text that devices send, as people read it: names take only what a reader sees, and a terminal is sent nothing that
//! it would obey.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters that a reader does not see, or that change how those around them look: controls (C0, C1), format
/// characters (zero width, bidirectional), separators of lines and paragraphs, fillers, variation selectors, tags.
pub(crate) fn is_visible(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    !matches!(c,
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{fffe}'..='\u{ffff}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1345f}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Whether `text` may be part of a name: all of it can be seen, and its only space is the ordinary one. Two names that
/// look the same are then not two devices.
pub(crate) fn is_name(text: &str) -> bool {
    text.chars().all(|c| is_visible(c) && (c == ' ' || !c.is_whitespace()))
}

/// What [`is_name`] refuses, as a class of a JSON schema's `pattern` (those beyond 16 bits as they are: not every dialect
/// can write them otherwise).
pub(crate) const NOT_IN_NAMES: &str = "\\u0000-\\u001f\\u007f-\\u00a0\\u00ad\\u034f\\u0600-\\u0605\\u061c\\u06dd\\u070f\\u0890-\\u0891\
     \\u08e2\\u115f-\\u1160\\u1680\\u17b4-\\u17b5\\u180b-\\u180f\\u2000-\\u200f\\u2028-\\u202f\\u205f-\\u206f\
     \\u2800\\u3000\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb\\ufffe-\\uffff\u{110bd}\u{110cd}\u{13430}-\u{1345f}\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}";

/// `text` for a terminal or a log: what is not visible becomes `\uXXXX` as in JSON, so that a line of JSON stays one.
/// Line ends and tabs stay.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    let stays = |c: char| is_visible(c) || c == '\n' || c == '\t';
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if stays(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a String does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_take_only_what_a_reader_sees() {
        for good in ["till-1", "Kasse 2", "Käse", "店-3", "\u{627}\u{644}", "a.b:c/d", "\u{1f4b0}"] {
            assert!(is_name(good), "{good:?}");
        }
        for bad in [
            "a\u{1b}[31m",
            "a\u{9b}31m",
            "a\u{7f}",
            "a\u{202e}b",
            "a\u{2066}b",
            "a\u{200b}",
            "a\u{feff}",
            "a\u{ad}",
            "a\u{a0}b",
            "a\u{3000}b",
            "a\u{2028}",
            "a\u{3164}",
            "a\u{e0041}",
            "a\u{fe0f}",
            "a\tb",
            "a\nb",
            "a\u{2800}",
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_pattern_of_names_is_the_rule() {
        let mut class = Vec::new();
        let mut rest = NOT_IN_NAMES.chars();
        while let Some(c) = rest.next() {
            let c = match (c, rest.clone().next()) {
                ('\\', Some('u')) => {
                    let hex: String = rest.by_ref().skip(1).take(4).collect();
                    char::from_u32(u32::from_str_radix(&hex, 16).unwrap()).unwrap()
                }
                (c, _) => c,
            };
            class.push(c);
        }
        let mut named = std::collections::BTreeSet::new();
        let mut at = 0;
        while at < class.len() {
            let to = if class.get(at + 1) == Some(&'-') { class[at + 2] } else { class[at] };
            named.extend(class[at]..=to);
            at += if class.get(at + 1) == Some(&'-') { 3 } else { 1 };
        }
        let refused = ('\0'..=char::MAX).filter(|c| !is_name(&c.to_string())).collect();
        assert_eq!(named, refused);
    }

    #[test]
    fn a_terminal_obeys_nothing_that_a_device_sent() {
        assert_eq!(escaped("a\tb\n"), "a\tb\n");
        assert!(matches!(escaped("Käse 店"), Cow::Borrowed(_)));
        assert_eq!(escaped("\u{1b}[2J\u{9b}1A\r\u{202e}x"), "\\u001b[2J\\u009b1A\\u000d\\u202ex");
        let json = serde_json::json!({"a": "\u{9b}\u{202e}\u{e0041}\u{7f}"});
        let line = json.to_string();
        let shown = escaped(&line);
        assert!(shown.is_ascii());
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), json);
    }
}
