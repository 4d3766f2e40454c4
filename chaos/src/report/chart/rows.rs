//! The rows of the picture: faults, who led, who was master.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Chart, LANE, LEFT, PLOT, SPACE};
use crate::history::FaultWindow;
use crate::report::ReportData;
use crate::report::lanes::LaneSpan;
use crate::report::page::esc;
use crate::report::words::{self, at_us, took_us};

/// Rows of faults, at most.
const FAULT_LANES: usize = 6;
/// Rows of leaders, at most.
const LEADERS: usize = 9;
/// Colours that faults and masters take turns in.
const COLOURS: usize = 8;
/// Width of a letter.
const LETTER: f64 = 6.6;

impl Chart {
    /// Lanes of faults; the columns that they throw on the parts below.
    pub(super) fn faults(&mut self, bands: &[&FaultWindow], all: usize) -> Vec<(String, f64, f64)> {
        if bands.is_empty() {
            return Vec::new();
        }
        let mut names: Vec<&str> = bands.iter().map(|band| band.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let class = |name: &str| match names.iter().position(|known| *known == name) {
            _ if name == words::NO_MAJORITY => "gone".to_owned(),
            place => format!("f{}", place.unwrap_or(0) % COLOURS),
        };
        let begin = self.y;
        self.label(begin + 12.0, "faults");
        // Where each lane's last band and its name end.
        let mut ends: Vec<f64> = Vec::new();
        let mut columns = Vec::new();
        for band in bands {
            let (x, name) = (self.x(band.from_us), words::fault(&band.name));
            let lane = match ends.iter().position(|end| *end <= x) {
                Some(lane) => lane,
                None if ends.len() < FAULT_LANES => {
                    ends.push(0.0);
                    ends.len() - 1
                }
                None => FAULT_LANES - 1,
            };
            let y = begin + lane as f64 * LANE;
            let lasted = took_us(band.to_us.saturating_sub(band.from_us));
            let title = format!("{name}, {} for {lasted}: {}", at_us(band.from_us), words::cut(&band.what, 200));
            let free = ends[lane] <= x;
            let width =
                self.bar(&format!("band {}", class(&band.name)), (band.from_us, band.to_us), y, LANE - 3.0, &title);
            let needs = name.chars().count() as f64 * LETTER + 6.0;
            let mut end = x + width + 1.0;
            // The name stands in the band or right of it; with few faults, always.
            if free && x + needs < LEFT + PLOT && (bands.len() <= 60 || needs <= width) {
                let _ = write!(
                    self.out,
                    "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x + 3.0,
                    y + 11.0,
                    esc(&name)
                );
                end = end.max(x + needs);
            }
            ends[lane] = ends[lane].max(end);
            columns.push((class(&band.name), x, width));
        }
        self.y = begin + ends.len() as f64 * LANE + 4.0;
        if all > bands.len() {
            self.label(begin + 12.0 + LANE, &format!("{} of {all}", bands.len()));
        }
        columns
    }

    pub(super) fn leaders(&mut self, told: &ReportData<'_>, led: &[LaneSpan]) {
        self.y += SPACE;
        let mut rows: Vec<String> = told.about.nodes.iter().map(|node| format!("node {node}")).collect();
        let unknown: Vec<_> = led.iter().map(|span| &span.who).filter(|who| !rows.contains(who)).cloned().collect();
        rows.extend(unknown);
        rows.sort();
        rows.dedup();
        for who in rows.iter().take(LEADERS) {
            self.label(self.y + 12.0, &format!("{who} led"));
            let (y, middle) = (self.y, self.y + LANE / 2.0 - 1.0);
            let _ = write!(self.out, "<path class=\"grid\" d=\"M{LEFT} {middle:.1}h{PLOT}\"/>");
            for span in led.iter().filter(|span| span.who == *who) {
                let title = format!("{who} led from {}", at_us(span.from_us));
                self.bar("led", (span.from_us, span.to_us), y, LANE - 3.0, &title);
            }
            self.y += LANE;
        }
    }

    pub(super) fn masters(&mut self, masters: &[LaneSpan]) {
        if masters.is_empty() {
            return;
        }
        self.y += 6.0;
        self.label(self.y + 12.0, "master");
        let mut colours = BTreeMap::new();
        for span in masters {
            let next = colours.len() % COLOURS;
            let colour = *colours.entry(span.who.as_str()).or_insert(next);
            let title = format!("{} was master from {}", span.who, at_us(span.from_us));
            let (x, y) = (self.x(span.from_us), self.y);
            let width = self.bar(&format!("band f{colour}"), (span.from_us, span.to_us), y, LANE - 3.0, &title);
            if span.who.chars().count() as f64 * LETTER + 6.0 <= width {
                let _ = write!(
                    self.out,
                    "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x + 3.0,
                    y + 11.0,
                    esc(&span.who)
                );
            }
        }
        self.y += LANE;
    }
}
