//! The page of all error codes, `docs/errors.md`, checked against the table in code.

use super::{Code, Error, Retry, TABLE};

const PAGE: &str = include_str!("../../../docs/errors.md");

#[test]
fn the_page_has_every_code_as_the_table_in_code_has_it() {
    let rows: Vec<Vec<&str>> = PAGE
        .lines()
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[0].parse::<u32>().is_ok())
        .collect();
    assert_eq!(rows.len(), TABLE.len(), "one row a code");
    for (cells, row) in rows.iter().zip(TABLE) {
        let (code, http) = (row.code.to_string(), row.http.to_string());
        assert_eq!(cells[..4], [code.as_str(), row.title, http.as_str(), row.retry.name()]);
        assert_eq!(cells.len(), 6, "what {code} means and what to do: {cells:?}");
        assert!(cells[4].ends_with('.') && cells[5].ends_with('.'), "{code}: whole sentences");
    }
}

#[test]
fn the_codes_are_the_documents() {
    let numbers: Vec<u32> = TABLE.iter().map(|r| r.code.number()).collect();
    let documented: Vec<u32> =
        (1001..=1005).chain(2001..=2005).chain(3001..=3004).chain(4001..=4004).chain(5001..=5004).collect();
    assert_eq!(numbers, documented);
    for number in documented {
        assert_eq!(super::Code::of(number).map(super::Code::number), Some(number));
    }
}

#[test]
fn one_answer_differs_from_the_table_and_the_page_says_so() {
    let differs: Vec<Code> =
        TABLE.iter().filter(|r| Error::new(r.code, "").over_socket().retry != r.retry).map(|r| r.code).collect();
    assert_eq!(differs, [Code::NotRegistered]);
    assert_eq!(Error::new(Code::NotRegistered, "").over_socket().retry, Retry::Safe);
    assert!(PAGE.contains("3004 to an event of a socket is `safe`"));
}
