//! The page of all settings, `docs/configuration.md`, made from the table that the settings are read by.

use std::fmt::Write;

use super::{SETTINGS, SettingKind};

const HEAD: &str = "# Configuration

<!-- Made from the table in src/config/settings.rs: UPDATE_DOCS=1 cargo test --lib config -->

A node reads its settings from a TOML file (`tillsync serve --config node.toml`; see `deploy/node.toml`), then from the
environment (`TILLSYNC_` and the setting's name in capitals, as `TILLSYNC_DATA_DIR`), then from flags (`--set
data_dir=…`). The later one wins. A setting that is unknown, missing or out of its bounds is error 5004 with its name, and
the node exits with code 2 before it has opened or written anything.

In the file, a table stands for the beginning of the names in it: `[gateway.tls]` with `cert` is `gateway_tls_cert`.
Certificates and their keys are looked at every two seconds, and a change is taken over without a restart: new
connections use it, those that are open stay.

In the environment and in flags, `members` is written `1=HOST:RAFT_PORT/HOST:GATEWAY_PORT,2=…`.

| setting | value | default | what it is |
|---|---|---|---|
";

/// The whole page.
pub(super) fn page() -> String {
    let mut out = HEAD.to_owned();
    for row in SETTINGS {
        let kind = match row.kind {
            SettingKind::Text => "text".to_owned(),
            SettingKind::Path => "path".to_owned(),
            SettingKind::File => "path of a file".to_owned(),
            SettingKind::Listen => "`IP:PORT`".to_owned(),
            SettingKind::Number(least, u64::MAX) => format!("whole number, from {least}"),
            SettingKind::Number(least, most) => format!("whole number, {least} to {most}"),
            SettingKind::Milliseconds(least, most) => format!("milliseconds, {least} to {most}"),
            SettingKind::Span(0, _) => "a time such as `90s`, `15m`, `24h`, `7d`, or `0`".to_owned(),
            SettingKind::Span(..) => "a time such as `90s`, `15m`, `24h`, `7d`".to_owned(),
            SettingKind::Place => "path of a folder, or `s3://BUCKET/PREFIX`".to_owned(),
            SettingKind::OneOf(words) => words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" or "),
            SettingKind::Members => "list of `{ id, raft, gateway }`".to_owned(),
            SettingKind::Addresses => "list of `HOST:PORT`".to_owned(),
            SettingKind::Networks => "list of `ADDRESS` or `ADDRESS/BITS`".to_owned(),
            SettingKind::Origins => "list of `SCHEME://HOST[:PORT]`".to_owned(),
        };
        let default = match row.default {
            None => "must be given".to_owned(),
            Some("") => "none".to_owned(),
            Some(default) => format!("`{default}`"),
        };
        let _ = writeln!(out, "| `{}` | {kind} | {default} | {} |", row.key, row.about);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Layers};
    use super::*;

    #[test]
    fn the_page_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), page(), "UPDATE_DOCS=1 writes it anew");
    }

    const EXAMPLE: &str = include_str!("../../deploy/node.toml");

    fn read(text: &str) -> Layers {
        let mut layers = Layers::default();
        layers.file("node.toml", text).unwrap();
        layers
    }

    /// The example with its commented settings in force, and which settings were commented.
    fn uncommented() -> (String, Vec<&'static str>) {
        let mut keys = Vec::new();
        let mut text = String::new();
        for line in EXAMPLE.lines() {
            let commented = line.strip_prefix("# ").filter(|l| {
                let key = l.split_once(" = ").and_then(|(key, _)| super::super::setting(key));
                keys.extend(key.map(|row| row.key));
                key.is_some()
            });
            text += commented.unwrap_or(line);
            text.push('\n');
        }
        (text, keys)
    }

    #[test]
    fn the_example_is_a_configuration_and_its_comments_are_the_defaults() {
        let config = Config::from_layers(&read(EXAMPLE)).unwrap();
        assert_eq!(config.members.len(), 3);
        assert_eq!(Config::from_layers(&read(&uncommented().0)).unwrap(), config);
    }

    #[test]
    fn the_example_has_every_setting_with_its_default() {
        let (text, commented) = uncommented();
        for row in SETTINGS {
            let live = read(EXAMPLE).has(row.key);
            assert!(live != commented.contains(&row.key), "{} once, in force or as a comment", row.key);
            if !live {
                continue;
            }
            let says = match row.default {
                None => "No default.".to_owned(),
                Some("") => "Default: none".to_owned(),
                Some(default) => format!("Default: \"{default}\""),
            };
            // The comment above the setting, or above the table that it is in.
            let line = |l: &str| l.starts_with(&format!("{} = ", row.key)) || table_of(row.key) == Some(l);
            let at = text.lines().position(line).unwrap();
            let above: Vec<_> = text.lines().take(at).collect();
            let comment = above.iter().rev().take_while(|l| l.starts_with('#')).any(|l| l.contains(&says));
            assert!(comment, "{}: its comment lacks '{says}'", row.key);
        }
    }

    fn table_of(key: &str) -> Option<&'static str> {
        ["[raft.tls]", "[gateway.tls]"]
            .into_iter()
            .find(|table| key.starts_with(&format!("{}_", table.trim_matches(['[', ']']).replace('.', "_"))))
    }

    /// Every setting that the compose file gives is one, and together they are a node's.
    #[test]
    fn the_compose_file_configures_its_nodes() {
        let compose = include_str!("../../deploy/compose.yaml");
        let mut given: std::collections::BTreeMap<String, String> = Default::default();
        for line in compose.lines() {
            if let Some((key, value)) = line.trim().split_once(": ").filter(|(key, _)| key.starts_with("TILLSYNC_")) {
                given.insert(key.to_owned(), value.trim_matches('"').to_owned());
            }
        }
        // The health check's own.
        assert!(given.remove("TILLSYNC_HEALTH_URL").is_some() && given.remove("TILLSYNC_CA").is_some());
        for key in given.keys() {
            let name = key.trim_start_matches("TILLSYNC_").to_lowercase();
            assert!(super::super::setting(&name).is_some(), "{key}");
        }
        for node in 1..=3 {
            assert!(compose.contains(&format!("TILLSYNC_NODE_ID: \"{node}\"")));
            let id = node.to_string();
            let get = |key: &str| if key == "TILLSYNC_NODE_ID" { Some(id.clone()) } else { given.get(key).cloned() };
            let mut layers = Layers::default();
            layers.environment(get).unwrap();
            let config = Config::from_layers(&layers).unwrap();
            assert!(config.raft_tls.is_some() && config.gateway_tls.is_some() && config.me().is_some());
        }
    }
}
