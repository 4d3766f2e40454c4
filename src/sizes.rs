//! How many bytes things have that follow one another: the entries of the log, the changes that are kept.

use std::collections::VecDeque;

/// Of entries under dense indexes: the oldest are dropped, and the newest may be taken back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sizes {
    /// Of the oldest entry.
    first: u64,
    /// What all entries that were ever counted have, up to the one before the oldest.
    before: u64,
    /// The same, up to each entry.
    ends: VecDeque<u64>,
}

impl Sizes {
    /// Appends the next entry; the first one of an empty log may have any index.
    pub(crate) fn push(&mut self, index: u64, len: usize) {
        if self.ends.is_empty() {
            self.first = index;
        }
        self.ends.push_back(self.end() + len as u64);
    }

    pub(crate) fn truncate_after(&mut self, index: Option<u64>) {
        let kept = index.map_or(0, |index| (index + 1).saturating_sub(self.first));
        self.ends.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
    }

    pub(crate) fn purge(&mut self, index: u64) {
        while self.first <= index
            && let Some(end) = self.ends.pop_front()
        {
            self.before = end;
            self.first += 1;
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.end() - self.before
    }

    /// Of all entries with a greater index.
    pub(crate) fn bytes_behind(&self, index: u64) -> u64 {
        match (index + 1).saturating_sub(self.first) {
            0 => self.bytes(),
            count => self.end() - self.ends.get(count as usize - 1).copied().unwrap_or_else(|| self.end()),
        }
    }

    /// The oldest entry behind which at most `bytes` are; `None`: all entries have no more than that.
    pub(crate) fn leaves(&self, bytes: u64) -> Option<u64> {
        let most = self.end().checked_sub(bytes)?;
        if most <= self.before {
            return None;
        }
        Some(self.first + self.ends.partition_point(|end| *end < most) as u64)
    }

    fn end(&self) -> u64 {
        self.ends.back().copied().unwrap_or(self.before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Truncate(u64),
        Purge(u64),
        Leaves(u64),
        Behind(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..100).prop_map(Step::Push),
            1 => (0u64..12).prop_map(Step::Truncate),
            1 => (0u64..12).prop_map(Step::Purge),
            2 => (0u64..400).prop_map(Step::Leaves),
            2 => (0u64..1_200).prop_map(Step::Behind),
        ]
    }

    fn behind(entries: &VecDeque<(u64, u64)>, index: u64) -> u64 {
        entries.iter().filter(|(at, _)| *at > index).map(|(_, len)| len).sum()
    }

    proptest! {
        /// Held against a list of all entries.
        #[test]
        fn it_counts_what_is_there(first in 0u64..1_000, steps in prop::collection::vec(step(), 0..200)) {
            let (mut sizes, mut entries, mut next) = (Sizes::default(), VecDeque::new(), first);
            for step in steps {
                match step {
                    Step::Push(len) => {
                        sizes.push(next, len);
                        entries.push_back((next, len as u64));
                        next += 1;
                    }
                    Step::Truncate(count) => {
                        let gone = count.min(entries.len() as u64);
                        next -= gone;
                        entries.truncate(entries.len() - gone as usize);
                        sizes.truncate_after(next.checked_sub(1));
                    }
                    Step::Purge(count) => {
                        let gone = count.min(entries.len() as u64) as usize;
                        if let Some((index, _)) = gone.checked_sub(1).and_then(|last| entries.get(last)).copied() {
                            sizes.purge(index);
                            entries.drain(..gone);
                        }
                    }
                    Step::Behind(index) => prop_assert_eq!(sizes.bytes_behind(index), behind(&entries, index)),
                    Step::Leaves(bytes) => {
                        let behind = |index| behind(&entries, index);
                        let expected = if sizes.bytes() <= bytes {
                            None
                        } else {
                            entries.iter().map(|(index, _)| *index).find(|index| behind(*index) <= bytes)
                        };
                        prop_assert_eq!(sizes.leaves(bytes), expected);
                    }
                }
                prop_assert_eq!(sizes.bytes(), entries.iter().map(|(_, len)| len).sum::<u64>());
            }
        }
    }
}
