//! Faults of the operator's own: a TOML file with a command for each that breaks something, and one that heals it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

/// Bytes of a file, and faults in it.
const FILE: u64 = 1 << 20;
const FAULTS: usize = 100;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hooks {
    /// What this is about, for people.
    #[serde(default)]
    pub explained: String,
    #[serde(rename = "fault")]
    pub faults: Vec<Hook>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hook {
    pub name: String,
    #[serde(default)]
    pub explained: String,
    /// Commands for the shell.
    pub inject: String,
    pub heal: String,
    /// Seconds from the one to the other.
    #[serde(rename = "for", default = "ten")]
    pub lasts: u64,
    /// Seconds that each may take.
    #[serde(default = "thirty")]
    pub timeout: u64,
    /// Most nodes stay up and connected: writes must go on.
    #[serde(default = "yes")]
    pub majority: bool,
}

fn ten() -> u64 {
    10
}

fn thirty() -> u64 {
    30
}

fn yes() -> bool {
    true
}

impl Hooks {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(FILE).read_to_string(&mut text));
        read.map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let hooks: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if hooks.faults.is_empty() || hooks.faults.len() > FAULTS {
            return Err(format!("fault: there must be 1 to {FAULTS} of them"));
        }
        for fault in &hooks.faults {
            let name = &fault.name;
            if name.is_empty() || name.chars().any(char::is_control) || name.len() > 64 {
                return Err(format!("name {name:?}: must be 1 to 64 letters"));
            }
            for (what, command) in [("inject", &fault.inject), ("heal", &fault.heal)] {
                if command.trim().is_empty() {
                    return Err(format!("{name}: {what} must be a command"));
                }
            }
            for (what, seconds) in [("for", fault.lasts), ("timeout", fault.timeout)] {
                if !(1..=3_600).contains(&seconds) {
                    return Err(format!("{name}: {what} must be 1 to 3600 seconds"));
                }
            }
        }
        Ok(hooks)
    }

    /// What will be run, for who is asked.
    pub(super) fn plan(&self) -> String {
        let mut text = String::new();
        for fault in &self.faults {
            let Hook { name, inject, heal, lasts, .. } = fault;
            text +=
                &format!("  {name}\n    breaks by  {}\n    after {lasts} s heals by  {}\n", inject.trim(), heal.trim());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_mistakes_are_named() {
        let good = "[[fault]]\nname = \"off\"\ninject = \"a\"\nheal = \"b\"\n";
        let hooks = Hooks::parse(good).unwrap();
        assert_eq!((hooks.faults[0].lasts, hooks.faults[0].timeout, hooks.faults[0].majority), (10, 30, true));
        assert!(hooks.plan().contains("heals by  b"));
        for (wrong, word) in [
            (good.replace("heal = \"b\"", ""), "heal"),
            (good.replace("\"b\"", "\" \""), "heal must be a command"),
            (format!("{good}for = 0\n"), "for must be"),
            (format!("{good}timeout = 9999\n"), "timeout must be"),
            (format!("{good}while = 3\n"), "while"),
            (good.replace("\"off\"", "\"\""), "name"),
            ("fault = []".into(), "1 to 100"),
        ] {
            let why = Hooks::parse(&wrong).unwrap_err();
            assert!(why.contains(word), "{word}: {why}");
        }
    }
}
