//! What a folder of backups holds, by the names of its files.
//!
//! `tillsync-CLUSTER-TIME-ENTRY.backup` is everything up to an entry of the log, and
//! `tillsync-CLUSTER-TIME-FIRST-LAST.entries` what came after it. Times are those of what is in them, so names sort by it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::DateTime;

use crate::ids::UnixMs;
use crate::proto::Meta;

const BACKUP: &str = ".backup";
const ENTRIES: &str = ".entries";

/// A backup of everything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli) struct BackupName {
    /// With the cluster's name in it, as far as a file can bear that.
    pub prefix: String,
    time: String,
    /// The entry that it ends with.
    pub entry: u64,
}

/// Entries that came after one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli) struct SegmentName {
    pub prefix: String,
    time: String,
    pub first: u64,
    pub last: u64,
}

/// Two clusters of one name have epochs of their own.
fn prefix_of(meta: &Meta) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    format!("tillsync-{}-{:08x}-", meta.cluster_id.chars().map(plain).collect::<String>(), meta.epoch >> 32)
}

fn time_of(at: UnixMs) -> String {
    let at = i64::try_from(at.get()).ok().and_then(DateTime::from_timestamp_millis).unwrap_or_default();
    at.format("%Y%m%dT%H%M%SZ").to_string()
}

/// The last `N` parts between dashes, and what is before them.
fn parts<const N: usize>(name: &str) -> Option<(&str, [&str; N])> {
    let (mut rest, mut parts) = (name, [""; N]);
    for part in parts.iter_mut().rev() {
        (rest, *part) = rest.rsplit_once('-')?;
    }
    let time = parts.first()?;
    let is_time = time.len() == 16 && time.ends_with('Z') && rest.starts_with("tillsync-");
    is_time.then_some((rest, parts))
}

impl BackupName {
    pub(super) fn of(meta: &Meta, entry: u64) -> Self {
        Self { prefix: prefix_of(meta), time: time_of(UnixMs(meta.now_ms)), entry }
    }

    pub(in crate::cli) fn parse(name: &str) -> Option<Self> {
        let (prefix, [time, entry]) = parts(name.strip_suffix(BACKUP)?)?;
        Some(Self { prefix: format!("{prefix}-"), time: time.to_owned(), entry: entry.parse().ok()? })
    }

    pub(super) fn file(&self) -> String {
        format!("{}{}-{}{BACKUP}", self.prefix, self.time, self.entry)
    }
}

impl SegmentName {
    /// Of the cluster of a backup.
    pub(super) fn of(prefix: &str, at: UnixMs, first: u64, last: u64) -> Self {
        Self { prefix: prefix.to_owned(), time: time_of(at), first, last }
    }

    fn parse(name: &str) -> Option<Self> {
        let (prefix, [time, first, last]) = parts(name.strip_suffix(ENTRIES)?)?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        Some(Self { prefix: format!("{prefix}-"), time: time.to_owned(), first, last })
    }

    pub(in crate::cli) fn file(&self) -> String {
        format!("{}{}-{}-{}{ENTRIES}", self.prefix, self.time, self.first, self.last)
    }
}

/// The files of a folder.
#[derive(Debug, Default)]
pub(in crate::cli) struct BackupFolder {
    /// The oldest first.
    pub backups: Vec<BackupName>,
    pub segments: Vec<SegmentName>,
}

