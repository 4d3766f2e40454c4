//! What came of a run.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checker::Verdict;
use crate::history::History;

/// What a run was, beside its history.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct About {
    pub scenario: String,
    pub explained: String,
    pub seed: u64,
    pub replay: String,
    pub nodes: Vec<u64>,
    pub started: String,
    pub duration_ms: u64,
    pub version: String,
    pub machine: String,
    pub gap_ms: u64,
    pub notes: Vec<String>,
}

/// Writes DIR/report.json; returns its path.
pub fn write(dir: &Path, about: &About, _: &History, verdict: &Verdict) -> io::Result<PathBuf> {
    let path = dir.join("report.json");
    let mut out = BufWriter::new(File::create(&path)?);
    serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "about": about, "verdict": verdict }))?;
    out.flush()?;
    Ok(path)
}
