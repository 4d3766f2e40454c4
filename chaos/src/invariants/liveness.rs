//! What must happen at the end: everything heals, converges, and takes a fresh write and read. A run says so itself.

use crate::finding::Finding;
use crate::history::History;

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding { checked: 1, ..Finding::default() };
    for trouble in &history.trouble {
        finding.wrong(format!("at {:.3} s: {}", trouble.us as f64 / 1e6, trouble.what));
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;
    use crate::history::Anomaly;

    #[test]
    fn trouble_is_reported() {
        assert!(check(&good()).violations.is_empty());
        let mut stuck = good();
        stuck.trouble.push(Anomaly { us: 1, what: "node 2 does not start".into() });
        wrong(&check(&stuck), "does not start");
    }
}
