//! Ports on the loopback address.

use std::io::ErrorKind;
use std::net::TcpListener;

use crate::cli::{CliResult, CommandError};

/// Below the range that systems take for outgoing connections: a restarted node must find its port free,
/// and a client that retries a dead port must not end up connected to itself.
const RANGE: std::ops::Range<u16> = 10_240..32_000;
const TRIES: usize = 1_000;

/// Free ports, chosen at random so that clusters started at the same time seldom meet.
pub(crate) fn free_ports(count: usize) -> CliResult<Vec<u16>> {
    // Held until all are found, so that no port is found twice.
    let mut held = Vec::with_capacity(count);
    for _ in 0..TRIES {
        if held.len() == count {
            break;
        }
        let port = rand::random_range(RANGE);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(CommandError::new(format!(
            "no {count} free ports were found between {} and {}",
            RANGE.start, RANGE.end
        )));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// An error that names the port if something else listens on it.
pub(super) fn must_be_free(port: u16, what: &str) -> CliResult {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            Err(CommandError::usage(format!("port {port} ({what}) is in use by another program")))
        }
        Err(e) => Err(CommandError::usage(format!("port {port} ({what}) cannot be used: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_ports_differ_and_are_free() {
        let mut ports = free_ports(6).unwrap();
        for port in &ports {
            must_be_free(*port, "test").unwrap();
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }

    #[test]
    fn a_taken_port_is_named() {
        let port = free_ports(1).unwrap()[0];
        let _held = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let failure = must_be_free(port, "gateway of node 2").unwrap_err();
        assert_eq!(failure.message, format!("port {port} (gateway of node 2) is in use by another program"));
    }
}
