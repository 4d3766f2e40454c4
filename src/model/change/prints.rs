//! A few bits of every change that is kept, for cursors: a cursor of another history, whose change with this number was
//! another one, is recognised for ever.
//!
//! Four bytes a change in memory, made of the rows and never written.

use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::Seq;
use crate::proto::Change;

#[derive(Debug, Default)]
pub(in crate::model) struct ChangePrints {
    /// The seq before the first print held.
    before: Seq,
    prints: VecDeque<u32>,
}

impl ChangePrints {
    pub(super) fn after(compacted_seq: Seq) -> Self {
        Self { before: compacted_seq, ..Self::default() }
    }

    pub(super) fn push(&mut self, change: &Change) {
        debug_assert_eq!(change.seq, self.before.get() + self.prints.len() as u64 + 1);
        self.prints.push_back(print_of(change));
    }

    /// Changes up to this one were dropped.
    pub(super) fn forget_to(&mut self, seq: Seq) {
        let count =
            usize::try_from(seq.get().saturating_sub(self.before.get())).unwrap_or(usize::MAX).min(self.prints.len());
        self.prints.drain(..count);
        self.before = Seq(self.before.get() + count as u64);
        if self.prints.capacity() > 2 * self.prints.len() + 1_024 {
            self.prints.shrink_to(self.prints.len() + 512);
        }
    }

    pub(super) fn get(&self, seq: Seq) -> Option<u32> {
        let at = seq.get().checked_sub(self.before.get() + 1)?;
        self.prints.get(usize::try_from(at).ok()?).copied()
    }
}

/// Never 0, which stands for "not known". Of fields one by one: a version that knows more fields makes the same print.
pub(crate) fn print_of(change: &Change) -> u32 {
    let numbers = [
        change.seq,
        change.committed_ms,
        change.audit_id,
        change.timestamp_ms,
        change.previous_seq,
        change.record_id.cast_unsigned(),
        u64::from(change.operation.cast_unsigned()),
    ];
    let texts = [change.device_id.as_bytes(), change.table_name.as_bytes(), change.request_id.as_bytes(), &change.data];
    let numbers = numbers.into_iter().fold(0, |hash, number| xxh3_64_with_seed(&number.to_be_bytes(), hash));
    let all = texts.into_iter().fold(numbers, |hash, text| xxh3_64_with_seed(text, hash));
    (all as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(seq: u64) -> Change {
        Change { seq, committed_ms: 5, device_id: "d".into(), table_name: "t".into(), ..Change::default() }
    }

    #[test]
    fn what_is_kept_is_found_by_its_number() {
        let mut prints = ChangePrints::after(Seq(3));
        for seq in 4..=5_000 {
            prints.push(&change(seq));
        }
        assert_eq!((prints.get(Seq(3)), prints.get(Seq(5_001))), (None, None));
        assert_eq!(
            (prints.get(Seq(4)), prints.get(Seq(5_000))),
            (Some(print_of(&change(4))), Some(print_of(&change(5_000))))
        );
        prints.forget_to(Seq(4_000));
        assert_eq!((prints.get(Seq(4_000)), prints.get(Seq(4_001))), (None, Some(print_of(&change(4_001)))));
        assert!(prints.prints.capacity() < 3_200);
        prints.push(&change(5_001));
        assert_eq!(prints.get(Seq(5_001)), Some(print_of(&change(5_001))));
    }

    /// Cursors outlive versions: what is hashed stays as it is.
    #[test]
    fn a_print_is_the_same_in_every_version() {
        let all = Change {
            audit_id: 7,
            timestamp_ms: 6,
            previous_seq: 2,
            record_id: -1,
            operation: 2,
            request_id: "r".into(),
            data: "{}".into(),
            after: 1,
            n: 9,
            ..change(4)
        };
        assert_eq!(print_of(&all), print_of(&Change { after: 0, n: 0, ..all.clone() }), "these say nothing of it");
        assert_eq!(print_of(&all), PRINT);
        for other in [
            Change { seq: 5, ..all.clone() },
            Change { committed_ms: 6, ..all.clone() },
            Change { data: "{ }".into(), ..all.clone() },
            Change { device_id: "dt".into(), table_name: String::new(), ..all.clone() },
        ] {
            assert_ne!(print_of(&other), PRINT);
        }
    }

    const PRINT: u32 = 642_317_637;
}
