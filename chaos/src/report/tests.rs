use super::*;
use crate::checker::{Expectations, check};
use crate::cost;
use crate::history::{FaultWindow, OpOutcome};
use crate::invariants::samples::good;
use series::Series;
use std::time::Duration;

fn about() -> RunDescription {
    RunDescription {
        scenario: "a test".into(),
        replay: "chaos run a-test --seed 7".into(),
        nodes: vec![1, 2],
        duration_ms: 1,
        gap_ms: 5_000,
        ..RunDescription::default()
    }
}

fn verdict(history: &History) -> Verdict {
    check(history, Expectations { gap: Duration::from_secs(5) })
}

fn page_of(about: &RunDescription, history: &History) -> String {
    let verdict = verdict(history);
    page::of(&ReportData::of(about, history, &verdict), &[])
}

#[test]
fn a_run_in_which_all_held_says_so_first() {
    let page = page_of(&about(), &good());
    let (says, figures) = (page.find("Nothing was lost.").unwrap(), page.find("In figures").unwrap());
    assert!(says < figures && page.contains("5 operations, 1 fault, longest time without a write 10 µs."));
    assert!(!page.contains("BROKEN"), "{page}");
    assert!(!page.contains("To see it again"));
    // Each invariant has its words.
    let held = verdict(&good());
    assert!(words::invariants(&held).iter().all(|(_, says, _)| !says.is_empty()));
    assert_eq!(page.matches(">holds<").count() + page.matches(">not checked<").count(), held.invariants.len());
}

#[test]
fn a_broken_run_shows_what_proves_it_and_how_to_see_it_again() {
    let mut lost = good();
    lost.ops[1].version = Some(7);
    let page = page_of(&about(), &lost);
    assert!(page.contains("BROKEN: data was lost"), "{page}");
    assert!(page.contains("chaos run a-test --seed 7") && page.contains("To see it again"));
    assert!(page.contains("operation 2 was acknowledged as change Some(7)"));
    assert!(page.contains("<td>write &quot;v2&quot; to stock/1 if it is version 1</td>"));

    let mut slow = good();
    slow.ops[1].returned_us = 9_000_000;
    let page = page_of(&about(), &slow);
    assert!(page.contains("Nothing was lost, but writes paused for too long."), "{page}");

    let mut told_twice = good();
    told_twice.sessions[0].told.swap(0, 1);
    let page = page_of(&about(), &told_twice);
    assert!(page.contains("1 of 29 things that must hold did not") && page.contains("session 1 of till-1 on node 1"));
}

#[test]
fn a_run_without_an_answer_proves_nothing() {
    let page = page_of(&about(), &History::default());
    assert!(page.contains("This run proves nothing") && page.contains("<header class=\"bad\">"), "{page}");
}

