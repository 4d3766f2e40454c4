//! The page of all settings, `docs/configuration.md`, made from the table that the settings are read by.

use std::fmt::Write;

use super::{Kind, SETTINGS};

const HEAD: &str = "# Configuration

<!-- Made from the table in src/config.rs: UPDATE_DOCS=1 cargo test --lib config -->

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
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    for row in SETTINGS {
        let kind = match row.kind {
            Kind::Text => "text".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::File => "path of a file".to_owned(),
            Kind::Listen => "`IP:PORT`".to_owned(),
            Kind::Number(least, u64::MAX) => format!("whole number, from {least}"),
            Kind::Number(least, most) => format!("whole number, {least} to {most}"),
            Kind::Milliseconds(least, most) => format!("milliseconds, {least} to {most}"),
            Kind::OneOf(words) => words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" or "),
            Kind::Members => "list of `{ id, raft, gateway }`".to_owned(),
        };
        let default = row.default.map_or_else(
            || "must be given".to_owned(),
            |d| match d {
                "" => "none".to_owned(),
                d => format!("`{d}`"),
            },
        );
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

    #[test]
    fn the_example_is_a_configuration() {
        let mut layers = Layers::default();
        layers.file("node.toml", include_str!("../../deploy/node.toml")).unwrap();
        assert_eq!(Config::from_layers(&layers).unwrap().members.len(), 3);
    }
}
