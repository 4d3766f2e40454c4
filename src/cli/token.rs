//! `tillsync token`: tokens, made offline with the cluster's key, and taken back by the cluster.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{CliResult, CommandError};
use crate::cli::target::TargetArgs;
use crate::client::rest::RestClient;
use crate::clock::{Clock, SystemClock};
use crate::ids::UnixMs;
use crate::model::time::iso;
use crate::token::{Class, KeyRing, make_key_file};

#[derive(Subcommand, Debug)]
pub(super) enum TokenCommand {
    /// Make a token for a device and print it
    Issue(TokenIssueArgs),
    /// Make a key file for a new cluster; a file that is there already is left as it is
    Key(KeyArgs),
    /// Take a token back: every node ends its sessions at once. Needs an admin's token
    Revoke(RevokeArgs),
}

#[derive(Args, Debug)]
pub(super) struct TokenIssueArgs {
    /// What the device is; bounds the priority that it may claim
    #[arg(long)]
    class: Class,
    /// The device's id
    #[arg(long, value_name = "DEVICE")]
    sub: String,
    /// How long it is valid: a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = seconds)]
    ttl: u64,
    /// The cluster's key file
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct KeyArgs {
    /// Where to put it
    file: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct RevokeArgs {
    /// The token to take back
    #[arg(value_name = "TOKEN", required_unless_present = "jti")]
    revoked: Option<String>,
    /// Its id instead, as `token issue` printed it
    #[arg(long, value_name = "ID", conflicts_with = "revoked")]
    jti: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
}

/// Asks one node after the other until one has done it: revoking twice is the same as once.
async fn revoke(args: RevokeArgs) -> CliResult {
    let target = args.target.resolve()?;
    let rest = RestClient::new(&target.token)?;
    let body = match (&args.jti, &args.revoked) {
        (Some(jti), _) => serde_json::json!({ "jti": jti }),
        (None, token) => serde_json::json!({ "token": token.as_deref().map(str::trim) }),
    };
    let mut last = CommandError::new("no node to ask");
    for node in &target.nodes {
        match rest.post::<serde_json::Value>(node, "/system/tokens/revoke", &body).await {
            Ok(done) => {
                say!("revoked {}", done["jti"].as_str().unwrap_or_default());
                return Ok(());
            }
            Err(error) if error.is_passing() => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

pub(super) fn execute(command: TokenCommand) -> CliResult {
    match command {
        TokenCommand::Issue(args) => {
            let (token, claims) =
                KeyRing::read(&args.key)?.issue(&args.sub, args.class, SystemClock.now_ms(), args.ttl)?;
            let until = iso(UnixMs(claims.exp.saturating_mul(1_000)));
            note!("{} for {}, valid until {until}, id {}", claims.class, claims.sub, claims.jti);
            say!("{token}");
            Ok(())
        }
        TokenCommand::Revoke(args) => super::block_on(revoke(args)),
        TokenCommand::Key(args) => {
            make_key_file(&args.file).map_err(|e| CommandError::new(format!("{}: {e}", args.file.display())))
        }
    }
}

/// `90s`, `15m`, `12h` or `30d` in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a time such as 90s, 15m, 12h or 30d");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|s| *s > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!((seconds("90s"), seconds("2h"), seconds("30d")), (Ok(90), Ok(7_200), Ok(2_592_000)));
        for bad in ["", "90", "h", "0s", "-1s", "1é", "99999999999999999999d", "999999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
