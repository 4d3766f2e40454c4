//! `tillsync doctor`: whether this machine can be the node that its settings describe, before it is one.

use std::path::PathBuf;

use super::serve::node_settings;
use super::{CliResult, CommandError};

mod disk;
mod machine;
mod network;

#[derive(clap::Args, Debug)]
pub(super) struct DoctorArgs {
    /// The node's settings (see deploy/node.toml)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting over those of the file and of the environment; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What a diagnosis means for the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Ok,
    /// It works, and somebody will wait or look one day.
    Warn,
    /// It does not work, or not safely.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Diagnosis {
    severity: Severity,
    what: &'static str,
    words: String,
}

impl Diagnosis {
    fn new(severity: Severity, what: &'static str, words: impl Into<String>) -> Self {
        Self { severity, what, words: words.into() }
    }

    fn line(&self) -> String {
        let severity = match self.severity {
            Severity::Ok => "ok",
            Severity::Warn => "warn",
            Severity::Bad => "bad",
        };
        format!("{severity:<5} {:<13} {}", self.what, self.words)
    }
}

pub(super) async fn execute(args: DoctorArgs) -> CliResult {
    let config = node_settings(args.config.as_deref(), &args.set)?;
    let folder = config.data_dir.clone();
    let times = config.raft;
    // The disk is measured alone: what else is asked must not be what it waits for.
    let measured = tokio::task::spawn_blocking(move || disk::look(&folder, times)).await;
    let mut diagnoses = measured.map_err(|error| CommandError::new(format!("the disk was not measured: {error}")))?;
    diagnoses.extend(machine::look(&config));
    diagnoses.extend(network::look(&config).await);
    for diagnosis in &diagnoses {
        say!("{}", diagnosis.line());
    }
    let count = |severity| diagnoses.iter().filter(|diagnosis| diagnosis.severity == severity).count();
    let (warn, bad) = (count(Severity::Warn), count(Severity::Bad));
    say!("");
    match (warn, bad) {
        (0, 0) => say!("this machine can be node {} of {}", config.node_id, config.cluster_name),
        (_, 0) => say!("this machine can be node {} of {}: {warn} to look at", config.node_id, config.cluster_name),
        _ => {
            let of = format!("node {} of {}", config.node_id, config.cluster_name);
            return Err(CommandError::new(format!(
                "this machine should not be {of} as it is: {bad} bad, {warn} to look at"
            )));
        }
    }
    Ok(())
}
