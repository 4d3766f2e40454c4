//! `tillsync backup`: everything that a cluster keeps, in one file, taken while it goes on; or what came after the last one.
//! `tillsync backup verify` proves that a file can be restored.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use self::contents::{failed, moment, told};
use self::local::{LocalBackup, Wanted};
use self::part::{PartFile, remove_outdated};
use self::proof::prove;
use super::target::TargetArgs;
use super::{CliResult, CommandError};
use crate::backup::names::BackupName;
use crate::backup::store::BackupStore;
use crate::client::ClusterTarget;
use crate::model::time::iso;

pub(super) mod contents;
pub(super) mod local;
mod part;
mod proof;
mod scratch;
pub(super) mod step;

pub(super) use self::part::OTHER_HISTORY;

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// The folder that the backup is written to, which is made if it is not there; or s3://BUCKET/PREFIX
    #[arg(required = true)]
    to: Option<String>,
    /// Take only what came after the newest backup there: it can be restored up to any moment then
    #[arg(long)]
    incremental: bool,
    /// Keep this many of the cluster's backups there, and remove older ones
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    keep: Option<u64>,
    /// Take what one node has, without asking the others: also where most of them are lost
    #[arg(long)]
    stale: bool,
    /// Where what goes to a bucket is written first. Default: the folder for temporary files
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Subcommand, Debug)]
enum BackupCommand {
    /// Read a backup and what follows it, and restore it beside itself for a moment: exit code 1 if anything is wrong with it
    Verify(VerifyArgs),
    /// What a node runs by its schedule
    #[command(hide = true)]
    Step(step::StepArgs),
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// The backup; or the folder, or s3://BUCKET/PREFIX, whose newest one is meant
    backup: String,
    /// Where it is restored for a moment. Default: beside the backup; of one in a bucket, the folder for temporary files
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

pub(super) async fn execute(args: BackupArgs) -> CliResult {
    match args.command {
        Some(BackupCommand::Verify(verify)) => return verified(&verify).await,
        Some(BackupCommand::Step(step)) => return step::execute(step).await,
        None => {}
    }
    let Some(to) = &args.to else { return Err(CommandError::usage("no folder was given")) };
    let (store, target) = (BackupStore::open(to)?, args.target.resolve()?);
    if let BackupStore::Folder(dir) = &store {
        fs::create_dir_all(dir).map_err(failed(dir))?;
    }
    let scratch = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let part = PartFile::open(&store, &scratch)?;
    let written = if args.incremental {
        take_what_came_after(&store, part, args.stale, &target).await?
    } else {
        take_everything(&store, part, args.stale, &target).await?
    };
    let Some(keep) = args.keep else { return Ok(()) };
    for removed in remove_outdated(&store, &written, keep).await? {
        say!("removed {removed}");
    }
    Ok(())
}

async fn take_everything(
    store: &BackupStore,
    mut part: PartFile,
    stale: bool,
    target: &ClusterTarget,
) -> CliResult<BackupName> {
    let node = part.download("/system/backup?", stale, target).await?;
    let (name, contents) = part.store_whole(store).await?;
    let place = store.shown(&name.file());
    say!("{place}: {}", told(&contents));
    say!("taken from {node}; prove it with: tillsync backup verify {place}");
    Ok(name)
}

async fn take_what_came_after(
    store: &BackupStore,
    mut part: PartFile,
    stale: bool,
    target: &ClusterTarget,
) -> CliResult<BackupName> {
    let end = part.chain_end(store, &store.list().await?).await?;
    let node = part.download(&format!("/system/backup/entries?after={}&", end.entry), stale, target).await?;
    let Some((name, contents)) = part.store_entries(store, &end).await? else {
        say!("nothing came after entry {}", end.entry);
        return Ok(end.backup);
    };
    say!(
        "{}: {} entries up to {}, {:.1} MB, taken from {node}",
        store.shown(&name.file()),
        contents.entries,
        iso(contents.at),
        contents.bytes as f64 / 1e6
    );
    Ok(end.backup)
}

async fn verified(args: &VerifyArgs) -> CliResult {
    let not_tried = |error: CommandError| CommandError::usage(error.message);
    let backup = LocalBackup::open(&args.backup, Wanted::NEWEST, args.scratch.as_deref()).await.map_err(not_tried)?;
    let beside = backup.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let proved = prove(&backup, args.scratch.as_deref().unwrap_or(beside)).await?;
    say!("{}: {}", backup.shown, told(&proved.contents));
    say!("it can be restored, with what follows it in its folder: {}", moment(&proved.applied, &proved.meta));
    Ok(())
}
