//! A device is online while any node has a session of it: that one of two leaves takes neither it nor its role away.

use crate::finding::Finding;
use crate::history::History;

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    for seen in &history.twins {
        let (device, session) = (&seen.device, seen.session);
        finding.require(seen.online, || {
            let how = if seen.goodbye { " with a goodbye" } else { "" };
            format!("{device} is offline since one of its sessions left{how}, but session {session} is there")
        });
        // When the applied time stands still, an election's tries are over before leadership can have moved.
        if seen.master_before == seen.device && !seen.goodbye && !seen.time_ahead {
            finding.require(seen.master_after == seen.device, || {
                let master = &seen.master_after;
                format!("{device} was replaced by {master:?} as master when one of its sessions left, session {session} is there")
            });
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;
    use crate::history::TwinSeen;

    #[test]
    fn a_device_that_its_twin_took_away_is_found() {
        let seen = |online, goodbye, after: &str| {
            let mut history = good();
            let (before, after) = ("till-1".to_owned(), after.to_owned());
            let (device, master_before, master_after) = ("till-1".to_owned(), before, after);
            let (us, session, time_ahead) = (1, 1, false);
            history.twins.push(TwinSeen {
                us,
                device,
                session,
                online,
                goodbye,
                master_before,
                master_after,
                time_ahead,
            });
            check(&history)
        };
        assert_eq!(seen(true, false, "till-1").checked, 2);
        assert!(seen(true, false, "till-1").violations.is_empty());
        wrong(&seen(false, false, "till-1"), "is offline");
        wrong(&seen(true, false, "till-2"), "was replaced by \"till-2\"");
        assert!(seen(true, true, "till-2").violations.is_empty(), "it said goodbye");
    }
}