impl BackupFolder {
    pub(in crate::cli) fn read(dir: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if !entry.file_type()?.is_file() {
                continue;
            }
            let Some(name) = name.to_str() else { continue };
            found.backups.extend(BackupName::parse(name));
            found.segments.extend(SegmentName::parse(name));
        }
        found.backups.sort_unstable();
        found.segments.sort_unstable();
        Ok(found)
    }

    /// By the time of what is in it.
    pub(super) fn newest(&self) -> Option<&BackupName> {
        self.backups.iter().max_by_key(|backup| (&backup.time, backup.entry))
    }

    /// What goes on from an entry without a hole, in order.
    pub(in crate::cli) fn after(&self, prefix: &str, entry: u64) -> Vec<&SegmentName> {
        let (mut at, mut chain) = (entry, Vec::new());
        let ours = || self.segments.iter().filter(|segment| segment.prefix == prefix);
        while let Some(next) = ours().filter(|s| s.first == at + 1 && s.last >= s.first).max_by_key(|s| s.last) {
            at = next.last;
            chain.push(next);
        }
        chain
    }

    /// The first entry of what should go on from `end`, with or without other files between them, and does not.
    pub(in crate::cli) fn hole_after(&self, prefix: &str, end: u64) -> Option<u64> {
        let later = self.segments.iter().filter(|segment| segment.prefix == prefix && segment.first > end + 1);
        let first = later.map(|segment| segment.first).min()?;
        // Those that follow a later backup have nothing to do with this one.
        let of_another = |backup: &BackupName| backup.prefix == prefix && backup.entry > end && backup.entry < first;
        (!self.backups.iter().any(of_another)).then_some(first)
    }

    /// All but the newest `keep` backups of a cluster, and what no kept one goes on with. The one that was just written, or
    /// gone on from, is kept, whatever the others say of their time.
    pub(super) fn outdated(&self, written: &BackupName, keep: usize) -> Vec<PathBuf> {
        let prefix = &written.prefix;
        let others = || self.backups.iter().filter(|backup| backup.prefix == *prefix && *backup != written);
        let old = others().count().saturating_sub(keep.saturating_sub(1));
        let kept = others().skip(old).chain([written]);
        let first = kept.map(|backup| backup.entry).min().unwrap_or(0);
        let useless = self.segments.iter().filter(|segment| segment.prefix == *prefix && segment.last <= first);
        let old = others().take(old).map(BackupName::file);
        old.chain(useless.map(SegmentName::file)).map(PathBuf::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const BEGIN: UnixMs = UnixMs(1_795_341_600_007);

    fn backup(cluster: &str, epoch: u64, at: UnixMs, entry: u64) -> BackupName {
        let meta = Meta { cluster_id: cluster.into(), epoch: epoch << 32, now_ms: at.get(), ..Meta::default() };
        BackupName::of(&meta, entry)
    }

    #[test]
    fn names_say_what_is_in_the_files() {
        let backup = backup("Läden/Süd 1", 0xA7, BEGIN, 42);
        assert_eq!(backup.file(), "tillsync-L-den-S-d-1-000000a7-20261122T100000Z-42.backup");
        assert_eq!(BackupName::parse(&backup.file()), Some(backup.clone()));
        let segment = SegmentName::of(&backup.prefix, BEGIN, 43, 50);
        assert_eq!(segment.file(), "tillsync-L-den-S-d-1-000000a7-20261122T100000Z-43-50.entries");
        assert_eq!(SegmentName::parse(&segment.file()), Some(segment));
        for other in ["tillsync-shop-notes.backup", "tillsync-a-20261122T100000Z-1.backup.old", "store.db", ".backup"] {
            assert_eq!((BackupName::parse(other), SegmentName::parse(other)), (None, None), "{other}");
        }
    }

    #[test]
    fn the_newest_are_kept_with_what_follows_them_and_other_clusters_are_left_alone() {
        let mut folder = BackupFolder::default();
        for n in 1..=4 {
            folder.backups.push(backup("shop", 1, BEGIN.plus_ms(n * HOUR), n * 100));
            folder.segments.push(SegmentName::of(
                "tillsync-shop-00000001-",
                BEGIN.plus_ms(n * HOUR),
                n * 100 + 1,
                n * 100 + 60,
            ));
            folder.segments.push(SegmentName::of(
                "tillsync-shop-00000001-",
                BEGIN.plus_ms(n * HOUR),
                n * 100 + 61,
                n * 100 + 100,
            ));
        }
        folder.backups.push(backup("shop", 2, BEGIN, 7));
        folder.segments.push(SegmentName::of("tillsync-shop-00000002-", BEGIN, 8, 9));
        let newest = folder.backups[3].clone();
        let outdated = folder.outdated(&newest, 2);
        assert_eq!(outdated.len(), 2 + 4, "{outdated:?}");
        assert!(outdated.iter().all(|file| !file.to_str().unwrap().contains("-00000002-")), "{outdated:?}");
        // A clock was wrong once.
        folder.backups.push(backup("shop", 1, BEGIN.plus_ms(9_999 * HOUR), 3));
        let outdated = folder.outdated(&newest, 1);
        assert!(outdated.len() >= 4 && !outdated.contains(&PathBuf::from(newest.file())), "{outdated:?}");
        folder.backups.pop();
        let chain: Vec<u64> = folder.after("tillsync-shop-00000001-", 300).iter().map(|segment| segment.last).collect();
        assert_eq!(chain, [360, 400, 460, 500]);
        assert_eq!(folder.after("tillsync-shop-00000001-", 250), Vec::<&SegmentName>::new());
        assert_eq!(folder.hole_after("tillsync-shop-00000001-", 500), None);
        folder.segments.retain(|segment| segment.first != 461);
        assert_eq!(
            (folder.hole_after("tillsync-shop-00000001-", 460), folder.hole_after("tillsync-shop-00000001-", 40)),
            (None, None)
        );
        folder.segments.push(SegmentName::of("tillsync-shop-00000001-", BEGIN, 480, 490));
        assert_eq!(folder.hole_after("tillsync-shop-00000001-", 460), Some(480));
    }
}
