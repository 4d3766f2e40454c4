//! The layers that settings come from, one over the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::{AddressRange, Member, SETTINGS, Setting, SettingKind, setting, wrong};
use crate::ids::NodeId;
use crate::model::error::{Code, Error};

/// Values by key, each checked against its row as it is put in; a later one replaces an earlier one.
#[derive(Debug, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, Value>,
}

impl Layers {
    /// Puts in a TOML file; `name` is for the error.
    pub fn file(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(0, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            let why = e.message().replace('\n', " ");
            Error::new(Code::Configuration, format!("{name}, line {line}: not TOML: {why}"))
        })?;
        let mut given = Vec::new();
        for (key, value) in flat(table) {
            let Some(row) = setting(&key) else {
                return Err(Error::new(Code::Configuration, format!("{name}: unknown setting {key}")));
            };
            if given.contains(&row.key) {
                return Err(wrong(row.key, &format!("is there twice (from {name})")));
            }
            check(row, &value).map_err(|why| wrong(row.key, &format!("{why} (from {name})")))?;
            self.values.insert(row.key, value);
            given.push(row.key);
        }
        Ok(())
    }

    /// Puts in `TILLSYNC_<KEY>` for every setting that has one. Other variables of that beginning are not
    /// ours to refuse: container platforms make some of their own.
    pub fn environment(&mut self, get: impl Fn(&str) -> Option<String>) -> Result<(), Error> {
        for row in SETTINGS {
            let name = format!("TILLSYNC_{}", row.key.to_uppercase());
            if let Some(text) = get(&name) {
                self.text_value(row, &text, &name)?;
            }
        }
        Ok(())
    }

    /// Puts in what a flag gave.
    pub fn flag(&mut self, key: &str, text: &str) -> Result<(), Error> {
        let row = setting(key).ok_or_else(|| Error::new(Code::Configuration, format!("unknown setting {key}")))?;
        self.text_value(row, text, "the command line")
    }

    fn text_value(&mut self, row: &'static Setting, text: &str, from: &str) -> Result<(), Error> {
        let value = parse(row.kind, text).and_then(|v| check(row, &v).map(|()| v));
        self.values.insert(row.key, value.map_err(|why| wrong(row.key, &format!("{why} (from {from})")))?);
        Ok(())
    }

    /// Whether any layer gave it.
    #[cfg(test)]
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    fn value(&self, key: &str) -> Result<Value, Error> {
        if let Some(value) = self.values.get(key) {
            return Ok(value.clone());
        }
        let row = setting(key).ok_or_else(|| wrong(key, "there is no such setting"))?;
        let text = row.default.ok_or_else(|| wrong(key, "is missing"))?;
        parse(row.kind, text).map_err(|why| wrong(key, &why))
    }

    pub(super) fn text(&self, key: &str) -> Result<String, Error> {
        self.value(key)?.as_str().map(str::to_owned).ok_or_else(|| wrong(key, "must be a text"))
    }

    pub(super) fn number(&self, key: &str) -> Result<u64, Error> {
        let number = self.value(key)?.as_integer().and_then(|n| u64::try_from(n).ok());
        number.ok_or_else(|| wrong(key, "must be a whole number"))
    }

    pub(super) fn milliseconds(&self, key: &str) -> Result<Duration, Error> {
        self.number(key).map(Duration::from_millis)
    }

    pub(super) fn span(&self, key: &str) -> Result<Duration, Error> {
        self.value(key)?.as_str().and_then(span).ok_or_else(|| wrong(key, "must be a time such as 24h"))
    }

    pub(super) fn listen(&self, key: &str) -> Result<SocketAddr, Error> {
        self.text(key)?.parse().map_err(|_| wrong(key, "must be an address IP:PORT"))
    }

    /// Files that only make sense together: all of them or none.
    pub(super) fn files<const N: usize>(&self, keys: [&'static str; N]) -> Result<Option<[PathBuf; N]>, Error> {
        let mut paths = Vec::with_capacity(N);
        for key in keys {
            paths.push(PathBuf::from(self.text(key)?));
        }
        let is_none = |path: &PathBuf| path.as_os_str().is_empty();
        match keys.iter().zip(&paths).find(|(_, path)| is_none(path)) {
            Some(_) if paths.iter().all(is_none) => Ok(None),
            Some((key, _)) => Err(wrong(key, &format!("is missing: {} belong together", keys.join(", ")))),
            None => Ok(paths.try_into().ok()),
        }
    }

    pub(super) fn members(&self, key: &str) -> Result<Vec<Member>, Error> {
        members(&self.value(key)?).map_err(|why| wrong(key, &why))
    }

    pub(super) fn addresses(&self, key: &str) -> Result<Vec<String>, Error> {
        addresses(&self.value(key)?).map_err(|why| wrong(key, &why))
    }

    pub(super) fn networks(&self, key: &str) -> Result<Vec<AddressRange>, Error> {
        networks(&self.value(key)?).map_err(|why| wrong(key, &why))
    }

    pub(super) fn origins(&self, key: &str) -> Result<Vec<String>, Error> {
        origins(&self.value(key)?).map_err(|why| wrong(key, &why))
    }
}

