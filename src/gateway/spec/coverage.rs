//! `docs/api-coverage.md`: every event and endpoint, each with the test named after it.

use std::fmt::Write;

use crate::gateway::http::rest::routes::ENDPOINTS;
use crate::gateway::protocol::events::{EventDescription, FROM_CLIENT, TO_CLIENT};

const HEAD: &str = "# What of the API is tested, and where

<!-- Made from the tables that route and describe the API: UPDATE_DOCS=1 cargo test --workspace --test gateway coverage -->

Every event and endpoint has a test named after it, in `tests/gateway/`. Events are tested over both transports, `/ws`
and Socket.IO. Every REST answer in any of these tests is held against `/openapi.json`: its status must be described,
and its body must fit; every event against `/asyncapi.json` in the same way.
";

/// What must be tested, and the file and name of the test.
pub struct CoverageRow {
    pub what: String,
    pub about: &'static str,
    pub file: &'static str,
    pub test: String,
}

pub fn events_from_clients() -> Vec<CoverageRow> {
    let row = |e: &EventDescription| row(e, "from_client");
    FROM_CLIENT.iter().map(row).collect()
}

pub fn events_to_clients() -> Vec<CoverageRow> {
    let row = |e: &EventDescription| row(e, "to_client");
    TO_CLIENT.iter().map(row).collect()
}

fn row(event: &EventDescription, file: &'static str) -> CoverageRow {
    CoverageRow { what: format!("`{}`", event.name), about: event.about, file, test: event.name.to_owned() }
}

pub fn endpoints(documented: bool) -> Vec<CoverageRow> {
    let row = |e: &crate::gateway::http::rest::routes::Endpoint| CoverageRow {
        what: format!("`{} {}`", e.method, e.path),
        about: e.about,
        file: "endpoints",
        test: e.id(),
    };
    ENDPOINTS.iter().filter(|e| e.documented == documented).map(row).collect()
}

/// The whole page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    for (title, rows) in [
        ("Events that clients send", events_from_clients()),
        ("Events that clients are sent", events_to_clients()),
        ("Documented endpoints", endpoints(true)),
        ("Endpoints beyond the document", endpoints(false)),
    ] {
        let _ = write!(out, "\n## {title}\n\n| | what it is | test |\n|---|---|---|\n");
        for row in rows {
            let _ = writeln!(out, "| {} | {} | `{}::{}` |", row.what, row.about, row.file, row.test);
        }
    }
    out
}
