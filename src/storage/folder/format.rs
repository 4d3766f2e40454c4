//! Whose data folder it is, and in which format: a small synced file beside the engine's. Its last line is a sum of those
//! before, so that a damaged one is not taken for another node's; versions before wrote none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::side_mark;
use crate::storage::durability::disk_error::advice;
use crate::storage::durability::sync_dir;

/// The newest format that this version reads.
const FORMAT: u32 = 3;
/// What a new folder has.
const WRITTEN: u32 = 2;
/// A folder of a cluster whose version programs of before there were versions do not know: they read up to 2.
const VERSIONED: u32 = 3;
/// From this one on a folder has a mark beside its engine (`side_mark`).
const MARKED: u32 = 2;
const FILE: &str = "identity";
/// Why the folder is not opened any more, if so.
const REFUSED: &str = "refused";
/// Begins the line with the sum of all lines before.
pub(in crate::storage) const SUM: &str = "sum ";

/// Whose data it is. An empty cluster id is "not known yet": it is filled in by the first open that knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderIdentity {
    pub node_id: u64,
    pub cluster_id: String,
}

/// Why a data folder was not opened; each one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data folder {dir} belongs to node {found}, this is node {expected}")]
    OtherNode { dir: PathBuf, found: u64, expected: u64 },
    #[error("data folder {dir} belongs to cluster {found}, this node is configured for {expected}")]
    OtherCluster { dir: PathBuf, found: String, expected: String },
    #[error("data folder {dir} has format {found}, this version reads up to {FORMAT}")]
    NewerFormat { dir: PathBuf, found: u32 },
    #[error("data folder {dir} is a file: `data_dir` must name a folder, or one that can be made")]
    File { dir: PathBuf },
    #[error("data folder {dir} is there already, and a restore makes a new one")]
    NotEmpty { dir: PathBuf },
    #[error(
        "data folder {dir} is being restored, or a restore was cut off: let that one end, or run tillsync restore again"
    )]
    Restoring { dir: PathBuf },
    #[error("data folder {dir} is in use by another process")]
    Locked { dir: PathBuf },
    #[error("{dir} holds an engine's files but does not say whose they are")]
    NotOurs { dir: PathBuf },
    #[error("flush does not reach the disk in this build, so nothing it acknowledges would be safe")]
    FlushNotDurable,
    #[error("data folder {dir} cannot be used: {error}{}", advice(error))]
    Io { dir: PathBuf, error: io::Error },
    #[error("data folder {dir} is kept for inspection and is not opened again: {why}")]
    Refused { dir: PathBuf, why: String },
    #[error("data folder {dir} is damaged: {what}; {WAY}")]
    Corrupt { dir: PathBuf, what: String },
    #[error("data folder {dir} has lost what the node wrote and acknowledged: {what}; {WAY}")]
    Lost { dir: PathBuf, what: String },
}

/// What an operator does with a folder that cannot be trusted.
pub(crate) const WAY: &str = "the node does not serve from it: keep the folder, and let the machine join again under a new number \
                       with an empty one (tillsync cluster remove, then cluster add); a node that is alone begins anew \
                       with its backup (tillsync restore)";

impl OpenError {
    /// The operator gave the wrong folder or build (5004), rather than the data or disk being bad (5001).
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Corrupt { .. } | Self::Lost { .. } | Self::Refused { .. })
    }

    /// A file that holds something else than what was written, or ends too soon, is damage.
    pub(in crate::storage) fn io(dir: &Path) -> impl Fn(io::Error) -> Self {
        let dir = dir.to_path_buf();
        move |error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::corrupt(&dir, error),
            _ => Self::Io { dir: dir.clone(), error },
        }
    }

    pub(in crate::storage) fn corrupt(dir: &Path, what: impl std::fmt::Display) -> Self {
        // One sentence: what the engine says may go over several lines.
        let what = what.to_string().lines().collect::<Vec<_>>().join(" ");
        Self::Corrupt { dir: dir.to_path_buf(), what }
    }

    pub(in crate::storage) fn lost(dir: &Path, what: impl Into<String>) -> Self {
        Self::Lost { dir: dir.to_path_buf(), what: what.into() }
    }
}

/// How far the folder has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FolderStage {
    /// The engine was never opened to the end: nothing in it was ever acknowledged.
    Creating,
    Ready,
}

/// What the folder says of itself.
#[derive(Clone, Debug)]
pub(crate) struct FolderFound {
    pub stage: FolderStage,
    pub identity: FolderIdentity,
    /// It has a mark beside its engine, or should have one.
    pub marked: bool,
}

/// Whether it is a node's data folder at all.
pub(crate) fn is_there(dir: &Path) -> bool {
    dir.join(FILE).is_file()
}

