//! How many file descriptors the process may have, and so how many connections: devices and strangers must never use up
//! those of Raft, of the disk and of the operator.

use crate::config::{Config, wrong};
use crate::limits;
use crate::model::error::Error;

/// Raises the soft limit of open files to the hard one, and gives the connections that it leaves room for. Error 5004 if
/// the sessions that were asked for do not fit.
pub(crate) fn connections(config: &Config) -> Result<usize, Error> {
    let fit = fit_here(config)?;
    if fit < config.connections {
        tracing::warn!(
            connections = fit,
            wanted = config.connections,
            "the limit of open files is too low for the connections that were asked for: raise it (LimitNOFILE, ulimit -n)"
        );
    }
    Ok(fit)
}

/// The same, without a word.
pub(crate) fn fit_here(config: &Config) -> Result<usize, Error> {
    fit(config, raise())
}

/// `limit`: of open files, if there is one.
fn fit(config: &Config, limit: Option<usize>) -> Result<usize, Error> {
    let Some(limit) = limit else { return Ok(config.connections) };
    let room = limit.saturating_sub(limits::DESCRIPTORS_RESERVED);
    if config.sessions_given && room < config.sessions {
        let needs = config.sessions + limits::DESCRIPTORS_RESERVED;
        let why = format!("{} do not fit: open files are limited to {limit}, and they need {needs}", config.sessions);
        return Err(wrong("sessions", &why));
    }
    // A limit that leaves nothing: half of it is the devices', which is loudly too few.
    Ok(config.connections.min(room.max(limit / 2)))
}

/// The limit of open files after it was raised as far as it goes; `None`: there is none, or it is not known.
#[cfg(unix)]
fn raise() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes into the struct that it is given, and nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return None;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the call reads the struct that it is given. Some systems refuse: then the soft limit stays.
    let now = match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => raised.rlim_cur,
        _ => limit.rlim_cur,
    };
    (now != libc::RLIM_INFINITY).then(|| usize::try_from(now).unwrap_or(usize::MAX))
}

#[cfg(not(unix))]
fn raise() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    fn config(more: &str) -> Config {
        let mut layers = Layers::default();
        let text = format!("node_id = 1\ndata_dir = \"d\"\nkey_file = \"k\"\njoin = [\"127.0.0.1:1\"]\n{more}");
        layers.file("node.toml", &text).unwrap();
        Config::from_layers(&layers).unwrap()
    }

    #[test]
    fn connections_leave_the_node_its_own_files() {
        let default = config("");
        assert_eq!(fit(&default, None).unwrap(), 21_024);
        assert_eq!(fit(&default, Some(65_536)).unwrap(), 21_024);
        assert_eq!(fit(&default, Some(4_096)).unwrap(), 4_096 - limits::DESCRIPTORS_RESERVED);
        assert_eq!(fit(&default, Some(1_024)).unwrap(), 512);
    }

    #[test]
    fn sessions_that_were_asked_for_and_do_not_fit_are_an_error() {
        let given = config("sessions = 2000");
        assert_eq!(fit(&given, Some(4_096)).unwrap(), 4_096 - limits::DESCRIPTORS_RESERVED);
        let error = fit(&given, Some(2_000)).unwrap_err();
        assert!(error.message.contains("setting sessions") && error.message.contains("2640"), "{error}");
    }
}
