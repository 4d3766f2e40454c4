//! The pages `docs/api-events.md` and `docs/api-rest.md`: a section for each event and endpoint.
//!
//! People write a section's prose and the meaning of each field. Everything else of it (which fields, their types,
//! whether they are given, what answers, how it refuses) comes from the descriptions in the code, and `written` puts
//! both together. A page is right when writing it anew changes nothing.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use tillsync::gateway::http::rest::routes::{Content, ENDPOINTS, Endpoint, Needs};
use tillsync::gateway::protocol::events::{EventDescription, FROM_CLIENT, TO_CLIENT};
use tillsync::gateway::protocol::schema::{FieldDescription, FieldKind, PayloadWriter};

/// What is added to the documented API says so in its heading, or at its field.
const ADDED: &str = "added";
pub(crate) const NO_MEANING: &str = "a field without a meaning";

/// What the code says of an event or an endpoint.
pub(crate) struct Described {
    /// As in the heading: `` `data_update` (client → server) ``, `` `GET /sync/changes` ``.
    pub name: String,
    about: &'static str,
    /// Where the code says it: that it is beyond the documented API.
    added: Option<bool>,
    /// Lines before the tables.
    facts: Vec<String>,
    tables: Vec<Table>,
}

/// Fields under a label; events have one table, without a label.
struct Table {
    label: String,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    kind: String,
    given: String,
    about: &'static str,
}

pub(crate) fn events() -> Vec<Described> {
    let of = |event: &EventDescription, direction: &str, writer| {
        let answers: Vec<String> = event.answers.iter().map(|a| format!("`{a}`")).collect();
        let facts = match writer {
            PayloadWriter::Client => vec![format!("Answered by {}.", answers.join(", "))],
            PayloadWriter::Server => Vec::new(),
        };
        let table = Table { label: String::new(), rows: rows(event.fields, writer) };
        Described {
            name: format!("`{}` ({direction})", event.name),
            about: event.about,
            added: None,
            facts,
            tables: vec![table],
        }
    };
    let from = FROM_CLIENT.iter().map(|e| of(e, "client → server", PayloadWriter::Client));
    from.chain(TO_CLIENT.iter().map(|e| of(e, "server → client", PayloadWriter::Server))).collect()
}

pub(crate) fn endpoints() -> Vec<Described> {
    ENDPOINTS.iter().map(endpoint).collect()
}

fn endpoint(endpoint: &Endpoint) -> Described {
    let needs = match endpoint.needs {
        Needs::Nothing => "no token",
        Needs::Token => "a token",
        Needs::Quorum => "a token and a quorum",
    };
    let mut fact = format!("Needs {needs}.");
    let refuses: Vec<String> = endpoint.refuses.iter().map(|(status, code)| format!("{code} ({status})")).collect();
    if !refuses.is_empty() {
        let _ = write!(fact, " Refuses with {}.", refuses.join(", "));
    }
    let mut facts = vec![fact];
    let mut tables = Vec::new();
    let mut table =
        |label: String, fields: &[FieldDescription], writer| tables.push(Table { label, rows: rows(fields, writer) });
    if !endpoint.query.is_empty() {
        table("**Query**".to_owned(), endpoint.query, PayloadWriter::Client);
    }
    if let Some(fields) = endpoint.body {
        table("**Body**".to_owned(), fields, PayloadWriter::Client);
    }
    for (status, content) in endpoint.answers {
        let mut plain = |what: &str| facts.push(format!("Answers {status} with {what}."));
        match content {
            Content::Json(fields) => table(format!("**Answer {status}**"), fields, PayloadWriter::Server),
            Content::Feed(fields) => {
                plain("JSON, or with server-sent events where the client accepts `text/event-stream`");
                table(format!("**Answer {status}**"), fields, PayloadWriter::Server);
            }
            Content::Document => plain("a JSON document"),
            Content::Page => plain("a web page"),
            Content::Text => plain("plain text"),
            Content::Bytes => plain("bytes, `application/octet-stream`"),
            Content::Upgrade => plain("an upgrade of the connection"),
        }
    }
    let name = format!("`{} {}`", endpoint.method, endpoint.path);
    Described { name, about: endpoint.about, added: Some(!endpoint.documented), facts, tables }
}

/// The fields and those inside them, `outer.inner` and `list[].inner`.
fn rows(fields: &[FieldDescription], writer: PayloadWriter) -> Vec<Row> {
    let mut out = Vec::new();
    push_rows(fields, "", false, writer, &mut out);
    out
}

