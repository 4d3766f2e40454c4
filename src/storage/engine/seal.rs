//! A hash over the files of a folder that was closed in order: whatever is changed in them before the next open is seen.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::Xxh3;

use super::is_torn;

/// Bytes read at once.
const READ: usize = 1 << 20;
/// A close in order takes no longer for it. Without a seal, the next open finds damage by what is missing.
const LONGEST: Duration = Duration::from_secs(10);

/// Reads all of a folder.
pub(crate) fn of(dir: &Path) -> io::Result<u128> {
    hash(dir, None).map(Option::unwrap_or_default)
}

/// The same if it does not take long.
pub(crate) fn soon(dir: &Path) -> io::Result<Option<u128>> {
    hash(dir, Some(Instant::now() + LONGEST))
}

fn hash(dir: &Path, until: Option<Instant>) -> io::Result<Option<u128>> {
    let mut all = Xxh3::new();
    let mut buffer = vec![0; READ];
    for path in files(dir)? {
        let mut file = File::open(&path)?;
        let name = path.strip_prefix(dir).unwrap_or(&path).as_os_str().as_encoded_bytes();
        all.update(&name.len().to_le_bytes());
        all.update(name);
        let mut len = 0u64;
        loop {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            all.update(&buffer[..read]);
            len += read as u64;
            if until.is_some_and(|until| Instant::now() > until) {
                return Ok(None);
            }
        }
        all.update(&len.to_le_bytes());
    }
    Ok(Some(all.digest128()))
}

/// All files below, in one order. A folder that is not there has none.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => out.extend(files(&entry.path())?),
            // What the engine did not finish is removed before it is opened.
            false if is_torn(&entry.file_name()) => {}
            false => out.push(entry.path()),
        }
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_another_hash() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("engine");
        assert_eq!(of(&dir).unwrap(), of(&dir.join("none")).unwrap());
        fs::create_dir_all(dir.join("b")).unwrap();
        let mut seen = Vec::new();
        let mut look = || {
            let hash = of(&dir).unwrap();
            assert_eq!(soon(&dir).unwrap(), Some(hash));
            assert!(!seen.contains(&hash));
            seen.push(hash);
        };
        look();
        fs::write(dir.join("x"), b"12").unwrap();
        look();
        fs::write(dir.join("x"), b"1").unwrap();
        fs::write(dir.join("y"), b"2").unwrap();
        look();
        fs::write(dir.join("y"), b"").unwrap();
        look();
        fs::rename(dir.join("y"), dir.join("b/y")).unwrap();
        look();
    }
}
