//! A CSV file as records: checked as a whole first, then read line by line.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use csv::{ByteRecord, Position, Reader, ReaderBuilder};

use crate::cli::{CliResult, CommandError};
use crate::limits;

/// Digits beyond this do not survive a JSON number in every client.
const EXACT_DIGITS: usize = 15;

pub(crate) struct CsvFile {
    path: PathBuf,
    /// The names of the columns, as JSON.
    columns: Vec<String>,
    names: Vec<String>,
    key: usize,
}

/// One line as a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CsvLine {
    /// Where it stands in the file, from 1.
    pub number: u64,
    pub record_id: i64,
    /// A JSON object of all columns.
    pub data: String,
}

impl CsvFile {
    /// Reads the header.
    pub(crate) fn open(path: &Path, key: &str) -> CliResult<Self> {
        let mut reader = reader(path)?;
        let header = reader.byte_headers().map_err(|e| failed(path, &e))?.clone();
        let mut names: Vec<String> = Vec::with_capacity(header.len());
        for (i, field) in header.iter().enumerate() {
            // Spreadsheets put a byte order mark before the first name.
            let field = if i == 0 { field.strip_prefix(b"\xef\xbb\xbf").unwrap_or(field) } else { field };
            let name = std::str::from_utf8(field).map_err(|_| at(path, 1, &format!("column {}: not UTF-8", i + 1)))?;
            if name.trim().is_empty() {
                return Err(at(path, 1, &format!("column {} has no name", i + 1)));
            }
            if names.iter().any(|n| n == name) {
                return Err(at(path, 1, &format!("column \"{name}\" is there twice")));
            }
            names.push(name.to_owned());
        }
        let key = names.iter().position(|n| n == key).ok_or_else(|| {
            let has = names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
            CommandError::usage(format!("{}: there is no column \"{key}\"; it has {has}", path.display()))
        })?;
        let columns = names.iter().map(|n| json_text(n)).collect();
        Ok(Self { path: path.to_owned(), columns, names, key })
    }

    /// Reads every line once; how many there are.
    pub(crate) fn check(&self) -> CliResult<u64> {
        let mut seen = HashMap::new();
        let mut total = 0;
        for line in self.lines()? {
            let line = line?;
            if let Some(first) = seen.insert(line.record_id, line.number) {
                let why =
                    format!("column \"{}\": {} stands in line {first} already", self.names[self.key], line.record_id);
                return Err(at(&self.path, line.number, &why));
            }
            if line.data.len() > limits::RECORD_DATA {
                let why =
                    format!("the record has {} bytes, at most {} are allowed", line.data.len(), limits::RECORD_DATA);
                return Err(at(&self.path, line.number, &why));
            }
            total += 1;
        }
        if total == 0 {
            return Err(CommandError::usage(format!("{}: there are no lines under the header", self.path.display())));
        }
        Ok(total)
    }

    pub(crate) fn lines(&self) -> CliResult<impl Iterator<Item = CliResult<CsvLine>>> {
        let mut reader = reader(&self.path)?;
        let mut record = ByteRecord::new();
        Ok(std::iter::from_fn(move || match reader.read_byte_record(&mut record) {
            Ok(true) => Some(self.line(&record)),
            Ok(false) => None,
            Err(e) => Some(Err(failed(&self.path, &e))),
        }))
    }

    fn line(&self, record: &ByteRecord) -> CliResult<CsvLine> {
        let number = record.position().map_or(0, Position::line);
        let mut data = String::with_capacity(256);
        let mut record_id = None;
        for (i, field) in record.iter().enumerate() {
            let wrong = |why: &str| at(&self.path, number, &format!("column \"{}\": {why}", self.names[i]));
            let text = std::str::from_utf8(field).map_err(|_| wrong("not UTF-8"))?;
            if i == self.key {
                let id = text.parse::<i64>().map_err(|_| wrong(&format!("'{text}' is not a whole number")))?;
                record_id = Some(id);
            }
            data.push(if i == 0 { '{' } else { ',' });
            data.push_str(&self.columns[i]);
            data.push(':');
            push_value(&mut data, text);
        }
        data.push('}');
        let record_id = record_id.ok_or_else(|| at(&self.path, number, "the line has no key"))?;
        Ok(CsvLine { number, record_id, data })
    }
}