/// Checks the folder against `identity`, and writes the file if there is none. Gives what the folder now says.
pub(crate) fn check(dir: &Path, engine_dir: &Path, identity: &FolderIdentity) -> Result<FolderFound, OpenError> {
    let io = OpenError::io(dir);
    if let Some(why) = refused(dir).map_err(&io)? {
        return Err(OpenError::Refused { dir: dir.to_path_buf(), why });
    }
    let text = match fs::read_to_string(dir.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if side_mark::is_there(dir) {
                return Err(OpenError::corrupt(dir, "its identity file is missing"));
            }
            if engine_dir.exists() {
                return Err(OpenError::NotOurs { dir: dir.to_path_buf() });
            }
            write(dir, identity, FolderStage::Creating, WRITTEN).map_err(io)?;
            return Ok(FolderFound { stage: FolderStage::Creating, identity: identity.clone(), marked: false });
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(OpenError::corrupt(dir, "its identity file is not text"));
        }
        Err(error) => return Err(io(error)),
    };
    let (format, found, stage) =
        parse(&text).ok_or_else(|| OpenError::corrupt(dir, "its identity file cannot be read"))?;
    if format > FORMAT {
        return Err(OpenError::NewerFormat { dir: dir.to_path_buf(), found: format });
    }
    if found.node_id != identity.node_id {
        let (found, expected) = (found.node_id, identity.node_id);
        return Err(OpenError::OtherNode { dir: dir.to_path_buf(), found, expected });
    }
    if !found.cluster_id.is_empty() && !identity.cluster_id.is_empty() && found.cluster_id != identity.cluster_id {
        let (found, expected) = (found.cluster_id, identity.cluster_id.clone());
        return Err(OpenError::OtherCluster { dir: dir.to_path_buf(), found, expected });
    }
    let marked = format >= MARKED;
    if found.cluster_id.is_empty() && !identity.cluster_id.is_empty() {
        write(dir, identity, stage, format).map_err(io)?;
        return Ok(FolderFound { stage, identity: identity.clone(), marked });
    }
    Ok(FolderFound { stage, identity: found, marked })
}

/// From now on the folder is not opened any more: its data cannot be trusted. Nothing in it is changed or removed.
pub(crate) fn refuse(dir: &Path, why: &str) -> io::Result<()> {
    let mut file = File::create(dir.join(REFUSED))?;
    writeln!(file, "{}", why.lines().collect::<Vec<_>>().join(" "))?;
    file.sync_all()?;
    sync_dir(dir)
}

/// From now on programs of before there were cluster versions do not open the folder. Durable when it returns.
pub(crate) fn keep_older_out(dir: &Path) -> io::Result<()> {
    let text = fs::read_to_string(dir.join(FILE))?;
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "the folder's identity file cannot be read");
    let (format, identity, stage) = parse(&text).ok_or_else(unreadable)?;
    if format >= VERSIONED { Ok(()) } else { write(dir, &identity, stage, VERSIONED) }
}

fn refused(dir: &Path) -> io::Result<Option<String>> {
    match fs::read(dir.join(REFUSED)) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The engine is open and synced, and has its mark: from now on its files are never thrown away.
pub(crate) fn mark_ready(dir: &Path, identity: &FolderIdentity) -> Result<(), OpenError> {
    write(dir, identity, FolderStage::Ready, WRITTEN).map_err(OpenError::io(dir))
}

fn write(dir: &Path, identity: &FolderIdentity, stage: FolderStage, format: u32) -> io::Result<()> {
    let state = if stage == FolderStage::Ready { "ready" } else { "creating" };
    let (node, cluster) = (identity.node_id, &identity.cluster_id);
    let mut text = format!("tillsync data folder\nformat {format}\nnode {node}\nstate {state}\ncluster {cluster}\n");
    let sum = xxh3_64(text.as_bytes());
    text += &format!("{SUM}{sum:016x}\n");
    let temporary = dir.join("identity.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FILE))?;
    sync_dir(dir)
}

pub(in crate::storage) fn parse(text: &str) -> Option<(u32, FolderIdentity, FolderStage)> {
    if let Some((before, sum)) = text.rsplit_once(SUM).filter(|(_, sum)| sum.trim_end().len() == 16) {
        let sum = u64::from_str_radix(sum.trim_end(), 16).ok()?;
        (sum == xxh3_64(before.as_bytes())).then_some(())?;
    }
    let mut lines = text.lines();
    (lines.next()? == "tillsync data folder").then_some(())?;
    let format: u32 = lines.next()?.strip_prefix("format ")?.parse().ok()?;
    if format > FORMAT {
        // What a newer format says behind this is not ours to read.
        return Some((format, FolderIdentity { node_id: 0, cluster_id: String::new() }, FolderStage::Ready));
    }
    let node_id = lines.next()?.strip_prefix("node ")?.parse().ok()?;
    let stage = match lines.next()?.strip_prefix("state ")? {
        "ready" => FolderStage::Ready,
        "creating" => FolderStage::Creating,
        _ => return None,
    };
    let cluster_id = lines.next()?.strip_prefix("cluster ").or(Some(""))?.to_owned();
    Some((format, FolderIdentity { node_id, cluster_id }, stage))
}
