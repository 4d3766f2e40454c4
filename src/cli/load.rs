//! `tillsync load`: the lines of a CSV file as records. Running it again sends only what is missing.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::waiting::Waiting;
use super::{CliResult, CommandError};
use crate::cli::target::TargetArgs;
use crate::client::ClusterTarget;
use crate::client::rest::{FeedPage, RestClient};
use crate::limits;
use crate::token::claims_unverified;

pub(crate) mod csv_file;
mod history;
mod sender;

use csv_file::CsvFile;
use history::{LoadHistory, SeenLine};
use sender::{OutgoingLine, Sender};

#[derive(clap::Args, Debug)]
pub(super) struct LoadArgs {
    /// A CSV file in UTF-8 with a header
    file: PathBuf,
    /// The table that the lines go to
    #[arg(long)]
    table: String,
    /// The column that holds the record's id, a whole number
    #[arg(long)]
    key: String,
    /// The device that writes. Default: the token's
    #[arg(long)]
    device: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) async fn execute(args: LoadArgs) -> CliResult {
    if args.table.is_empty() || args.table.len() > limits::TABLE_NAME {
        return Err(CommandError::usage(format!("--table: a table name has 1 to {} bytes", limits::TABLE_NAME)));
    }
    // All of the file is checked before anything is sent.
    let file = CsvFile::open(&args.file, &args.key)?;
    let total = file.check()?;
    let target = args.target.resolve()?;
    let device = match &args.device {
        Some(device) => device.clone(),
        None => claims_unverified(&target.token)?.sub,
    };
    let history = history(&target, &args.table).await?;
    let begun = Instant::now();
    let bar = bar(total);
    let (mut sent, mut there) = (0u64, 0u64);
    let mut sender = Sender::new(&target, &device, &args.table, &bar);
    for line in file.lines()? {
        let line = line?;
        let operation = match history.look(line.record_id, &line.data) {
            SeenLine::Same => {
                there += 1;
                bar.inc(1);
                continue;
            }
            SeenLine::Absent => "insert",
            SeenLine::Other => "update",
        };
        sent += 1;
        sender
            .push(OutgoingLine { number: line.number, record_id: line.record_id, operation, data: line.data })
            .await?;
    }
    sender.finish().await?;
    bar.finish_and_clear();
    say!("{}", summary(sent, there, &args, begun.elapsed()));
    Ok(())
}

/// What the table has seen: page after page, from whichever node answers.
async fn history(target: &ClusterTarget, table: &str) -> CliResult<LoadHistory> {
    let rest = RestClient::new(&target.token)?;
    let mut waiting = Waiting::default();
    let (mut history, mut cursor) = (LoadHistory::default(), None::<String>);
    let mut turn = 0;
    loop {
        let node = &target.nodes[turn % target.nodes.len()];
        match waiting.ask(node, rest.changes(node, cursor.as_deref(), &[table])).await {
            Some(page) => {
                let FeedPage { changes, cursor: next, has_more } = page?;
                changes.iter().for_each(|change| history.add(change));
                if !has_more {
                    return Ok(history);
                }
                if cursor.as_ref() == Some(&next) {
                    return Err(CommandError::new(format!("{node}: the change feed does not go on")));
                }
                cursor = Some(next);
            }
            None => {
                turn += 1;
                if turn.is_multiple_of(target.nodes.len()) {
                    waiting.again().await?;
                }
            }
        }
    }
}

fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} lines  {per_sec}  {eta} left  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn summary(sent: u64, there: u64, args: &LoadArgs, took: Duration) -> String {
    let file = args.file.display();
    if sent == 0 {
        return format!("{file}: all {there} lines are in {} already; nothing sent", args.table);
    }
    let rate = sent as f64 / took.as_secs_f64().max(0.001);
    format!(
        "{file}: {sent} lines sent to {}, {there} were there already; {:.1} s, {rate:.0} lines/s",
        args.table,
        took.as_secs_f64()
    )
}
