//! The ends of the nodes' logs.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Of each log, and of how many.
const TAIL: u64 = 64 << 10;
const LOGS: usize = 9;

/// A node and what it said last.
pub(super) struct LogTail {
    pub node: u64,
    pub text: String,
    /// There was more.
    pub cut: bool,
}

/// Of every `node-N.log` in the folder.
pub(super) fn tails(dir: &Path) -> Vec<LogTail> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let number = |name: &str| name.strip_prefix("node-")?.strip_suffix(".log")?.parse::<u64>().ok();
    let mut nodes: Vec<u64> =
        entries.filter_map(|entry| number(&entry.ok()?.file_name().to_string_lossy())).take(1_000).collect();
    nodes.sort_unstable();
    let read =
        |node: u64| tail(&dir.join(format!("node-{node}.log"))).ok().map(|(text, cut)| LogTail { node, text, cut });
    nodes.into_iter().take(LOGS).filter_map(read).collect()
}

fn tail(path: &Path) -> io::Result<(String, bool)> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if from == 0 {
        return Ok((text, false));
    }
    // The first line is the end of one.
    let whole = text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned());
    Ok((whole, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_each_log_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let long: String = (0..20_000).map(|line| format!("line {line}\n")).collect();
        fs::write(folder.path().join("node-2.log"), "short").unwrap();
        fs::write(folder.path().join("node-1.log"), long).unwrap();
        fs::write(folder.path().join("node-x.log"), "not ours").unwrap();
        let tails = tails(folder.path());
        assert_eq!(tails.iter().map(|tail| (tail.node, tail.cut)).collect::<Vec<_>>(), [(1, true), (2, false)]);
        assert!(tails[0].text.starts_with("line ") && tails[0].text.ends_with("line 19999\n"));
        assert!(tails[0].text.len() as u64 <= TAIL);
        assert_eq!(tails[1].text, "short");
    }
}
