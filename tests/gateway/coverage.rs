//! Every event and endpoint has a test named after it, and the page that says so is up to date.

use std::collections::HashSet;
use std::fs;

use tillsync::gateway::spec::coverage;

/// The tests of a file of this folder.
fn tests_of(file: &str) -> HashSet<String> {
    let path = format!("{}/tests/gateway/{file}.rs", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let tests = text.split("#[tokio::test").skip(1);
    tests.filter_map(|t| Some(t.split_once("async fn ")?.1.split_once('(')?.0.to_owned())).collect()
}

#[test]
fn every_event_and_endpoint_has_its_test() {
    let (from, to) = (coverage::events_from_clients(), coverage::events_to_clients());
    let endpoints = [true, false].into_iter().flat_map(coverage::endpoints).collect();
    for rows in [from, to, endpoints] {
        let there = tests_of(rows[0].file);
        let missing: Vec<_> = rows.iter().filter(|r| !there.contains(&r.test)).map(|r| &r.test).collect();
        assert!(missing.is_empty(), "tests/gateway/{}.rs has no tests for {missing:?}", rows[0].file);
    }
}

#[test]
fn the_page_is_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api-coverage.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, coverage::page()).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), coverage::page(), "UPDATE_DOCS=1 writes it anew");
}

/// The documented names, as docs/api.md lists them: none may go.
#[test]
fn the_document_is_covered() {
    let names = |rows: Vec<coverage::CoverageRow>| rows.into_iter().map(|r| r.what).collect::<Vec<_>>();
    let (from, to) = (names(coverage::events_from_clients()), names(coverage::events_to_clients()));
    for event in "device_online device_offline device_shutdown master_election sync_request sync_complete data_update \
                  data_request queue_status critical_event heartbeat"
        .split_whitespace()
    {
        assert!(from.contains(&format!("`{event}`")), "{event}");
    }
    for event in "device_online_ack device_offline_ack master_elected role_change role_change_ack sync_response \
                  sync_complete_ack sync_conflict sync_conflict_resolved sync_error sync_error_ack data_update \
                  data_response queue_status_response critical_event registered acknowledged heartbeat_ack error"
        .split_whitespace()
    {
        assert!(to.contains(&format!("`{event}`")), "{event}");
    }
    let endpoints = [
        "POST /device/register",
        "GET /device/roles",
        "GET /device/roles/{device_id}",
        "PUT /device/roles/{device_id}",
        "GET /sync/state/{device_id}",
        "PUT /sync/state/{device_id}",
        "GET /sync/master-election-logs",
        "GET /sync/audit-logs",
        "GET /system/health",
        "GET /system/network",
    ];
    assert_eq!(names(coverage::endpoints(true)), endpoints.map(|e| format!("`{e}`")));
}
