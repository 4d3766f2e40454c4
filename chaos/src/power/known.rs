//! What the parent knows to be durable, from what the program said before it died, and whether it is all there.

use std::collections::BTreeMap;

use super::content::FIRST_TERM;

#[derive(Debug, Default)]
pub(super) struct AcknowledgedLog {
    /// Terms of acknowledged entries.
    entries: BTreeMap<u64, u64>,
    vote: u64,
    purged: u64,
    /// The rows must be at least as new.
    rows: u64,
    /// Acknowledged entries that were purged since the last look: they are in the rows.
    in_rows: u64,
    /// Terms of the entries that the program found, as far as it has said.
    found: BTreeMap<u64, u64>,
    /// How often the folder was opened, and how many acknowledged entries were looked at.
    pub opens: u64,
    pub checked: u64,
    /// The rest that was acknowledged.
    pub acknowledged: u64,
    pub violations: Vec<String>,
    /// Why a folder was not opened, or what storage failed with: a line each.
    pub refusal: Option<String>,
}

impl AcknowledgedLog {
    /// A line of the program.
    pub(super) fn hear(&mut self, line: &str) {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers: Vec<u64> = rest.split(' ').map_while(|word| word.parse().ok()).collect();
        match (what, &numbers[..]) {
            ("open", _) => {
                self.opens += 1;
                self.found.clear();
            }
            ("entries", [from, to, term]) => self.found.extend((*from..=*to).map(|index| (index, *term))),
            ("found", [purged, last, vote, applied, snapshot]) => {
                self.check(*purged, *last, *vote, *applied, *snapshot);
            }
            ("a", [first, last, term]) => {
                self.acknowledged += last - first + 1;
                self.entries.extend((*first..=*last).map(|index| (index, *term)));
            }
            ("v", [vote]) => self.vote = self.vote.max(*vote),
            // From here on these entries may be gone.
            ("T", [index]) => drop(self.entries.split_off(&(index + 1))),
            ("i" | "s", [index]) => self.rows = self.rows.max(*index),
            ("p", [index]) => {
                self.purged = self.purged.max(*index);
                let rest = self.entries.split_off(&(index + 1));
                self.in_rows += std::mem::replace(&mut self.entries, rest).len() as u64;
            }
            ("closed", _) => {}
            ("failed" | "stop" | "refused", _) => {
                let all = self.refusal.get_or_insert_default();
                if all.len() < 4_096 {
                    all.push_str(rest);
                    all.push('\n');
                }
            }
            ("bad", _) => self.violations.push(rest.to_owned()),
            _ => self.violations.push(format!("the program said: {line}")),
        }
    }

    fn broken(&mut self, what: String) {
        self.violations.push(what);
    }

    fn check(&mut self, purged: u64, last: u64, vote: u64, applied: u64, snapshot: u64) {
        if purged < self.purged {
            self.broken(format!("the purge up to {} is forgotten: it is {purged}", self.purged));
        }
        if vote < self.vote {
            self.broken(format!("the vote of term {} is forgotten: it is {vote}", self.vote));
        }
        if applied < purged {
            self.broken(format!("the rows at {applied} cannot be replayed: the log begins behind {purged}"));
        }
        if applied < self.rows {
            self.broken(format!("the rows are at {applied}, but {} were durable", self.rows));
        }
        if snapshot == 0 && self.rows > 0 {
            self.broken(format!("the snapshot at {} is gone", self.rows));
        }
        if snapshot > applied {
            self.broken(format!("the snapshot at {snapshot} is ahead of the rows at {applied}"));
        }
        let found = std::mem::take(&mut self.found);
        if !found.keys().copied().eq(purged + 1..=last) {
            self.broken(format!("the log from {} to {last} has a hole", purged + 1));
        }
        let mut newest = 0;
        for (index, term) in &found {
            if *term < newest || *term > vote.max(FIRST_TERM) {
                self.broken(format!("entry {index} is of term {term}, after {newest}, with a vote of {vote}"));
            }
            newest = *term;
        }
        let missing: Vec<String> = self
            .entries
            .range(purged + 1..)
            .filter(|(index, term)| found.get(index) != Some(*term))
            .map(|(index, term)| format!("{index} of term {term} (there: {:?})", found.get(index)))
            .collect();
        self.checked += self.entries.len() as u64 + std::mem::take(&mut self.in_rows);
        if !missing.is_empty() {
            let few = missing.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            self.broken(format!("{} acknowledged entries are lost: {few}", missing.len()));
        }
        self.entries = self.entries.split_off(&(purged + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(lines: &[&str]) -> Vec<String> {
        let mut known = AcknowledgedLog::default();
        lines.iter().for_each(|line| known.hear(line));
        known.violations
    }

    #[test]
    fn what_is_there_is_no_violation() {
        let said = ["open", "found 0 0 0 0 0", "a 1 3 8", "a 4 9 8", "T 6", "a 7 8 9", "v 9", "s 4", "p 2"];
        let end = ["open", "entries 3 6 8", "entries 7 9 9", "found 2 9 9 4 4"];
        assert_eq!(hear(&[&said[..], &end[..]].concat()), [""; 0]);
        // More than was told may have become durable.
        let end = ["open", "entries 6 6 8", "entries 7 7 9", "entries 8 9 9", "found 5 9 10 7 4"];
        assert_eq!(hear(&[&said[..], &end[..]].concat()), [""; 0]);
    }

    #[test]
    fn each_loss_is_seen() {
        let said = ["open", "found 0 0 0 0 0", "a 1 9 8", "v 9", "s 4", "p 2"];
        let losses: [(&[&str], &str); 8] = [
            (&["entries 3 8 8", "found 2 8 9 4 4"], "lost"),
            (&["entries 3 8 8", "entries 9 9 9", "found 2 9 9 4 4"], "lost"),
            (&["entries 3 4 8", "entries 6 9 8", "found 2 9 9 4 4"], "hole"),
            (&["entries 3 9 8", "found 2 9 8 4 4"], "vote"),
            (&["entries 2 9 8", "found 1 9 9 4 4"], "purge"),
            (&["entries 3 9 8", "found 2 9 9 3 3"], "durable"),
            (&["entries 3 9 8", "found 2 9 9 4 0"], "gone"),
            (&["entries 6 9 8", "found 5 9 9 4 4"], "replayed"),
        ];
        for (found, word) in losses {
            let lines = [&said[..], &["open"][..], found].concat();
            let violations = hear(&lines);
            assert!(violations.iter().any(|what| what.contains(word)), "{found:?}: {violations:?}");
        }
        assert_eq!(hear(&["bad the rows are torn"]), ["the rows are torn"]);
    }
}
