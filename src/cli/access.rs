//! `tillsync access`: which class of tokens may read and write which table.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::CliResult;
use super::device::tables;
use crate::cli::target::{TargetArgs, ask_any};
use crate::model::access::Right;
use crate::token::Class;

#[derive(Subcommand, Debug)]
pub(super) enum AccessCommand {
    /// Show what each class may do
    Ls(AccessLsArgs),
    /// Set what a class may do, in place of what was set before
    Set(SetArgs),
}

#[derive(Args, Debug)]
pub(super) struct AccessLsArgs {
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
pub(super) struct SetArgs {
    /// The class
    class: Class,
    /// Rights by table: none, read or write; `*` stands for every table that is not named, by default write
    #[arg(value_name = "TABLE=RIGHT", value_parser = right)]
    rights: Vec<(String, Right)>,
    /// The class may not write to a table that does not exist yet
    #[arg(long)]
    no_new_tables: bool,
    #[command(flatten)]
    target: TargetArgs,
}

fn right(text: &str) -> Result<(String, Right), String> {
    let parsed = text.rsplit_once('=').and_then(|(table, right)| Some((table.to_owned(), Right::named(right)?)));
    parsed
        .filter(|(table, _)| !table.is_empty())
        .ok_or_else(|| format!("'{text}' is not TABLE=none, TABLE=read or TABLE=write"))
}

fn tell(class: &Value) {
    let creates = if class["create_tables"] == true { "" } else { "; no new tables" };
    say!("{:<20} {}{creates}", class["class"].as_str().unwrap_or_default(), tables(&class["tables"]));
}

pub(super) async fn execute(command: AccessCommand) -> CliResult {
    match command {
        AccessCommand::Ls(args) => {
            let all: Value = ask_any(&args.target.resolve()?, Method::GET, "/access", None).await?;
            all["classes"].as_array().into_iter().flatten().for_each(tell);
        }
        AccessCommand::Set(args) => {
            let rights: Map<String, Value> =
                args.rights.iter().map(|(table, right)| (table.clone(), json!(right.name()))).collect();
            let body = json!({"tables": rights, "create_tables": !args.no_new_tables});
            let path = format!("/access/{}", args.class.name());
            tell(&ask_any(&args.target.resolve()?, Method::PUT, &path, Some(&body)).await?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read() {
        assert_eq!(right("a=b=read"), Ok(("a=b".to_owned(), Right::Read)));
        assert_eq!(right("*=none"), Ok(("*".to_owned(), Right::None)));
        for bad in ["", "prices", "=read", "prices=all"] {
            assert!(right(bad).is_err(), "{bad}");
        }
    }
}
