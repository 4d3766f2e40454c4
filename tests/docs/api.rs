//! The API's pages and the descriptions in the code say the same: every event, endpoint, field, code and table.

use std::collections::BTreeSet;
use std::fs;

use tillsync::gateway::protocol::events::{FROM_CLIENT, TO_CLIENT};
use tillsync::model::error::TABLE;
use tillsync::token::Class;

use crate::files;
use crate::sections::{Described, NO_MEANING, endpoints, events, written};

fn hold(path: &str, described: &[Described]) {
    let page = files::read(path);
    let (right, wrong) = written(&page, described);
    // What the documented API has is the law: a run that would take it out of the page, or add to it, writes nothing.
    if std::env::var_os("UPDATE_DOCS").is_some() && wrong.iter().all(|w| w.starts_with(NO_MEANING)) {
        fs::write(files::root().join(path), &right).unwrap();
    }
    assert!(wrong.is_empty(), "{path}:\n{}", wrong.join("\n"));
    let page = files::read(path);
    let (have, want): (BTreeSet<_>, BTreeSet<_>) = (page.lines().collect(), right.lines().collect());
    let only = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| a.difference(b).copied().collect::<Vec<_>>().join("\n");
    assert!(
        page == right,
        "{path} is not what the code describes.\nOnly in the page:\n{}\nOnly in the code:\n{}\n\
         UPDATE_DOCS=1 cargo test --workspace --test docs writes what is added; give each field its meaning.",
        only(&have, &want),
        only(&want, &have)
    );
}

#[test]
fn every_event_of_the_page_is_described_and_the_other_way_round() {
    hold("docs/api-events.md", &events());
}

#[test]
fn every_endpoint_of_the_page_is_described_and_the_other_way_round() {
    hold("docs/api-rest.md", &endpoints());
}

/// The check itself: a field that is taken out of the page or out of the code is found.
#[test]
fn a_missing_field_is_found_on_either_side() {
    let page = files::read("docs/api-events.md");
    let (right, wrong) = written(&page, &events());
    assert!(right == page && wrong.is_empty(), "{wrong:?}");

    let line = page.lines().find(|l| l.starts_with("| `sync_type`")).unwrap();
    let without = page.replacen(&format!("{line}\n"), "", 1);
    let (right, wrong) = written(&without, &events());
    assert!(
        right != without && wrong.iter().any(|w| w.contains("`sync_type` is not in the documented API")),
        "{wrong:?}"
    );

    let more = page.replacen(line, &format!("{line}\n| `sync_mood` | text, 10 bytes | optional | How it feels. |"), 1);
    let (right, wrong) = written(&more, &events());
    assert!(right != more && wrong.iter().any(|w| w.contains("`sync_mood` is documented")), "{wrong:?}");

    let fewer: Vec<_> = events().into_iter().filter(|e| e.name != "`heartbeat` (client → server)").collect();
    let (_, wrong) = written(&page, &fewer);
    assert_eq!(wrong, ["`heartbeat` (client → server) is documented, and the code does not describe it"]);

    let rest =
        files::read("docs/api-rest.md").replacen("### `GET /device/roles`\n", "### `GET /device/roles`, added\n", 1);
    let (_, wrong) = written(&rest, &endpoints());
    assert!(wrong.iter().any(|w| w.contains("`GET /device/roles`: the page and the code disagree")), "{wrong:?}");
}

/// The rows of the table below a heading that has these words; each row's cells.
fn table_below(heading: &str) -> Vec<Vec<String>> {
    let page = files::read("docs/api.md");
    let (_, after) = page.split_once(heading).unwrap_or_else(|| panic!("docs/api.md has no heading {heading:?}"));
    let lines = after.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect();
    lines.skip(2).map(cells).collect()
}

#[test]
fn the_page_has_every_code() {
    let rows: Vec<Vec<String>> = TABLE
        .iter()
        .map(|r| vec![r.code.to_string(), r.title.to_owned(), r.http.to_string(), r.retry.name().to_owned()])
        .collect();
    assert_eq!(table_below("\n### Every code\n"), rows);
}

#[test]
fn the_page_has_every_class_with_its_priority() {
    let rows: Vec<Vec<String>> =
        Class::ALL.iter().map(|c| vec![c.name().to_owned(), c.priority().to_string()]).collect();
    assert_eq!(table_below("\n### Classes and priorities\n"), rows);
}

/// The overview names all events, each in one group.
#[test]
fn the_overview_has_every_event() {
    let mut named: Vec<String> = table_below("\n## Events at a glance\n")
        .iter()
        .flat_map(|row| row[1].split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    named.sort();
    let all: BTreeSet<&str> = FROM_CLIENT.iter().chain(TO_CLIENT).map(|e| e.name).collect();
    assert_eq!(named, all.into_iter().collect::<Vec<_>>());
}

/// The tables of the documented database, against the statements with which `tillsync export` makes them.
#[test]
fn the_page_has_every_table_and_index() {
    let sql = files::read("src/cli/sqlite/documented.sql");
    for statement in sql.split(';').filter_map(|s| Some(s.split_once("CREATE TABLE ")?.1)) {
        let (name, columns) = statement.split_once(" (").unwrap();
        let columns: Vec<(String, String)> = columns
            .lines()
            .filter_map(|l| l.trim().trim_end_matches(',').split_once(' '))
            .map(|(column, kind)| (column.to_owned(), kind.to_owned()))
            .collect();
        let rows: Vec<(String, String)> =
            table_below(&format!("\n### `{name}`\n")).into_iter().map(|r| (r[0].clone(), r[1].clone())).collect();
        assert_eq!(rows, columns, "{name}");
    }
    let indexes: Vec<Vec<String>> = sql
        .lines()
        .filter_map(|l| l.strip_prefix("CREATE INDEX "))
        .map(|l| {
            let (name, on) = l.trim_end_matches(");").split_once(" ON ").unwrap();
            let (table, column) = on.split_once('(').unwrap();
            [name, table, column].map(str::to_owned).to_vec()
        })
        .collect();
    assert_eq!(table_below("\n### Indexes\n"), indexes);
}

/// Times and counts that the documented election protocol names are the defaults of the settings.
#[test]
fn the_elections_numbers_are_the_settings_defaults() {
    let configuration = files::read("docs/configuration.md");
    for row in table_below("\n### Time-outs and tries\n") {
        let (setting, value) = (&row[2], &row[1]);
        let line = configuration.lines().find(|l| l.starts_with(&format!("| `{setting}` |")));
        let default = line.and_then(|l| l.split('|').nth(3)).map(|c| c.trim().replace('`', ""));
        assert_eq!(default.as_ref(), Some(value), "{setting}");
    }
}