fn reader(path: &Path) -> CliResult<Reader<File>> {
    ReaderBuilder::new().from_path(path).map_err(|e| failed(path, &e))
}

/// A cell as JSON: a number stays one, an empty cell is null, everything else is a text.
fn push_value(data: &mut String, text: &str) {
    if text.is_empty() {
        data.push_str("null");
    } else if is_number(text) {
        data.push_str(text);
    } else {
        data.push_str(&json_text(text));
    }
}

/// A plain decimal number as JSON writes it. `007` and `1e5` are not: they may well be article codes.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    all_digits(whole)
        && fraction.is_none_or(all_digits)
        && (whole == "0" || !whole.starts_with('0'))
        && (fraction.is_some() || whole.len() <= EXACT_DIGITS)
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn at(path: &Path, line: u64, why: &str) -> CommandError {
    CommandError::usage(format!("{}, line {line}: {why}", path.display()))
}

fn failed(path: &Path, e: &csv::Error) -> CommandError {
    match e.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, Position::line);
            at(path, line, &format!("{len} columns, the header has {expected_len}"))
        }
        csv::ErrorKind::Io(e) => CommandError::usage(format!("{}: {e}", path.display())),
        _ => CommandError::usage(format!("{}: {e}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8], key: &str) -> CliResult<Vec<CsvLine>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders.csv");
        std::fs::write(&path, bytes).unwrap();
        let file = CsvFile::open(&path, key)?;
        file.check()?;
        file.lines()?.collect()
    }

    #[test]
    fn lines_become_objects_and_numbers_stay_numbers() {
        let text = b"\xef\xbb\xbfid,\"Na\"\"me\",price,code,zip\n7,\"O'Neil, Caf\xc3\xa9\",-1.50,1e5,007\n-8,,0,1234567890123456,\"a\nb\"\n";
        let lines = file(text, "id").unwrap();
        assert_eq!(lines[0].record_id, 7);
        assert_eq!(lines[0].data, r#"{"id":7,"Na\"me":"O'Neil, Café","price":-1.50,"code":"1e5","zip":"007"}"#);
        assert_eq!(lines[1].data, r#"{"id":-8,"Na\"me":null,"price":0,"code":"1234567890123456","zip":"a\nb"}"#);
        assert_eq!((lines[0].number, lines[1].number), (2, 3));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_column() {
        for (bytes, says) in [
            (&b"no,b\n1,2\n"[..], "there is no column \"id\"; it has \"no\", \"b\""),
            (b"id,b\n1,2\n3,4\n1,5\n", "line 4: column \"id\": 1 stands in line 2 already"),
            (b"id,b\n1,2\n2,\xff\n", "line 3: column \"b\": not UTF-8"),
            (b"id,\xff\n1,2\n", "line 1: column 2: not UTF-8"),
            (b"id,b\n1.5,2\n", "line 2: column \"id\": '1.5' is not a whole number"),
            (b"id,b\n,2\n", "line 2: column \"id\": '' is not a whole number"),
            (b"id,b\n1,2\n2\n", "line 3: 1 columns, the header has 2"),
            (b"id,id\n1,2\n", "column \"id\" is there twice"),
            (b"id,\n1,2\n", "column 2 has no name"),
            (b"id,b\n", "no lines under the header"),
            (b"", "there is no column \"id\""),
        ] {
            let failure = file(bytes, "id").unwrap_err();
            assert!(failure.message.contains(says) && failure.message.contains("orders.csv"), "{failure}");
            assert!(!failure.message.contains('\n'));
        }
        let missing = CsvFile::open(Path::new("/no/such/file.csv"), "id").err().unwrap();
        assert!(missing.message.starts_with("/no/such/file.csv: "), "{missing}");
    }
}
