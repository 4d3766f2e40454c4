//! A run's folder: `history.jsonl` and `run.json`, what the reports are made of again.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::RunDescription;
use crate::history::History;

pub(crate) const HISTORY: &str = "history.jsonl";
pub(crate) const RUN: &str = "run.json";
/// No run's description is longer.
const RUN_SIZE: u64 = 4 << 20;

/// Writes both files; the folder is made if it is not there.
pub(crate) fn save(dir: &Path, about: &RunDescription, history: &History) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut out = BufWriter::new(File::create(dir.join(HISTORY))?);
    history.write(&mut out)?;
    out.flush()?;
    fs::write(dir.join(RUN), serde_json::to_vec_pretty(about).map_err(io::Error::other)?)
}

/// The history of a folder, or a history file, and what is known of the run.
pub(crate) fn load(path: &Path) -> Result<(Option<RunDescription>, History), String> {
    let named = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let (about, file) =
        if path.is_dir() { (Some(path.join(RUN)), path.join(HISTORY)) } else { (None, path.to_owned()) };
    let about = about.filter(|run| run.exists()).map(|run| about_of(&run)).transpose()?;
    let history = File::open(&file).and_then(|open| History::read(BufReader::new(open)));
    Ok((about, history.map_err(|error| named(&file, error))?))
}

fn about_of(path: &Path) -> Result<RunDescription, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(RUN_SIZE).read_to_string(&mut text));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}
