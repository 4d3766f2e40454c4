//! The machine itself: memory, processors, open files, its clock, and who can read its keys.

use std::fs;

use super::{Diagnosis, Severity};
use crate::cli::private;
use crate::cli::serve::descriptors;
use crate::config::Config;
use crate::token::KeyRing;

/// Megabytes: a node's caches and what devices send at once (docs/operating.md, "What a node needs").
const NEEDS: u64 = 600;
/// Kilobytes of a connected device.
const SESSION: u64 = 40;
/// What the kernel says of a clock that no time service keeps.
const UNSYNCHRONIZED: libc::c_int = 5;

pub(super) fn look(config: &Config) -> Vec<Diagnosis> {
    vec![memory(config), processors(), open_files(config), clock(), keys(config)]
}

fn memory(config: &Config) -> Diagnosis {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    let Some((mut total, mut free)) = megabytes(&meminfo, "MemTotal:").zip(megabytes(&meminfo, "MemAvailable:")) else {
        return Diagnosis::new(Severity::Warn, "memory", "how much there is is not known (no /proc/meminfo)");
    };
    if let Some(limit) = limit {
        (total, free) = (total.min(limit >> 20), free.min(limit >> 20));
    }
    judge_memory(total, free, config.sessions as u64)
}

fn megabytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
}

fn judge_memory(total: u64, free: u64, sessions: u64) -> Diagnosis {
    let all = NEEDS + ((sessions * SESSION) >> 10);
    let said = format!("{free} of {total} MB are free");
    if total < NEEDS {
        return Diagnosis::new(Severity::Bad, "memory", format!("{said}: a node needs {NEEDS} MB"));
    }
    if free < all {
        let words = format!("{said}: a node needs {NEEDS} MB, and {all} with {sessions} devices (sessions)");
        return Diagnosis::new(Severity::Warn, "memory", words);
    }
    Diagnosis::new(Severity::Ok, "memory", said)
}

fn processors() -> Diagnosis {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    match count {
        1 => Diagnosis::new(Severity::Warn, "processors", "there is one: a snapshot and a busy hour share it"),
        _ => Diagnosis::new(Severity::Ok, "processors", format!("there are {count}")),
    }
}

fn open_files(config: &Config) -> Diagnosis {
    match descriptors::fit_here(config) {
        Ok(fit) if fit < config.connections => {
            let words = format!(
                "they leave room for {fit} connections in place of {}: raise the limit (LimitNOFILE, ulimit -n)",
                config.connections
            );
            Diagnosis::new(Severity::Warn, "open files", words)
        }
        Ok(fit) => Diagnosis::new(Severity::Ok, "open files", format!("there is room for {fit} connections")),
        Err(error) => Diagnosis::new(Severity::Bad, "open files", error.to_string()),
    }
}

fn clock() -> Diagnosis {
    // SAFETY: the structure is plain numbers; with no modes set the call only reads.
    let state = unsafe {
        let mut asked: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut asked)
    };
    match state {
        -1 => Diagnosis::new(Severity::Warn, "clock", "whether a time service keeps it is not known"),
        UNSYNCHRONIZED => {
            let words =
                "no time service keeps it: a node whose clock is 5 s from the others' serves nothing (NTP, chrony)";
            Diagnosis::new(Severity::Warn, "clock", words)
        }
        _ => Diagnosis::new(Severity::Ok, "clock", "a time service keeps it"),
    }
}

fn keys(config: &Config) -> Diagnosis {
    if let Err(error) = KeyRing::read(&config.key_file) {
        return Diagnosis::new(Severity::Bad, "keys", error.to_string());
    }
    match private::readable_keys(config).as_slice() {
        [] => Diagnosis::new(Severity::Ok, "keys", "no other user of the machine can read them"),
        open => {
            let names: Vec<String> =
                open.iter().map(|(setting, path)| format!("{} ({setting})", path.display())).collect();
            let words =
                format!("other users of the machine can read or change {}: mode 0640 or 0600", names.join(", "));
            Diagnosis::new(Severity::Warn, "keys", words)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_held_against_what_a_node_and_its_devices_need() {
        let meminfo = "MemTotal:        2048000 kB\nMemFree:  1 kB\nMemAvailable:    1024000 kB\n";
        assert_eq!(megabytes(meminfo, "MemTotal:"), Some(2_000));
        assert_eq!(megabytes(meminfo, "MemAvailable:"), Some(1_000));
        assert_eq!(megabytes("", "MemTotal:"), None);
        assert_eq!(judge_memory(2_000, 1_000, 1_000).severity, Severity::Ok);
        assert_eq!(judge_memory(2_000, 1_000, 100_000).severity, Severity::Warn);
        assert_eq!(judge_memory(512, 400, 10).severity, Severity::Bad);
    }
}
