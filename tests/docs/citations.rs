//! Whatever a page or a comment cites is in the repository: pages, headings in them, sections of the design.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::files::{below, root, shown};

/// Where comments and pages stand. Not what others wrote and is kept as it came.
const PLACES: [&str; 14] = [
    "src",
    "tests",
    "chaos",
    "docs",
    "deploy",
    "proto",
    "benches",
    "build.rs",
    "Cargo.toml",
    "deny.toml",
    ".ci/run",
    ".ci/deny",
    "README.md",
    "ARCHITECTURE.md",
];
const ENDINGS: [&str; 12] =
    [".rs", ".md", ".proto", ".toml", ".sh", ".py", ".mjs", ".js", ".html", ".txt", "/run", "/deny"];
const DESIGN: &str = "docs/design.md";

fn texts() -> Vec<(PathBuf, String)> {
    let mut places = PLACES.to_vec();
    places.push("GLOSSARY.md");
    let files = below(&places, &ENDINGS).into_iter();
    let ours = files.filter(|p| !["node_modules", "/target/"].iter().any(|n| p.to_string_lossy().contains(n)));
    let read = |path: PathBuf| Some((path.clone(), std::fs::read_to_string(path).ok()?));
    ours.filter_map(read).collect()
}

/// The names by which a page's headings can be linked, as GitHub and other readers make them.
fn anchors(page: &str) -> HashSet<String> {
    let mut seen: HashMap<String, u32> = HashMap::new();
    let mut code = false;
    let mut out = HashSet::new();
    for line in page.lines() {
        code ^= line.starts_with("```");
        let Some(title) = line.strip_prefix('#').filter(|_| !code) else { continue };
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let times = seen.entry(slug.clone()).or_default();
        out.insert(if *times == 0 { slug.clone() } else { format!("{slug}-{times}") });
        *times += 1;
    }
    out
}

/// What is wrong with the links of a page.
fn dead_links(path: &Path, page: &str) -> Vec<String> {
    let mut dead = Vec::new();
    for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let link = link.trim_matches(['<', '>']);
        if link.contains("://") || link.starts_with("mailto:") || link.contains(char::is_whitespace) {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() { path.to_owned() } else { path.parent().unwrap_or(root()).join(file) };
        let there = target.exists();
        let text = if there && !anchor.is_empty() {
            std::fs::read_to_string(&target).unwrap_or_default()
        } else {
            String::new()
        };
        if !there || (!anchor.is_empty() && !anchors(&text).contains(anchor)) {
            dead.push(format!("{} links to {link}", shown(path)));
        }
    }
    dead
}

/// Names of pages in running text: `docs/errors.md`, `ARCHITECTURE.md`.
fn pages_named(text: &str) -> BTreeSet<&str> {
    let name = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    text.split(|c: char| !name(c))
        .map(|w| w.trim_start_matches('/').trim_end_matches('.'))
        .filter(|w| w.ends_with(".md") && w.len() > 3)
        .collect()
}

/// The design's sections: `6`, and `16.7` for the seventh point of section 16.
fn sections(design: &str) -> HashSet<String> {
    let mut out = HashSet::new();
    let mut section = String::new();
    for line in design.lines() {
        let number = |text: &str| text.split_once(". ").map(|(n, _)| n.to_owned()).filter(|n| n.parse::<u32>().is_ok());
        if let Some(title) = line.strip_prefix("## ") {
            section = number(title).unwrap_or_default();
            out.insert(section.clone());
        } else if let Some(point) = number(line) {
            out.insert(format!("{section}.{point}"));
        }
    }
    out.remove("");
    out
}

/// The sections that a text cites: the numbers after each "section". Comments break lines, so their signs count as space.
fn sections_cited(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split_whitespace().filter(|w| !["//", "///", "//!", "#", "*"].contains(w)).collect();
    let mut out = Vec::new();
    for (at, _) in
        words.iter().enumerate().filter(|(_, w)| ["section", "sections"].contains(&w.to_lowercase().as_str()))
    {
        // "design, section 6": whose section it is stands right before it.
        let of_design = words[..at].iter().rev().take(2).any(|w| w.contains("design"));
        if !of_design {
            continue;
        }
        for word in &words[at + 1..] {
            let bare = word.trim_matches(|c: char| !c.is_ascii_digit());
            if !bare.is_empty() && bare.chars().all(|c| c.is_ascii_digit() || c == '.') {
                out.push(bare.to_owned());
            } else if *word != "and" {
                break;
            }
            if word.ends_with([')', ';', ':']) || word.ends_with('.') {
                break;
            }
        }
    }
    out
}

#[test]
fn every_link_leads_somewhere() {
    let pages = texts().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "md"));
    let dead: Vec<String> = pages.flat_map(|(path, page)| dead_links(&path, &page)).collect();
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn every_page_that_is_named_is_there() {
    let mut absent = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| !path.ends_with("tests/docs/citations.rs")) {
        let beside = path.parent().unwrap_or(root());
        for name in pages_named(text) {
            let places = [root().join(name), beside.join(name), root().join("docs").join(name)];
            if !places.iter().any(|p| p.exists()) {
                absent.push(format!("{} names {name}", shown(path)));
            }
        }
    }
    assert!(absent.is_empty(), "{}", absent.join("\n"));
}

#[test]
fn every_section_of_the_design_that_is_cited_is_there() {
    let there = sections(&std::fs::read_to_string(root().join(DESIGN)).unwrap());
    let (mut absent, mut cited) = (Vec::new(), 0);
    for (path, text) in texts().iter().filter(|(path, _)| !path.ends_with("tests/docs/citations.rs")) {
        for section in sections_cited(text) {
            cited += 1;
            if !there.contains(&section) {
                absent.push(format!("{} cites section {section}", shown(path)));
            }
        }
        for line in text.lines().filter(|l| l.contains("design, section") || l.contains('§')) {
            absent.push(format!("{} cites a page without its name: {}", shown(path), line.trim()));
        }
    }
    assert!(absent.is_empty(), "{}", absent.join("\n"));
    assert!(cited >= 10, "only {cited} citations were read");
}

/// The checks themselves.
#[test]
fn what_is_not_there_is_found() {
    let page = root().join("docs/errors.md");
    let bad =
        "[a](errors.md) [b](nowhere.md) [c](operating.md#no-such-part) [d](https://example.org/x.md) [e](#error-codes)";
    let dead = dead_links(&page, bad);
    assert_eq!(dead, ["docs/errors.md links to nowhere.md", "docs/errors.md links to operating.md#no-such-part"]);

    let named: Vec<_> = pages_named("//! See `docs/errors.md`, notes/sled.md.").into_iter().collect();
    assert_eq!(named, ["docs/errors.md", "notes/sled.md"]);

    let cited = sections_cited("//! As decided (docs/design.md, sections 6\n//! and 16.7); see section 99 of RFC 1.");
    assert_eq!(cited, ["6", "16.7"]);
    let there = sections("## 6. Conflicts\n\n1. one\n2. two\n## 7. Transports\n");
    assert!(there.contains("6.2") && there.contains("7") && !there.contains("6.3") && !there.contains("7.1"));
}
