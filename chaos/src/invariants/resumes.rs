//! A device that writes before it resumes misses nothing either, and one whose resume was refused is told nothing: what
//! follows a gap would look as if it were all.

use super::sessions::check_gaps;
use crate::finding::Finding;
use crate::history::History;

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    for session in &history.sessions {
        if session.late && session.position.is_some() {
            check_gaps(history, session, &mut finding);
        }
        if let Some(refused) = session.refused {
            let told = session.rows().count() as u64;
            finding.require(told == refused, || {
                format!("session {} was told {} changes after its resume was refused", session.session, told - refused)
            });
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, row, wrong};
    use super::*;

    #[test]
    fn what_a_late_or_a_refused_resume_leaves_out_is_found() {
        assert_eq!(check(&good()).checked, 0);
        let mut late = good();
        (late.sessions[0].late, late.sessions[0].resumed) = (true, Some(0));
        late.sessions[0].early = vec![row(2)];
        late.finals[0].head = 3;
        late.finals[0].changes.push(row(3));
        late.sessions[0].told = vec![row(3)];
        assert!(check(&late).violations.is_empty(), "{:?}", check(&late));
        late.finals[0].changes[0].record = 7;
        wrong(&check(&late), "never told [1]");
        let mut refused = good();
        refused.sessions[0].refused = Some(2);
        assert!(check(&refused).violations.is_empty());
        refused.sessions[0].refused = Some(1);
        wrong(&check(&refused), "told 1 changes after its resume was refused");
    }
}