/// What is inside an added field is added.
fn push_rows(fields: &[FieldDescription], prefix: &str, added: bool, writer: PayloadWriter, out: &mut Vec<Row>) {
    for field in fields {
        let name = format!("{prefix}{}", field.name);
        let given = match (writer, field.required) {
            (PayloadWriter::Client, true) => "required",
            (PayloadWriter::Client, false) => "optional",
            (PayloadWriter::Server, true) => "always",
            (PayloadWriter::Server, false) => "sometimes",
        };
        let added = added || field.extension;
        let given = if added { format!("{ADDED}, {given}") } else { given.to_owned() };
        out.push(Row { name: name.clone(), kind: kind(&field.kind, writer), given, about: field.about });
        match inside(&field.kind) {
            (_, None) => {}
            (true, Some(fields)) => push_rows(fields, &format!("{name}[]."), added, writer, out),
            (false, Some(fields)) => push_rows(fields, &format!("{name}."), added, writer, out),
        }
    }
}

/// Whether it is a list, and the fields in it.
fn inside(kind: &FieldKind) -> (bool, Option<&'static [FieldDescription]>) {
    match kind {
        FieldKind::Object(fields) => (false, Some(fields)),
        FieldKind::List(fields) => (true, Some(fields)),
        FieldKind::OrNull(kind) => inside(kind),
        _ => (false, None),
    }
}

/// What a field may hold. A bound is a client's business; what the server writes stays below it.
fn kind(kind: &FieldKind, writer: PayloadWriter) -> String {
    let words = |words: &[&str]| words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    let bytes = |what: &str, max: &usize| match writer {
        PayloadWriter::Client => format!("{what}, {max} bytes"),
        PayloadWriter::Server => what.to_owned(),
    };
    match kind {
        FieldKind::Name(max) => bytes("name", max),
        FieldKind::Text(max) => bytes("text", max),
        FieldKind::Word(list) => words(list),
        FieldKind::Count(u64::MAX) => "count".to_owned(),
        FieldKind::Count(max) => format!("0 to {max}"),
        FieldKind::Size(max) if *max == i64::MAX as u64 => "from 1".to_owned(),
        FieldKind::Size(max) => format!("1 to {max}"),
        FieldKind::RecordId => "record id".to_owned(),
        FieldKind::Number => "number".to_owned(),
        FieldKind::Flag => "true or false".to_owned(),
        FieldKind::Time => "time".to_owned(),
        FieldKind::Data | FieldKind::Object(_) => "object".to_owned(),
        FieldKind::Words(list) => format!("object of {}", words(list)),
        FieldKind::Texts(max, _) if writer == PayloadWriter::Client => format!("list of texts, {max}"),
        FieldKind::Texts(..) => "list of texts".to_owned(),
        FieldKind::Counts => "list of counts".to_owned(),
        FieldKind::List(_) => "list of objects".to_owned(),
        FieldKind::OrNull(inner) => format!("{} or null", self::kind(inner, writer)),
    }
}

/// A section as it stands in the page.
struct Section {
    name: String,
    added: bool,
    prose: String,
    /// By the table's label and the field's name.
    meanings: HashMap<(String, String), String>,
    /// The fields that the documented API has.
    documented: Vec<(String, String)>,
}

/// What stands before the first section of a part, and its sections.
enum Piece {
    Text(String),
    Section(Section),
}

fn pieces(page: &str) -> Vec<Piece> {
    let mut out = vec![Piece::Text(String::new())];
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("### `") {
            let heading = format!("`{heading}");
            let (name, added) = match heading.strip_suffix(&format!(", {ADDED}")) {
                Some(name) => (name.to_owned(), true),
                None => (heading, false),
            };
            let (meanings, documented) = (HashMap::new(), Vec::new());
            out.push(Piece::Section(Section { name, added, prose: String::new(), meanings, documented }));
        } else if line.starts_with('#') && !matches!(out.last(), Some(Piece::Text(_))) {
            out.push(Piece::Text(format!("{line}\n")));
        } else {
            match out.last_mut() {
                Some(Piece::Text(text)) => *text += &format!("{line}\n"),
                Some(Piece::Section(section)) => section.prose += &format!("{line}\n"),
                None => {}
            }
        }
    }
    for piece in &mut out {
        if let Piece::Section(section) = piece {
            take_tables(section);
        }
    }
    out
}

