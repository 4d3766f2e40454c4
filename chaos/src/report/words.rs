//! How things are said to people.

use super::ReportData;
use crate::checker::Verdict;
use crate::finding::Finding;

/// What must hold, in the order in which people care, and in their words.
const INVARIANTS: [(&str, &str); 29] = [
    ("exactly_once", "Every write that was confirmed is there once, as it was sent. What was refused is not there."),
    ("one_log", "All nodes hold the same changes, in the same order, with none missing."),
    ("linearizable", "Every record behaves as if there were only one copy of it, on one machine."),
    ("no_stale_read", "No read is older than what somebody was told before it began."),
    ("sessions", "Every connected device was told every change once and in order, also after it came back."),
    ("resumes", "Who wrote before it came back missed nothing, and who could not come back was told nothing."),
    ("record_order", "No connected device heard an older state of a record after a newer one."),
    ("queues", "Every device's own queue was taken once and in its order, however often it was sent."),
    ("rights", "Nobody was shown, or could write, what an administrator had taken from its class, on any node."),
    ("revoked", "A token that was taken back did nothing more, and nobody else was refused for it."),
    ("pairing", "A pairing's code let one device in at most, and only after somebody had approved it."),
    (
        "removed_tables",
        "A table that was removed was gone for everybody, and the next one of its name held only its own.",
    ),
    ("newcomers", "Nothing was lost that a device sent before anybody knew it."),
    (
        "inserts",
        "Two devices that used the same number lost nothing: one is the record, the other is kept as a conflict.",
    ),
    ("presence", "A device that was still connected was never taken for gone because another connection of it ended."),
    ("own_order", "What a device sent without waiting for answers was applied in the order in which it was sent."),
    ("syncs", "Every sync sent all records or changes that it had to, each once."),
    ("time_syncs", "Whoever asked for what changed since a time that Tillsync gave missed nothing."),
    ("stores", "Programs that know only the documented interface ended with exactly what the nodes hold."),
    ("sync_states", "How far each device has synced is recorded as that device said."),
    ("masters", "There was never more than one master, and each took over from the one before."),
    ("raft_leaders", "Never did two nodes lead in the same term."),
    ("digests", "Nodes that had come equally far held exactly the same data, at any time."),
    ("versions", "Programs of two releases made the same of everything, and none used what another did not know."),
    ("liveness", "After the last fault everything healed, agreed, and took new writes and reads."),
    (
        "honest",
        "Beside the attack no honest device was refused, left without an answer, cut off, or kept waiting too long.",
    ),
    ("memory", "Under attack no node took much more memory than beside honest devices only."),
    ("attackers", "The attackers were busy in every way and held their sockets, and nothing of them stayed behind."),
    ("availability", "While most nodes were up and connected, writes never paused for longer than the bound."),
];

/// The invariants of a verdict, the most important first, each with what it says.
pub(crate) fn invariants(verdict: &Verdict) -> Vec<(&'static str, &'static str, &Finding)> {
    let place = |name: &str| INVARIANTS.iter().position(|(known, _)| *known == name);
    let mut all: Vec<_> = verdict
        .invariants
        .iter()
        .map(|(name, finding)| {
            let says = place(name).and_then(|at| INVARIANTS.get(at)).map_or("", |(_, says)| says);
            (*name, says, finding)
        })
        .collect();
    all.sort_by_key(|(name, ..)| place(name).unwrap_or(usize::MAX));
    all
}

/// What a loss would show in.
const LOSS: [&str; 4] = ["exactly_once", "one_log", "linearizable", "digests"];

/// The verdict, the first sentence that anybody reads.
pub(crate) fn headline(told: &ReportData<'_>) -> String {
    let broken = told.verdict.broken();
    if told.figures.ok == 0 {
        return "This run proves nothing: no operation succeeded.".into();
    }
    if broken.is_empty() {
        return if told.history.finals.is_empty() {
            "Nothing wrong was seen, but the nodes' data was not compared.".into()
        } else {
            "Nothing was lost.".into()
        };
    }
    if LOSS.iter().any(|name| broken.contains(name)) {
        return "BROKEN: data was lost, doubled, or differs between nodes.".into();
    }
    if broken == ["availability"] {
        return "Nothing was lost, but writes paused for too long.".into();
    }
    let all = told.verdict.invariants.len();
    format!("BROKEN: {} of {all} things that must hold did not.", broken.len())
}

/// The rest of the verdict: how much was done, and the longest pause.
pub(crate) fn summary(told: &ReportData<'_>) -> String {
    let figures = &told.figures;
    let mut text = count(figures.operations, "operation");
    let faults: u64 = figures.faults.iter().filter(|row| row.name != NO_MAJORITY).map(|row| row.times).sum();
    if faults > 0 {
        text += &format!(", {}", count(faults, "fault"));
    }
    match figures.gap {
        Some(gap) => text += &format!(", longest time without a write {}.", took_us(gap.us)),
        None => text += ".",
    }
    if let Some(gap) = figures.gap_without_majority.filter(|gap| figures.gap.is_none_or(|with| with.us < gap.us)) {
        text += &format!(" While most nodes were gone, nothing could be written for {}.", took_us(gap.us));
    }
    text
}

/// The band that says that nothing could be written.
pub(crate) const NO_MAJORITY: &str = "no_majority";

/// A fault's name for people.
pub(crate) fn fault(name: &str) -> String {
    match name {
        NO_MAJORITY => "no majority".into(),
        "kill_all" => "kill of all nodes".into(),
        "power_cut_all" => "power cut of all nodes".into(),
        _ => name.replace('_', " "),
    }
}

/// `48,210 operations`
pub(crate) fn count(number: u64, of: &str) -> String {
    format!("{} {of}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// `48,210`
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A length of time: `210 ms`, `3.1 s`, `2 min 5 s`.
pub(crate) fn took_us(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{} min {} s", us / 60_000_000, us / 1_000_000 % 60),
        _ => format!("{} h {} min", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

/// A moment of the run: `12.345 s`, `4:05.1`, `1:04:05`.
pub(crate) fn at_us(us: u64) -> String {
    let seconds = us / 1_000_000;
    match seconds {
        0..60 => format!("{:.3} s", us as f64 / 1e6),
        60..3_600 => format!("{}:{:02}.{}", seconds / 60, seconds % 60, us / 100_000 % 10),
        _ => format!("{}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60),
    }
}

/// At most so many characters.
pub(crate) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