/// `[a.b]` with `c` in it is `a_b_c`.
fn flat(table: Table) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => out.extend(flat(inner).into_iter().map(|(k, v)| (format!("{key}_{k}"), v))),
            value => out.push((key, value)),
        }
    }
    out
}

/// A value as the environment or a flag writes it.
fn parse(kind: SettingKind, text: &str) -> Result<Value, String> {
    match kind {
        SettingKind::Text
        | SettingKind::Path
        | SettingKind::File
        | SettingKind::Place
        | SettingKind::Listen
        | SettingKind::OneOf(_) => Ok(Value::String(text.to_owned())),
        SettingKind::Span(..) => Ok(Value::String(text.trim().to_owned())),
        SettingKind::Number(..) | SettingKind::Milliseconds(..) => {
            text.trim().parse().map(Value::Integer).map_err(|_| format!("'{text}' is not a whole number"))
        }
        // Nothing is an empty list.
        SettingKind::Members | SettingKind::Addresses | SettingKind::Origins | SettingKind::Networks
            if text.trim().is_empty() =>
        {
            Ok(Value::Array(Vec::new()))
        }
        SettingKind::Addresses | SettingKind::Origins | SettingKind::Networks => {
            Ok(Value::Array(text.split(',').map(|part| Value::from(part.trim())).collect()))
        }
        SettingKind::Members => {
            let member = |part: &str| {
                let (id, rest) = part.trim().split_once('=')?;
                let (raft, gateway) = rest.split_once('/')?;
                let mut table = Table::new();
                table.insert("id".into(), Value::Integer(id.trim().parse().ok()?));
                table.insert("raft".into(), Value::String(raft.into()));
                table.insert("gateway".into(), Value::String(gateway.into()));
                Some(Value::Table(table))
            };
            let members: Option<Vec<_>> = text.split(',').map(member).collect();
            members.map(Value::Array).ok_or_else(|| format!("'{text}' is not ID=RAFT/GATEWAY,…"))
        }
    }
}

