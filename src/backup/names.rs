//! What a folder of backups holds, by the names of its files.
//!
//! `tillsync-CLUSTER-TIME-ENTRY.backup` is everything up to an entry of the log, and
//! `tillsync-CLUSTER-TIME-FIRST-LAST.entries` what came after it. Times are those of what is in them, so names sort by it.
//! `tillsync-CLUSTER-TIME-ENTRY-LAST.proved` says that the backup of ENTRY, and what follows it up to LAST, was restored at that
//! time.

use std::fs;
use std::io;
use std::path::Path;

use chrono::{DateTime, NaiveDateTime};

use crate::ids::UnixMs;
use crate::proto::Meta;

const BACKUP: &str = ".backup";
const ENTRIES: &str = ".entries";
const PROVED: &str = ".proved";
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// What is in a file may be so much later than its name says. Milliseconds.
const WITHIN: u64 = 999;

/// A backup of everything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackupName {
    /// With the cluster's name in it, as far as a file can bear that.
    pub prefix: String,
    time: String,
    /// The entry that it ends with.
    pub entry: u64,
}

/// Entries that came after one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub prefix: String,
    time: String,
    pub first: u64,
    pub last: u64,
}

/// That a backup could be restored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProofName {
    pub prefix: String,
    time: String,
    /// The entry that the backup ends with, and the last one that was restored.
    pub entry: u64,
    pub last: u64,
}

/// What the names of a cluster's files begin with, whatever its epoch.
pub(crate) fn prefix_of_name(cluster: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    format!("tillsync-{}-", cluster.chars().map(plain).collect::<String>())
}

/// Two clusters of one name have epochs of their own.
pub(crate) fn prefix_of(meta: &Meta) -> String {
    format!("{}{:08x}-", prefix_of_name(&meta.cluster_id), meta.epoch >> 32)
}

/// As it stands in a name: to the second.
pub(super) fn compact(at: UnixMs) -> String {
    let at = i64::try_from(at.get()).ok().and_then(DateTime::from_timestamp_millis).unwrap_or_default();
    at.format(TIME).to_string()
}

/// To the second, as it stands in a name.
fn moment_of(time: &str) -> UnixMs {
    let at = NaiveDateTime::parse_from_str(time, TIME).ok().map(|at| at.and_utc().timestamp_millis());
    UnixMs(at.and_then(|at| u64::try_from(at).ok()).unwrap_or(0))
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
    pub(crate) fn of(meta: &Meta, entry: u64) -> Self {
        Self { prefix: prefix_of(meta), time: compact(UnixMs(meta.now_ms)), entry }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (prefix, [time, entry]) = parts(name.strip_suffix(BACKUP)?)?;
        Some(Self { prefix: format!("{prefix}-"), time: time.to_owned(), entry: entry.parse().ok()? })
    }

    pub(crate) fn file(&self) -> String {
        format!("{}{}-{}{BACKUP}", self.prefix, self.time, self.entry)
    }

    /// The newest time of what is in it, to the second.
    pub(crate) fn moment(&self) -> UnixMs {
        moment_of(&self.time)
    }
}

impl SegmentName {
    /// Of the cluster of a backup.
    pub(crate) fn of(prefix: &str, at: UnixMs, first: u64, last: u64) -> Self {
        Self { prefix: prefix.to_owned(), time: compact(at), first, last }
    }

    fn parse(name: &str) -> Option<Self> {
        let (prefix, [time, first, last]) = parts(name.strip_suffix(ENTRIES)?)?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        Some(Self { prefix: format!("{prefix}-"), time: time.to_owned(), first, last })
    }

    pub(crate) fn file(&self) -> String {
        format!("{}{}-{}-{}{ENTRIES}", self.prefix, self.time, self.first, self.last)
    }

    /// The newest time of what is in it, to the second.
    pub(crate) fn moment(&self) -> UnixMs {
        moment_of(&self.time)
    }
}

impl ProofName {
    /// Of a backup, at a time by the clock of whoever restored it.
    pub(crate) fn of(backup: &BackupName, at: UnixMs, last: u64) -> Self {
        Self { prefix: backup.prefix.clone(), time: compact(at), entry: backup.entry, last }
    }

    fn parse(name: &str) -> Option<Self> {
        let (prefix, [time, entry, last]) = parts(name.strip_suffix(PROVED)?)?;
        let (entry, last) = (entry.parse().ok()?, last.parse().ok()?);
        Some(Self { prefix: format!("{prefix}-"), time: time.to_owned(), entry, last })
    }

    pub(crate) fn file(&self) -> String {
        format!("{}{}-{}-{}{PROVED}", self.prefix, self.time, self.entry, self.last)
    }

    /// When it was restored, to the second.
    pub(crate) fn moment(&self) -> UnixMs {
        moment_of(&self.time)
    }
}

