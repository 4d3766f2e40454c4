//! What a run came to, for people and for programs: `report.html`, one page that needs nothing else, and `report.json`.
//!
//! - [`figures`], [`series`], [`evidence`]: what is told, made from the history and the verdict
//! - [`words`]: how it is said
//! - [`chart`], [`page`], [`logs`]: the page
//! - [`folder`], [`command`]: a run's folder on disk; making its reports again

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checker::Verdict;
use crate::history::History;

mod chart;
pub(crate) mod command;
mod evidence;
pub(crate) mod figures;
pub(crate) mod folder;
mod json;
mod lanes;
mod logs;
mod page;
mod series;
mod tables;
#[cfg(test)]
mod tests;
pub(crate) mod words;

/// What a run was, beside its history.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunDescription {
    /// Its name.
    pub scenario: String,
    /// One or two sentences for people.
    pub explained: String,
    pub seed: u64,
    /// The command that repeats it.
    pub replay: String,
    pub nodes: Vec<u64>,
    /// RFC 3339, UTC.
    pub started: String,
    pub duration_ms: u64,
    /// Of Tillsync.
    pub version: String,
    /// What was used: loopback and proxies, namespaces, …
    pub machine: String,
    /// The bound on the time without a write.
    pub gap_ms: u64,
    /// E.g. what could not be injected here.
    pub notes: Vec<String>,
}

/// Everything that the page and the JSON file tell.
pub(crate) struct ReportData<'a> {
    about: &'a RunDescription,
    history: &'a History,
    verdict: &'a Verdict,
    figures: figures::Figures,
    /// The end of the picture, microseconds.
    until_us: u64,
}

impl<'a> ReportData<'a> {
    fn of(about: &'a RunDescription, history: &'a History, verdict: &'a Verdict) -> Self {
        let figures = figures::Figures::of(about, history, verdict);
        Self { about, history, verdict, figures, until_us: series::end_us(about, history) }
    }
}

/// Writes DIR/report.json and DIR/report.html; returns the path of the page.
pub(crate) fn write(dir: &Path, about: &RunDescription, history: &History, verdict: &Verdict) -> io::Result<PathBuf> {
    let told = ReportData::of(about, history, verdict);
    let json = serde_json::to_vec_pretty(&json::of(&told)).map_err(io::Error::other)?;
    fs::write(dir.join("report.json"), json)?;
    let page = dir.join("report.html");
    fs::write(&page, page::of(&told, &logs::tails(dir)))?;
    Ok(page)
}