#[test]
fn what_others_wrote_cannot_become_part_of_the_page() {
    let evil = "</title><script>alert('1')</script>\u{1b}[31m";
    let mut history = good();
    history.ops[1].version = Some(7);
    history.ops[1].device = evil.into();
    history.bands[0].name = evil.into();
    history.bands[0].what = evil.into();
    for sample in &mut history.samples {
        sample.master = evil.into();
    }
    let about = RunDescription { scenario: evil.into(), notes: vec![evil.into()], replay: evil.into(), ..about() };
    let page = page_of(&about, &history);
    assert_eq!(page.matches("<script").count(), 1, "only our own");
    assert!(!page.contains("alert('1')") && !page.contains('\u{1b}'));
    for outside in ["http://", "https://", "url(", "@import", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn every_operation_is_counted_once() {
    let mut history = cost::history(2_000);
    history.ops[3].outcome = OpOutcome::Failed;
    history.ops[5].outcome = OpOutcome::Unknown;
    history.ops[5].returned_us = u64::MAX;
    let verdict = verdict(&history);
    let about = about();
    let told = ReportData::of(&about, &history, &verdict);
    for series in [Series::by_second(&history, told.until_us), Series::for_picture(&history, told.until_us)] {
        let sum = |of: &[u64]| of.iter().sum::<u64>();
        assert_eq!((sum(&series.ok), sum(&series.failed), sum(&series.unknown)), (1_998, 1, 1));
        assert!(series.len() as u64 <= series::BARS);
    }
    let json = json::of(&told);
    assert_eq!(json["figures"]["operations"], 2_000);
    assert_eq!(json["series"]["ok"][0], 1_998);
}

#[test]
fn a_long_run_gives_a_page_of_bounded_size() {
    let mut history = cost::history(100_000);
    for n in 0..5_000u64 {
        let (from_us, to_us) = (n * 2_000, n * 2_000 + 900);
        let (name, what) = (format!("fault_{}", n % 30), "x".repeat(5_000));
        history.bands.push(FaultWindow { name, what, from_us, to_us, majority: n % 7 > 0 });
        history.led.push(crate::history::LeaderClaim { us: from_us, node: n % 5 + 1, raft_term: n + 1 });
    }
    let mut verdict = Verdict::default();
    let finding = verdict.invariants.entry("exactly_once").or_default();
    for n in 0..1_000 {
        finding.wrong(format!("operation {n} {}", "y".repeat(100_000)));
    }
    let about = about();
    let told = ReportData::of(&about, &history, &verdict);
    let page = page::of(&told, &[]);
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    assert!(serde_json::to_string(&json::of(&told)).unwrap().len() < 12_000_000);
}

#[test]
fn a_folder_is_read_as_it_was_written_and_the_reports_lie_beside() {
    let folder = tempfile::tempdir().unwrap();
    let (about, history) = (about(), good());
    folder::save(folder.path(), &about, &history).unwrap();
    std::fs::write(folder.path().join("node-2.log"), "the last words of node 2 & <all>").unwrap();
    let (read, same) = folder::load(folder.path()).unwrap();
    assert_eq!((read.unwrap().scenario, same), (about.scenario.clone(), history.clone()));
    let page = write(folder.path(), &about, &history, &verdict(&history)).unwrap();
    let text = std::fs::read_to_string(page).unwrap();
    assert!(text.contains("the last words of node 2 &amp; &lt;all&gt;"));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(json["holds"], true);
    assert!(folder::load(&folder.path().join("nothing")).unwrap_err().contains("nothing"));
}

#[test]
fn leaders_and_masters_follow_each_other_and_old_news_is_passed_over() {
    let mut history = good();
    history.led.push(crate::history::LeaderClaim { us: 3, node: 1, raft_term: 1 });
    let led = lanes::led(&history, 100);
    assert_eq!(led.iter().map(|span| span.who.as_str()).collect::<Vec<_>>(), ["node 1", "node 2"]);
    assert_eq!((led[0].to_us, led[1].to_us), (2, 100));
    let many: Vec<_> =
        (0..5_000u64).map(|n| lanes::LaneSpan { who: format!("{}", n % 2), from_us: n, to_us: n + 1 }).collect();
    assert!(lanes::thin(many, 5_000).len() <= 400);
}

#[test]
fn numbers_are_said_as_people_say_them() {
    assert_eq!((words::thousands(48_210), words::thousands(7)), ("48,210".into(), "7".into()));
    assert_eq!((words::count(1, "fault"), words::count(1_000, "fault")), ("1 fault".into(), "1,000 faults".into()));
    let took = [900, 1_500, 210_000, 3_100_000, 125_000_000, 7_260_000_000].map(words::took_us);
    assert_eq!(took, ["900 µs", "1.5 ms", "210 ms", "3.1 s", "2 min 5 s", "2 h 1 min"]);
    assert_eq!((words::at_us(12_345_000), words::at_us(245_100_000)), ("12.345 s".into(), "4:05.1".into()));
    assert_eq!((words::cut("äöü", 2), words::cut("äö", 2)), ("äö…".into(), "äö".into()));
}
