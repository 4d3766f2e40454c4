//! `tillsync certs`: the cluster's own CA, and a certificate for each of its nodes. Offline: the CA's key stays where
//! it was made, the nodes never need it.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{CliResult, CommandError};
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::model::time::iso;
use crate::tls::authority::{self, Issued, Validity};
use crate::tls::files;

#[derive(Subcommand, Debug)]
pub(super) enum CertsCommand {
    /// Make a cluster's CA: ca.crt, which every node gets, and ca.key, which none does
    Init(CertsInitArgs),
    /// Make a node's certificate and its key: node-N.crt and node-N.key
    Issue(CertsIssueArgs),
}

#[derive(Args, Debug)]
pub(super) struct CertsInitArgs {
    /// The cluster's name
    #[arg(long, value_name = "NAME", default_value = "tillsync")]
    cluster: String,
    /// The folder of the files
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// For how many days it is good
    #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: u64,
}

#[derive(Args, Debug)]
pub(super) struct CertsIssueArgs {
    /// The node's number
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    node: u64,
    /// A name or an address by which devices reach the node; can be repeated. The other nodes need none
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',')]
    hosts: Vec<String>,
    /// The folder of ca.crt and ca.key, and of the files to be made
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// For how many days it is good
    #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: u64,
    /// Replace files that are there: to renew a certificate
    #[arg(long)]
    replace: bool,
}

pub(super) fn execute(command: CertsCommand) -> CliResult {
    match command {
        CertsCommand::Init(args) => init(&args),
        CertsCommand::Issue(args) => issue(&args),
    }
}

fn init(args: &CertsInitArgs) -> CliResult {
    let (cert, key) = (args.dir.join("ca.crt"), args.dir.join("ca.key"));
    // A new CA would make strangers of all the nodes that have a certificate of the old one.
    for path in [&cert, &key] {
        if path.exists() {
            return Err(CommandError::usage(format!("{} is there already, and stays", path.display())));
        }
    }
    fs::create_dir_all(&args.dir).map_err(|e| failed(&args.dir, &e))?;
    let validity = Validity::days(SystemClock.now_ms(), args.days);
    let made = authority::make(&args.cluster, validity).map_err(CommandError::new)?;
    write(&key, &made.key, 0o600, false)?;
    write(&cert, &made.cert, 0o644, false)?;
    say!("{}  for every node", cert.display());
    say!("{}  for nobody: keep it offline, `tillsync certs issue` needs it", key.display());
    Ok(())
}

fn issue(args: &CertsIssueArgs) -> CliResult {
    let ca_cert = args.dir.join("ca.crt");
    let ca = Issued { cert: read(&ca_cert)?, key: read(&args.dir.join("ca.key"))? };
    let name = |end: &str| args.dir.join(format!("node-{}.{end}", args.node));
    let files = config::RaftTls { ca: ca_cert, cert: name("crt"), key: name("key") };
    for path in [&files.cert, &files.key] {
        if path.exists() && !args.replace {
            let why = format!("{} is there already: --replace makes it anew", path.display());
            return Err(CommandError::usage(why));
        }
    }
    let now = SystemClock.now_ms();
    let validity = Validity::days(now, args.days);
    let made = authority::issue(&ca, args.node, &args.hosts, validity).map_err(CommandError::usage)?;
    let contents = [&ca.cert, &made.cert, &made.key].map(|pem| pem.clone().into_bytes());
    // What a node would not take is not handed out, as with a ca.key of another ca.crt.
    files::make_node(args.node, &files, &contents, now)
        .map_err(|e| CommandError::usage(format!("no certificate was made: {}", e.message)))?;
    write(&files.key, &made.key, 0o600, args.replace)?;
    write(&files.cert, &made.cert, 0o644, args.replace)?;
    let (cert, key) = (files.cert.display(), files.key.display());
    say!("{cert} and {key}  for node {}, until {}", args.node, iso(now.plus_ms(args.days * 86_400_000)));
    Ok(())
}

/// Writes a file whole or not at all: a node may be reading it.
fn write(path: &Path, text: &str, mode: u32, replace: bool) -> CliResult {
    let part = path.with_extension("part");
    let target = if replace { &part } else { path };
    let written = private(target, mode, replace).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if replace { fs::rename(&part, path) } else { Ok(()) }
    });
    written.map_err(|e| failed(path, &e))
}

fn private(path: &Path, mode: u32, replace: bool) -> std::io::Result<fs::File> {
    if replace {
        // What an interrupted run left might have another mode.
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    options.open(path)
}

fn read(path: &Path) -> CliResult<String> {
    fs::read_to_string(path).map_err(|e| {
        CommandError::usage(format!("{} cannot be read: {e}; `tillsync certs init` makes it", path.display()))
    })
}

fn failed(path: &Path, e: &std::io::Error) -> CommandError {
    CommandError::new(format!("{}: {e}", path.display()))
}
