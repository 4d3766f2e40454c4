//! Who led and who was master, from when to when.

use serde::Serialize;

use crate::history::History;

/// Spans in the picture, at most: thinner ones cannot be seen anyway.
const MOST: usize = 400;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LaneSpan {
    pub who: String,
    pub from_us: u64,
    pub to_us: u64,
}

/// The leaders in the order of their terms; each leads until the next one does, as far as anybody noted.
pub(super) fn led(history: &History, until_us: u64) -> Vec<LaneSpan> {
    let mut led: Vec<_> = history.led.iter().map(|led| (led.us, led.raft_term, format!("node {}", led.node))).collect();
    led.sort_unstable();
    spans(led, until_us)
}

/// The masters in the order of their terms, from the first node that knew.
pub(super) fn masters(history: &History, until_us: u64) -> Vec<LaneSpan> {
    let mut known: Vec<_> = history.samples.iter().map(|s| (s.us, s.master_term, s.master.as_str())).collect();
    known.sort_unstable();
    spans(known.into_iter().filter(|(_, _, who)| !who.is_empty()), until_us)
}

fn spans(news: impl IntoIterator<Item = (u64, u64, impl Into<String>)>, until_us: u64) -> Vec<LaneSpan> {
    let mut spans: Vec<LaneSpan> = Vec::new();
    let mut newest = None;
    for (us, term, who) in news {
        // A node that lags behind tells old news.
        if newest.is_some_and(|newest| term <= newest) {
            continue;
        }
        newest = Some(term);
        let who = who.into();
        match spans.last_mut() {
            Some(last) if last.who == who => continue,
            Some(last) => last.to_us = us,
            None => {}
        }
        spans.push(LaneSpan { who, from_us: us, to_us: until_us });
    }
    spans
}

/// No more than can be seen: of very many spans, who ruled at each of [`MOST`] moments.
pub(super) fn thin(spans: Vec<LaneSpan>, until_us: u64) -> Vec<LaneSpan> {
    if spans.len() <= MOST {
        return spans;
    }
    let mut thin: Vec<LaneSpan> = Vec::new();
    for step in 0..MOST as u64 {
        let at = |step: u64| (u128::from(until_us) * u128::from(step) / MOST as u128) as u64;
        let (from_us, to_us) = (at(step), at(step + 1));
        let ruling = spans.partition_point(|span| span.from_us <= from_us).checked_sub(1).and_then(|i| spans.get(i));
        let Some(ruling) = ruling else { continue };
        match thin.last_mut() {
            Some(last) if last.who == ruling.who => last.to_us = to_us,
            _ => thin.push(LaneSpan { who: ruling.who.clone(), from_us, to_us }),
        }
    }
    thin
}
