//! Every type that `GLOSSARY.md` names is in the code.

use crate::files::{below, read};

/// The words of the glossary: the word, and the types that carry it.
fn words(page: &str) -> Vec<(String, Vec<String>)> {
    let rows = page.lines().filter(|l| l.starts_with("| **"));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
    rows.map(cells)
        .map(|row| {
            let [word, _, carrier] = row.as_slice() else { panic!("a row of other cells: {row:?}") };
            let types = carrier.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            (word.trim_matches('*').to_owned(), types)
        })
        .collect()
}

fn is_type(source: &str, name: &str) -> bool {
    ["struct", "enum", "trait", "type", "message"].iter().any(|keyword| {
        source
            .match_indices(&format!("{keyword} {name}"))
            .any(|(at, found)| !source[at + found.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    })
}

#[test]
fn every_type_of_the_glossary_is_in_the_code() {
    let files = below(&["src", "proto"], &[".rs", ".proto"]);
    let source: String = files.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    let words = words(&read("GLOSSARY.md"));
    assert!(words.len() >= 25, "{} words", words.len());
    let mut wrong: Vec<String> = Vec::new();
    for (word, types) in &words {
        if types.is_empty() {
            wrong.push(format!("{word} has no type"));
        }
        wrong.extend(types.iter().filter(|t| !is_type(&source, t)).map(|t| format!("{word}: no type {t} in src")));
    }
    let mut sorted: Vec<String> = words.iter().map(|(word, _)| word.to_lowercase()).collect();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), words.len(), "a word stands there twice");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The check itself.
#[test]
fn a_type_that_is_not_there_is_found() {
    let page = "| **node** | One process. | `NodeId` |\n| **change** | A write. | `Put` |\n";
    assert_eq!(
        words(page),
        [("node".to_owned(), vec!["NodeId".to_owned()]), ("change".to_owned(), vec!["Put".to_owned()])]
    );
    assert!(is_type("pub struct NodeId(u64);", "NodeId"));
    assert!(!is_type("pub struct NodeIdent; fn f(n: NodeId) {}", "NodeId"));
}