/// Leaves the prose alone in `prose`: what the code says is written anew.
fn take_tables(section: &mut Section) {
    let text = std::mem::take(&mut section.prose);
    let mut label = String::new();
    for line in text.lines() {
        let made = ["Answered by ", "Needs ", "Answers ", "|", "**"];
        if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
            let &[name, _, given, ref meaning @ ..] = cells.as_slice() else { panic!("a row of few cells: {line}") };
            let key = (label.clone(), name.trim_end_matches('`').to_owned());
            if !section.added && !given.starts_with(ADDED) {
                section.documented.push(key.clone());
            }
            section.meanings.insert(key, meaning.join(" | "));
        } else if line.starts_with("**") {
            label = line.to_owned();
        } else if !made.iter().any(|m| line.starts_with(m)) {
            section.prose += &format!("{line}\n");
        }
    }
    section.prose = section.prose.trim().to_owned();
}

/// The page as it should be, and what is wrong with it that writing it anew does not mend.
pub(crate) fn written(page: &str, described: &[Described]) -> (String, Vec<String>) {
    let (mut out, mut wrong, mut there) = (String::new(), Vec::new(), HashSet::new());
    for piece in pieces(page) {
        match piece {
            Piece::Text(text) => out += &format!("{}\n\n", text.trim_end()),
            Piece::Section(section) => match described.iter().find(|d| d.name == section.name) {
                Some(described) => {
                    there.insert(section.name.clone());
                    wrong.extend(missing(&section, described));
                    write_section(&mut out, &section, described);
                }
                None if section.added => {}
                None => wrong.push(format!("{} is documented, and the code does not describe it", section.name)),
            },
        }
    }
    for described in described.iter().filter(|d| !there.contains(&d.name)) {
        let (prose, meanings, documented) = (String::new(), HashMap::new(), Vec::new());
        let section = Section { name: described.name.clone(), added: true, prose, meanings, documented };
        write_section(&mut out, &section, described);
    }
    for line in out.lines().filter(|l| l.starts_with("| `") && l.ends_with("|  |")) {
        wrong.push(format!("{NO_MEANING}: {line}"));
    }
    (format!("{}\n", out.trim_end()), wrong)
}

/// Documented fields that the code does not describe, or marks as added; and fields that it takes for documented.
fn missing(section: &Section, described: &Described) -> Vec<String> {
    let mut wrong = Vec::new();
    if described.added.is_some_and(|added| added != section.added) {
        wrong.push(format!("{}: the page and the code disagree on whether it is {ADDED}", section.name));
    }
    let of_code = |key: &(String, String)| {
        described.tables.iter().filter(|t| t.label == key.0).flat_map(|t| &t.rows).find(|r| r.name == key.1)
    };
    for key in &section.documented {
        let at = format!("{} {} `{}`", section.name, key.0, key.1);
        match of_code(key) {
            None => wrong.push(format!("{at} is documented, and the code does not describe it")),
            Some(row) if row.given.starts_with(ADDED) => {
                wrong.push(format!("{at} is documented, and the code calls it an extension"));
            }
            Some(_) => {}
        }
    }
    for table in described.tables.iter().filter(|_| !section.added) {
        for row in table.rows.iter().filter(|r| !r.given.starts_with(ADDED)) {
            if !section.documented.contains(&(table.label.clone(), row.name.clone())) {
                wrong.push(format!(
                    "{} {} `{}` is not in the documented API: in the code it must be `plus` or `more`",
                    section.name, table.label, row.name
                ));
            }
        }
    }
    wrong
}

fn write_section(out: &mut String, section: &Section, described: &Described) {
    let added = if section.added { format!(", {ADDED}") } else { String::new() };
    let prose = if section.prose.is_empty() { described.about } else { &section.prose };
    let _ = write!(out, "### {}{added}\n\n{prose}\n\n", section.name);
    for fact in &described.facts {
        let _ = write!(out, "{fact}\n\n");
    }
    for table in described.tables.iter().filter(|t| !t.rows.is_empty()) {
        if !table.label.is_empty() {
            let _ = write!(out, "{}\n\n", table.label);
        }
        out.push_str("| field | type | given | meaning |\n|---|---|---|---|\n");
        for row in &table.rows {
            let given = match row.given.strip_prefix(&format!("{ADDED}, ")) {
                // The whole section says so.
                Some(given) if section.added => given,
                _ => &row.given,
            };
            let key = (table.label.clone(), row.name.clone());
            let meaning = section.meanings.get(&key).map_or(row.about, String::as_str);
            let _ = writeln!(out, "| `{}` | {} | {given} | {meaning} |", row.name, row.kind);
        }
        out.push('\n');
    }
}
