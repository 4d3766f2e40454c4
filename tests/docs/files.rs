//! The repository's text files, as the checks read them.

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every file below these folders (or a file itself) whose name ends in one of `endings`, sorted.
pub(crate) fn below(places: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = places.iter().map(|p| root().join(p)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            // What a run installs beside the tests (`.venv…`, `node_modules`) is not ours.
            let entries = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap());
            let installed = |name: &str| name.starts_with(".venv") || name == "node_modules" || name == "target";
            let ours = entries.filter(|entry| !installed(&entry.file_name().to_string_lossy()));
            open.extend(ours.map(|entry| entry.path()));
        } else if endings.iter().any(|e| path.to_string_lossy().ends_with(e)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The path as a reader of the repository writes it.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
