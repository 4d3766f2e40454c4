//! `tillsync device`: who is there, who is let in, and who is kept out.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::{CliResult, CommandError};
use crate::cli::target::{TargetArgs, ask_any, read_token};
use crate::client::rest::{RestClient, percent};
use crate::ids::UnixMs;
use crate::model::time::iso;
use crate::token::{Class, claims_unverified};

#[derive(Subcommand, Debug)]
pub(super) enum DeviceCommand {
    /// Show every device: its role, whether it is online, when it was last seen
    Ls(DeviceLsArgs),
    /// Show the devices that ask to be let in; or, with a code, let one in or turn it away
    Pair(PairArgs),
    /// Take back every token of a device, and say what came of it
    Revoke(OneArgs),
    /// Keep a device out until it is resumed
    Suspend(OneArgs),
    /// Let a suspended device in again
    Resume(OneArgs),
    /// Forget a device that is gone; what it wrote stays
    Forget(OneArgs),
    /// Say why a device is refused, if it is
    Why(WhyArgs),
}

#[derive(Args, Debug)]
pub(super) struct DeviceLsArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print what the node answered, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct PairArgs {
    /// The code that the device shows
    code: Option<String>,
    /// What it is to be
    #[arg(long, requires = "code", value_name = "CLASS")]
    class: Option<Class>,
    /// Which device it is. Default: the one that it asked for
    #[arg(long, value_name = "DEVICE", requires = "class")]
    device: Option<String>,
    /// Turn it away
    #[arg(long, requires = "code", conflicts_with = "class")]
    refuse: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
pub(super) struct OneArgs {
    /// The device's id
    device: String,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
pub(super) struct WhyArgs {
    /// The device's id
    device: String,
    /// The token that the device comes with: it is tried
    #[arg(long, value_name = "FILE")]
    device_token_file: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
}

async fn call(target: &TargetArgs, method: Method, path: &str, body: Option<&Value>) -> CliResult<Value> {
    ask_any(&target.resolve()?, method, path, body).await
}

/// How far a device had come, in words.
fn confirmed(report: &Value) -> String {
    match (report["changes"].as_u64(), report["last_seq"].as_u64()) {
        (Some(changes), Some(last)) if changes > 0 => {
            let of = if changes == 1 { "change" } else { "changes" };
            format!("{changes} {of}, the last one {last} at {}", shown(&report["last_timestamp"]))
        }
        _ => "no change of it is kept".to_owned(),
    }
}

/// What a device may have written, so that a terminal shows it and does nothing else.
fn shown(value: &Value) -> String {
    value.as_str().unwrap_or_default().escape_debug().to_string()
}

pub(super) async fn execute(command: DeviceCommand) -> CliResult {
    match command {
        DeviceCommand::Ls(args) => list(&args).await,
        DeviceCommand::Pair(args) => pair(&args).await,
        DeviceCommand::Revoke(args) => revoke(&args).await,
        DeviceCommand::Suspend(args) => one(&args, Method::POST, "/suspend", "is suspended").await,
        DeviceCommand::Resume(args) => one(&args, Method::POST, "/resume", "may come back").await,
        DeviceCommand::Forget(args) => one(&args, Method::DELETE, "", "is forgotten").await,
        DeviceCommand::Why(args) => why(&args).await,
    }
}

async fn one(args: &OneArgs, method: Method, what: &str, done: &str) -> CliResult {
    call(&args.target, method, &format!("/device/{}{what}", percent(&args.device)), None).await?;
    say!("{} {done}", args.device.escape_debug());
    Ok(())
}

async fn list(args: &DeviceLsArgs) -> CliResult {
    let all = call(&args.target, Method::GET, "/device/roles", None).await?;
    if args.json {
        say!("{all}");
        return Ok(());
    }
    say!("{:<32} {:<7} {:>8} {:<8} last seen", "device", "role", "priority", "is");
    for device in all["devices"].as_array().into_iter().flatten() {
        let online = if device["is_active"] == true { "online" } else { "offline" };
        let (id, role) = (shown(&device["device_id"]), shown(&device["role"]));
        say!("{id:<32} {role:<7} {:>8} {online:<8} {}", device["priority"].to_string(), shown(&device["last_seen"]));
    }
    Ok(())
}

async fn pair(args: &PairArgs) -> CliResult {
    let Some(code) = &args.code else {
        let all = call(&args.target, Method::GET, "/device/pairings", None).await?;
        say!("{:<9} {:<9} {:<24} {:<16} {:<24} asked", "code", "status", "device", "address", "name");
        for row in all["pairings"].as_array().into_iter().flatten() {
            let [code, status, device, address, name, asked] =
                ["code", "status", "device_id", "address", "name", "asked"].map(|field| shown(&row[field]));
            let device = if row["known"] == true { format!("{device} (is there)") } else { device };
            say!("{code:<9} {status:<9} {device:<24} {address:<16} {name:<24} {asked}");
        }
        return Ok(());
    };
    let code = code.trim().to_uppercase().replace('-', "");
    let at = format!("/device/pairings/{}", percent(&code));
    if args.refuse {
        call(&args.target, Method::POST, &format!("{at}/refuse"), None).await?;
        say!("{code} is turned away");
        return Ok(());
    }
    let class = args.class.ok_or_else(|| CommandError::usage("--class CLASS is needed, or --refuse"))?;
    let mut body = json!({"class": class.name()});
    if let Some(device) = &args.device {
        body["device_id"] = json!(device);
    }
    let done = call(&args.target, Method::POST, &format!("{at}/approve"), Some(&body)).await?;
    say!("{code} is let in as {}, a {}", shown(&done["device_id"]), shown(&done["class"]));
    Ok(())
}

async fn revoke(args: &OneArgs) -> CliResult {
    let path = format!("/device/{}/revoke", percent(&args.device));
    let report = call(&args.target, Method::POST, &path, None).await?;
    say!("every token of {} issued until {} is refused", shown(&report["device_id"]), shown(&report["not_before"]));
    if report["registered"] != true {
        say!("the device never registered");
        return Ok(());
    }
    say!("confirmed   {}", confirmed(&report["confirmed"]));
    say!("cursor      {}", shown(&report["cursor"]));
    say!("last seen   {}", shown(&report["last_seen"]));
    let unsent = &report["unsent"];
    match unsent["count"].as_u64() {
        Some(count) => say!("unsent      {count}, as it said at {}", shown(&unsent["said_at"])),
        None => say!("unsent      it never said"),
    }
    for queue in unsent["queues"].as_array().into_iter().flatten() {
        say!("queue       {} was applied up to {}", shown(&queue["queue"]), queue["last"]);
    }
    Ok(())
}

async fn why(args: &WhyArgs) -> CliResult {
    let path = format!("/device/{}/admission", percent(&args.device));
    let found = call(&args.target, Method::GET, &path, None).await?;
    let mut refused = false;
    let by = || format!("by {} at {}", shown(&found["set_by"]), shown(&found["set_at"]));
    if found["suspended"] == true {
        refused = true;
        say!("it is suspended, {}: `tillsync device resume` lets it in again", by());
    }
    if let Some(until) = found["not_before"].as_str() {
        say!("tokens issued until {until} are refused, {}", by());
    }
    if found["registered"] != true {
        say!("no device of this id has registered (3004), or it was forgotten");
    }
    if let Some(rights) = found["rights"].as_object() {
        say!("as a {} it may: {}", shown(&rights["class"]), tables(&rights["tables"]));
    }
    if let Some(file) = &args.device_token_file {
        refused |= try_token(args, &read_token(file)?).await?;
    }
    if !refused {
        say!("nothing keeps it out");
    }
    Ok(())
}

/// True if the token is refused.
async fn try_token(args: &WhyArgs, token: &str) -> CliResult<bool> {
    let claims = claims_unverified(token)?;
    let [issued, ends] = [claims.iat, claims.exp].map(|seconds| iso(UnixMs(seconds.saturating_mul(1_000))));
    say!("its token is of a {}, issued {issued}, ends {ends}, id {}", claims.class, claims.jti.escape_debug());
    if claims.sub != args.device {
        say!("the token is another device's: {}", claims.sub.escape_debug());
    }
    let target = args.target.resolve()?;
    let rest = RestClient::new(token)?;
    for node in &target.nodes {
        match rest.call::<Value>(node, Method::GET, "/system/health", None).await {
            Ok(_) => {
                say!("{node} takes it");
                return Ok(false);
            }
            Err(error) if error.is_passing() => note!("{error}"),
            Err(error) => {
                say!("{error}");
                return Ok(true);
            }
        }
    }
    Err(CommandError::new("no node could be asked"))
}

/// `prices: read, *: write`
pub(super) fn tables(rights: &Value) -> String {
    let each = rights.as_object().into_iter().flatten();
    each.map(|(table, right)| format!("{}: {}", table.escape_debug(), shown(right))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn how_far_a_device_had_come_is_said_in_words() {
        let none = json!({ "changes": 0, "last_seq": null, "last_timestamp": null });
        assert_eq!(confirmed(&none), "no change of it is kept");
        let two = json!({ "changes": 2, "last_seq": 25, "last_timestamp": "2026-11-30T11:51:38.069Z" });
        assert_eq!(confirmed(&two), "2 changes, the last one 25 at 2026-11-30T11:51:38.069Z");
    }
}