fn check(row: &Setting, value: &Value) -> Result<(), String> {
    match row.kind {
        SettingKind::Text | SettingKind::Path => match value.as_str() {
            Some("") | None => Err("must be a text".into()),
            Some(_) => Ok(()),
        },
        SettingKind::File => value.as_str().map(drop).ok_or_else(|| "must be a text".into()),
        SettingKind::Listen => match value.as_str().map(str::parse::<SocketAddr>) {
            Some(Ok(_)) => Ok(()),
            _ => Err("must be an address IP:PORT".into()),
        },
        SettingKind::Number(least, most) | SettingKind::Milliseconds(least, most) => {
            let number = value.as_integer().and_then(|n| u64::try_from(n).ok());
            match number {
                Some(n) if (least..=most).contains(&n) => Ok(()),
                _ if most > i64::MAX as u64 => Err(format!("must be a whole number, at least {least}")),
                _ => Err(format!("must be a whole number from {least} to {most}")),
            }
        }
        SettingKind::Span(least, most) => {
            let bounds = Duration::from_millis(least)..=Duration::from_millis(most);
            match value.as_str().and_then(span) {
                Some(given) if bounds.contains(&given) => Ok(()),
                Some(_) => Err(format!("must be from {least} ms to {} days", most / 86_400_000)),
                None => Err("must be a time such as \"90s\", \"15m\", \"24h\" or \"7d\"".into()),
            }
        }
        SettingKind::Place => match value.as_str() {
            Some(place) if place.contains("://") && !place.starts_with("s3://") => {
                Err("must be a folder or s3://BUCKET/PREFIX".into())
            }
            Some(_) => Ok(()),
            None => Err("must be a text".into()),
        },
        SettingKind::OneOf(words) => match value.as_str() {
            Some(word) if words.contains(&word) => Ok(()),
            _ => Err(format!("must be one of {}", words.join(", "))),
        },
        SettingKind::Members => members(value).map(drop),
        SettingKind::Addresses => addresses(value).map(drop),
        SettingKind::Origins => origins(value).map(drop),
        SettingKind::Networks => networks(value).map(drop),
    }
}

/// `0`, or a whole number and its unit.
fn span(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Duration::from_millis)
}

fn members(value: &Value) -> Result<Vec<Member>, String> {
    let list = value.as_array().ok_or("must be a list of { id, raft, gateway }")?;
    let mut members: Vec<Member> = Vec::with_capacity(list.len());
    for entry in list {
        let table = entry.as_table().ok_or("each must be { id, raft, gateway }")?;
        if let Some(key) = table.keys().find(|k| !["id", "raft", "gateway"].contains(&k.as_str())) {
            return Err(format!("a member has no '{key}'; it has id, raft and gateway"));
        }
        let id = table.get("id").and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        let id = NodeId(id.ok_or("each needs an id, a whole number from 1")?);
        let member = Member { id, raft: address(table, id, "raft")?, gateway: address(table, id, "gateway")? };
        if members.iter().any(|m| m.id == id) {
            return Err(format!("id {id} is there twice"));
        }
        members.push(member);
    }
    Ok(members)
}

fn address(table: &Table, id: NodeId, key: &str) -> Result<String, String> {
    let text = table.get(key).and_then(Value::as_str).unwrap_or_default();
    if is_address(text) { Ok(text.to_owned()) } else { Err(format!("member {id} needs {key} = \"HOST:PORT\"")) }
}

fn addresses(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or("must be a list of \"HOST:PORT\"")?;
    let each = list.iter().map(|entry| entry.as_str().filter(|text| is_address(text)).map(str::to_owned));
    each.collect::<Option<Vec<_>>>().ok_or_else(|| "each must be \"HOST:PORT\"".into())
}

fn origins(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or("must be a list of \"SCHEME://HOST\"")?;
    let each = list.iter().map(|entry| entry.as_str().filter(|text| is_origin(text)).map(str::to_owned));
    each.collect::<Option<Vec<_>>>().ok_or_else(|| "each must be \"SCHEME://HOST\" or \"SCHEME://HOST:PORT\"".into())
}

fn networks(value: &Value) -> Result<Vec<AddressRange>, String> {
    let list = value.as_array().ok_or("must be a list of \"ADDRESS\" or \"ADDRESS/BITS\"")?;
    let each = list.iter().map(|entry| entry.as_str().and_then(AddressRange::parse));
    each.collect::<Option<Vec<_>>>().ok_or_else(|| "each must be \"ADDRESS\" or \"ADDRESS/BITS\"".into())
}

/// As browsers write it, which is what it is compared with: in lower case, without a path.
fn is_origin(text: &str) -> bool {
    let is_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
    text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty()
            && scheme.chars().all(|c| c.is_ascii_lowercase())
            && !host.is_empty()
            && host.chars().all(is_host)
    })
}

/// `HOST:PORT`: members may have names where listeners have addresses.
pub fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}