/// The files of a folder, or of a bucket.
#[derive(Debug, Default)]
pub(crate) struct BackupFolder {
    /// The oldest first.
    pub backups: Vec<BackupName>,
    pub segments: Vec<SegmentName>,
    pub proofs: Vec<ProofName>,
}

impl BackupFolder {
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str() {
                // Another one may have removed it meanwhile.
                if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                    found.add(name);
                }
            }
        }
        found.in_order();
        Ok(found)
    }

    /// Takes up a file; other names than these are passed over.
    pub(crate) fn add(&mut self, name: &str) {
        // A server says what it likes, and a file of that name may be written here.
        if name.contains('/') {
            return;
        }
        self.backups.extend(BackupName::parse(name));
        self.segments.extend(SegmentName::parse(name));
        self.proofs.extend(ProofName::parse(name));
    }

    pub(crate) fn in_order(&mut self) {
        self.backups.sort_unstable();
        self.segments.sort_unstable();
        self.proofs.sort_unstable();
    }

    /// What is of one cluster, and of no later time.
    pub(crate) fn of(&self, prefix: &str, until: UnixMs) -> Self {
        let (backups, segments, proofs) = (self.backups.iter(), self.segments.iter(), self.proofs.iter());
        Self {
            backups: backups.filter(|one| one.prefix == prefix && one.moment() <= until).cloned().collect(),
            segments: segments.filter(|one| one.prefix == prefix).cloned().collect(),
            proofs: proofs.filter(|one| one.prefix == prefix && one.moment() <= until).cloned().collect(),
        }
    }

    /// The newest backup of a cluster by its name, whatever its epoch, that is of no later time and ends with no later entry.
    pub(crate) fn newest_of(&self, cluster: &str, until: UnixMs, entry: u64) -> Option<&BackupName> {
        let name = prefix_of_name(cluster);
        let is_ours = |prefix: &str| {
            let epoch = prefix.strip_prefix(&name).and_then(|rest| rest.strip_suffix('-'));
            epoch.is_some_and(|epoch| epoch.len() == 8 && epoch.bytes().all(|byte| byte.is_ascii_hexdigit()))
        };
        let ours = self
            .backups
            .iter()
            .filter(|one| is_ours(&one.prefix) && one.moment().plus_ms(WITHIN) <= until && one.entry <= entry);
        ours.max_by_key(|one| (&one.time, one.entry))
    }

    /// Of the history that was backed up last, the one that goes furthest: its time may have been ahead once.
    pub(crate) fn newest(&self) -> Option<&BackupName> {
        let last = self.backups.iter().max_by_key(|backup| (&backup.time, backup.entry))?;
        let same = self.backups.iter().filter(|backup| backup.prefix == last.prefix);
        same.max_by_key(|backup| (backup.entry, &backup.time))
    }

    /// What goes on from an entry without a hole, in order.
    pub(crate) fn after(&self, prefix: &str, entry: u64) -> Vec<&SegmentName> {
        let (mut at, mut chain) = (entry, Vec::new());
        let ours = || self.segments.iter().filter(|segment| segment.prefix == prefix);
        while let Some(next) = ours().filter(|s| s.first == at + 1 && s.last >= s.first).max_by_key(|s| s.last) {
            at = next.last;
            chain.push(next);
        }
        chain
    }

    /// The first entry of what should go on from `end`, with or without other files between them, and does not.
    pub(crate) fn hole_after(&self, prefix: &str, end: u64) -> Option<u64> {
        let later = self.segments.iter().filter(|segment| segment.prefix == prefix && segment.first > end + 1);
        let first = later.map(|segment| segment.first).min()?;
        // Those that follow a later backup have nothing to do with this one.
        let of_another = |backup: &BackupName| backup.prefix == prefix && backup.entry > end && backup.entry < first;
        (!self.backups.iter().any(of_another)).then_some(first)
    }

    /// All but the newest `keep` backups of a cluster, and what no kept one goes on with. The one that was just written, or
    /// gone on from, is kept, whatever the others say of their time; and the one that was proved last, until another is.
    pub(crate) fn outdated(&self, written: &BackupName, keep: usize) -> Vec<String> {
        let prefix = &written.prefix;
        let others = || self.backups.iter().filter(|backup| backup.prefix == *prefix && *backup != written);
        let old = others().count().saturating_sub(keep.saturating_sub(1));
        let proved = self.proofs.iter().filter(|proof| proof.prefix == *prefix);
        let proved = proved.max_by_key(|proof| (&proof.time, proof.entry)).map(|proof| proof.entry);
        let gone: Vec<&BackupName> = others().take(old).filter(|backup| Some(backup.entry) != proved).collect();
        let kept = others().filter(|backup| !gone.contains(backup)).chain([written]);
        let first = kept.map(|backup| backup.entry).min().unwrap_or(0);
        let useless = self.segments.iter().filter(|segment| segment.prefix == *prefix && segment.last <= first);
        // Proofs of what is there no more, and all but the newest of each.
        let proofs = || self.proofs.iter().filter(|proof| proof.prefix == *prefix);
        let is_old = |proof: &&ProofName| {
            !self.backups.iter().any(|one| one.prefix == *prefix && one.entry == proof.entry && !gone.contains(&one))
                || proofs().any(|other| other.entry == proof.entry && other.time > proof.time)
        };
        let files = gone.iter().map(|backup| backup.file()).chain(useless.map(SegmentName::file));
        files.chain(proofs().filter(is_old).map(ProofName::file)).collect()
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
    fn the_backup_that_was_proved_last_stays_until_another_one_is_and_the_newest_goes_furthest() {
        let mut folder = BackupFolder::default();
        let all: Vec<BackupName> = (1..=5).map(|n| backup("shop", 1, BEGIN.plus_ms(n * HOUR), n * 10)).collect();
        folder.backups.extend(all.iter().cloned());
        folder.proofs.push(ProofName::of(&all[0], BEGIN, 10));
        folder.in_order();
        let gone = |folder: &BackupFolder| folder.outdated(&all[4], 2);
        assert_eq!(gone(&folder), [all[1].file(), all[2].file()]);
        folder.proofs.push(ProofName::of(&all[3], BEGIN.plus_ms(5 * HOUR), 40));
        assert_eq!(gone(&folder)[..3], [all[0].file(), all[1].file(), all[2].file()]);
        // A clock was a month ahead once.
        folder.backups.push(backup("shop", 1, BEGIN.plus_ms(720 * HOUR), 35));
        folder.in_order();
        assert_eq!(folder.newest(), Some(&all[4]));
    }

    #[test]
    fn names_say_what_is_in_the_files() {
        let backup = backup("Läden/Süd 1", 0xA7, BEGIN, 42);
        assert_eq!(backup.file(), "tillsync-L-den-S-d-1-000000a7-20261122T100000Z-42.backup");
        assert_eq!(BackupName::parse(&backup.file()), Some(backup.clone()));
        let segment = SegmentName::of(&backup.prefix, BEGIN, 43, 50);
        assert_eq!(segment.file(), "tillsync-L-den-S-d-1-000000a7-20261122T100000Z-43-50.entries");
        assert_eq!(SegmentName::parse(&segment.file()), Some(segment));
        assert_eq!((backup.moment(), moment_of("soon")), (UnixMs(1_795_341_600_000), UnixMs(0)));
        let proof = ProofName::of(&backup, BEGIN.plus_ms(HOUR), 50);
        assert_eq!(proof.file(), "tillsync-L-den-S-d-1-000000a7-20261122T110000Z-42-50.proved");
        assert_eq!(ProofName::parse(&proof.file()), Some(proof));
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
        for (n, hour) in [(0, 1), (3, 4), (3, 5)] {
            folder.proofs.push(ProofName::of(&folder.backups[n], BEGIN.plus_ms(hour * HOUR), 500));
        }
        let newest = folder.backups[3].clone();
        let outdated = folder.outdated(&newest, 2);
        assert_eq!(outdated.len(), 2 + 4 + 2, "{outdated:?}");
        assert!(!outdated.contains(&folder.proofs[2].file()), "{outdated:?}");
        assert!(outdated.iter().all(|file| !file.contains("-00000002-")), "{outdated:?}");
        let found = |until, entry| folder.newest_of("shop", until, entry).map(|backup| backup.entry);
        assert_eq!(found(BEGIN.plus_ms(9 * HOUR), u64::MAX), Some(400));
        assert_eq!(
            (found(BEGIN.plus_ms(2 * HOUR + 1_000), u64::MAX), found(BEGIN.plus_ms(9 * HOUR), 199)),
            (Some(200), Some(100))
        );
        assert_eq!(folder.newest_of("sho", BEGIN.plus_ms(9 * HOUR), u64::MAX), None);
        let ours = folder.of("tillsync-shop-00000001-", BEGIN.plus_ms(3 * HOUR));
        assert_eq!((ours.backups.len(), ours.segments.len(), ours.proofs.len()), (3, 8, 1));
        let mut odd = BackupFolder::default();
        for name in
            ["tillsync-/../../etc/x-20261122T100000Z-1.backup", "tillsync-shop-abcdefg\u{e4}-20261122T100000Z-1.backup"]
        {
            odd.add(name);
        }
        assert_eq!((odd.backups.len(), odd.newest_of("shop", UnixMs(u64::MAX), u64::MAX)), (1, None));
        // A clock was wrong once.
        folder.backups.push(backup("shop", 1, BEGIN.plus_ms(9_999 * HOUR), 3));
        let outdated = folder.outdated(&newest, 1);
        assert!(outdated.len() >= 4 && !outdated.contains(&newest.file()), "{outdated:?}");
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
