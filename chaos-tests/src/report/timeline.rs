//! The picture of a run: what was broken when, and what it did to throughput, lag, freshness, leaders, nodes and operations.

use super::svg::Picture;
use crate::check::outcome::grouped;
use crate::check::{Judgement, Run, Sample};
use crate::history::Kind;
use std::collections::BTreeMap;

const WIDTH: f64 = 1180.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 1160.0;
const CHART: f64 = 64.0;
const ROW: f64 = 17.0;
/// Points of a curve, and boxes of a row of operations.
const BINS: usize = 340;
/// Rows that are shown of each kind; more are named.
const MOST_ROWS: usize = 12;
const COLORS: [&str; 10] = [
    "#3b7dd8", "#e0913a", "#3fa66b", "#a65fc4", "#c9574f", "#3aa7b5", "#8f7d3e", "#d46a9f", "#6f7bd9", "#7a8794",
];

/// Draws a run.
pub fn draw(run: &Run, judgement: &Judgement) -> String {
    let mut timeline = Timeline::new(run);
    timeline.faults(judgement);
    let top = timeline.y;
    timeline.chart("throughput", "rows/s", "rate", |s| s.rows_per_s, mean);
    timeline.chart("lag", "records", "lag", |s| s.lag, most);
    timeline.chart("freshness", "ms", "fresh", |s| s.freshness_ms, most);
    timeline.leaders();
    timeline.nodes();
    timeline.operations();
    timeline.axis(top);
    let height = timeline.y;
    let bands = std::mem::take(&mut timeline.bands);
    for (from, to) in bands {
        timeline
            .picture
            .band("band", (from, top), (to - from, height - top - 22.0));
    }
    timeline
        .picture
        .finish(WIDTH, height, "What happened in the run, by time")
}

/// The colour of each node that leads.
pub fn colors(run: &Run) -> BTreeMap<String, &'static str> {
    let led = run
        .facts
        .samples
        .iter()
        .flat_map(|(_, s)| s.shards.iter().filter_map(|shard| shard.leader.clone()));
    let names: std::collections::BTreeSet<String> = run.meta.nodes.iter().cloned().chain(led).collect();
    names
        .into_iter()
        .enumerate()
        .map(|(at, name)| (name, COLORS[at % COLORS.len()]))
        .collect()
}

type Merge = fn(&[f64]) -> f64;

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

struct Timeline<'r> {
    run: &'r Run,
    picture: Picture,
    /// Milliseconds from the left to the right.
    span: f64,
    y: f64,
    /// Where something was broken, from x to x.
    bands: Vec<(f64, f64)>,
}

impl<'r> Timeline<'r> {
    fn new(run: &'r Run) -> Self {
        // What is told of the end is read in a moment and shown nowhere, so the picture ends before.
        let told = |f: &str| matches!(f, "log" | "log-lost" | "rows" | "rejects" | "ledger");
        let last = run
            .entries
            .iter()
            .rev()
            .find(|e| !told(&e.f))
            .map_or(1, |e| e.time / 1_000_000);
        Self {
            run,
            picture: Picture::default(),
            span: last.max(1) as f64,
            y: 30.0,
            bands: Vec::new(),
        }
    }

    fn x(&self, ms: u64) -> f64 {
        LEFT + (RIGHT - LEFT) * (ms as f64 / self.span).min(1.0)
    }

    fn at(&self, entry: usize) -> f64 {
        self.x(self.run.ms(entry))
    }

    fn bin(&self, entry: usize) -> usize {
        let share = self.run.ms(entry) as f64 / self.span;
        ((share * BINS as f64) as usize).min(BINS - 1)
    }

    fn bin_x(bin: usize) -> f64 {
        LEFT + (RIGHT - LEFT) * bin as f64 / BINS as f64
    }

    fn name(&mut self, name: &str, y: f64) {
        self.picture.text("name", (14.0, y), "start", name);
    }

    /// Bars by fault, lines where all was healed and caught up, and pointers to what is wrong.
    fn faults(&mut self, judgement: &Judgement) {
        let marks = [
            ("healed", self.run.facts.healed().last()),
            ("caught up", self.run.facts.caught_up().last()),
        ];
        let marks: Vec<(&str, f64)> = marks
            .into_iter()
            .filter_map(|(name, entry)| Some((name, self.at(*entry?))))
            .collect();
        self.name("faults", self.y + 13.0);
        // Bars that overlap are drawn below each other.
        let mut rows: Vec<f64> = Vec::new();
        for fault in &self.run.facts.faults {
            let (from, to) = (self.at(fault.begin), fault.end.map_or(RIGHT, |end| self.at(end)));
            let width = (to - from).max(3.0);
            let text = format!("{} {}", fault.fault, fault.target.trim_start_matches("node "))
                .trim()
                .to_owned();
            let room = text.len() as f64 * 6.4 + 8.0;
            let inside = room < width;
            let behind = !inside && to + room < RIGHT;
            let (left, free) = match (inside, behind) {
                (true, _) => (from, to),
                (false, true) => (from, to + room),
                (false, false) => (from - room, to),
            };
            let row = rows.iter().position(|taken| *taken < left).unwrap_or(rows.len());
            match rows.get_mut(row) {
                Some(taken) => *taken = free,
                None => rows.push(free),
            }
            let y = self.y + row as f64 * (ROW + 3.0);
            let took = super::duration(fault.end.map_or(0, |end| self.run.ms(end) - self.run.ms(fault.begin)));
            self.picture.rect(
                "fault",
                (from, y),
                (width, ROW),
                &format!("{text}, {took}, entry {}", fault.begin),
            );
            match inside {
                true => self.picture.text("fault-name", (from + 5.0, y + 12.5), "start", &text),
                false if behind => self.picture.text("soft", (to + 5.0, y + 12.5), "start", &text),
                false => self.picture.text("soft", (from - 5.0, y + 12.5), "end", &text),
            }
            self.bands.push((from, from + width));
        }
        for (at, (name, x)) in marks.iter().enumerate() {
            self.picture.line(
                "mark",
                (*x, 22.0),
                (*x, self.y + rows.len().max(1) as f64 * (ROW + 3.0)),
            );
            // Two marks that are close stand on both sides of their lines.
            let anchor = if at == 0 { "end" } else { "start" };
            let shift = if at == 0 { -4.0 } else { 4.0 };
            match x + 60.0 > RIGHT {
                true => self
                    .picture
                    .text("mark-name", (x - 4.0, if at == 0 { 28.0 } else { 16.0 }), "end", name),
                false => self.picture.text("mark-name", (x + shift, 28.0), anchor, name),
            }
        }
        self.y += rows.len().max(1) as f64 * (ROW + 3.0) + 10.0;
        self.findings(judgement);
    }

    fn findings(&mut self, judgement: &Judgement) {
        let findings: Vec<_> = judgement.outcomes.iter().flat_map(|o| &o.findings).collect();
        if findings.is_empty() {
            return;
        }
        self.name("what is wrong", self.y + 12.0);
        for finding in findings {
            // The last moment that the picture shows: what is told of the end is behind it.
            let shown = finding
                .entries
                .iter()
                .rfind(|entry| self.run.ms(**entry as usize) as f64 <= self.span);
            if let Some(entry) = shown.or(finding.entries.first()) {
                let x = self.at(*entry as usize);
                self.picture
                    .pointer("finding", (x, self.y + 13.0), &finding.to_string());
            }
        }
        self.y += 26.0;
    }

    fn chart(&mut self, name: &str, unit: &str, color: &str, of: fn(&Sample) -> Option<f64>, merge: Merge) {
        let mut bins: Vec<Vec<f64>> = vec![Vec::new(); BINS];
        let mut asked = vec![false; BINS];
        for (entry, sample) in &self.run.facts.samples {
            let bin = self.bin(*entry);
            asked[bin] = true;
            bins[bin].extend(of(sample));
        }
        let values: Vec<Option<f64>> = bins.iter().map(|bin| (!bin.is_empty()).then(|| merge(bin))).collect();
        let Some(top) = values.iter().flatten().copied().reduce(f64::max) else {
            return;
        };
        let top = nice(top);
        let (from, to) = (self.y, self.y + CHART);
        self.name(name, from + 14.0);
        self.picture.text("soft", (14.0, from + 29.0), "start", unit);
        for share in [0.0, 0.5, 1.0] {
            let y = to - (to - from) * share;
            self.picture.grid((LEFT, y), (RIGHT, y));
            self.picture
                .text("soft", (LEFT - 8.0, y + 4.0), "end", &short(top * share));
        }
        // A bin that nobody sampled is passed over; one without an answer interrupts the curve.
        let points: Vec<Option<(f64, f64)>> = (0..BINS)
            .filter(|bin| asked[*bin])
            .map(|bin| values[bin].map(|value| (Self::bin_x(bin), to - (to - from) * (value / top).min(1.0))))
            .collect();
        self.picture.curve(color, &points, to);
        self.y = to + 22.0;
    }

    /// Pieces of a row: from each change to the next.
    fn pieces(&mut self, changes: &[(usize, String, String)], class: impl Fn(&str) -> String) {
        for (at, (entry, what, title)) in changes.iter().enumerate() {
            let from = self.at(*entry);
            let to = changes.get(at + 1).map_or(RIGHT, |(next, ..)| self.at(*next));
            if what.is_empty() {
                continue;
            }
            self.picture
                .rect(&class(what), (from, self.y), (to - from - 0.6, ROW - 4.0), title);
        }
    }

    fn leaders(&mut self) {
        let colors = colors(self.run);
        let mut shards: BTreeMap<String, Vec<(usize, String, String)>> = BTreeMap::new();
        for (entry, sample) in &self.run.facts.samples {
            for shard in &sample.shards {
                let name = shard.name();
                let leader = shard.leader.clone().unwrap_or_default();
                let title = format!("{name}: {leader}, epoch {}", shard.epoch.unwrap_or(0));
                let row = shards.entry(name).or_default();
                if row.last().is_none_or(|(_, _, last)| *last != title) {
                    row.push((*entry, leader, title));
                }
            }
        }
        self.rows("leader of", &shards, |leader| {
            colors.get(leader).map_or("other".to_owned(), |c| (*c).to_owned())
        });
    }

    fn nodes(&mut self) {
        let mut nodes: BTreeMap<String, Vec<(usize, String, String)>> = BTreeMap::new();
        for (entry, sample) in &self.run.facts.samples {
            for (name, state) in &sample.nodes {
                let state = state.as_str().map_or_else(|| state.to_string(), str::to_owned);
                let row = nodes.entry(name.clone()).or_default();
                if row.last().is_none_or(|(_, last, _)| *last != state) {
                    row.push((*entry, state.clone(), format!("{name}: {state}")));
                }
            }
        }
        let class = |state: &str| match state {
            "Ready" => "up",
            "Down" => "down",
            _ => "other",
        };
        self.rows("node", &nodes, |state| class(state).to_owned());
    }

    fn rows(
        &mut self,
        name: &str,
        rows: &BTreeMap<String, Vec<(usize, String, String)>>,
        class: impl Fn(&str) -> String,
    ) {
        if rows.is_empty() {
            return;
        }
        self.name(name, self.y + 10.0);
        for (row, changes) in rows.iter().take(MOST_ROWS) {
            self.picture.text("soft", (LEFT - 8.0, self.y + 10.0), "end", row);
            self.pieces(changes, &class);
            self.y += ROW;
        }
        if rows.len() > MOST_ROWS {
            self.picture.text(
                "soft",
                (LEFT, self.y + 10.0),
                "start",
                &format!("and {} more", rows.len() - MOST_ROWS),
            );
            self.y += ROW;
        }
        self.y += 12.0;
    }

    /// A row for each kind: how many ended well, below them those that failed and those of which nobody knows.
    fn operations(&mut self) {
        let mut kinds: BTreeMap<&str, Vec<[usize; 3]>> = BTreeMap::new();
        for operation in &self.run.facts.operations {
            let f = self.run.entries[operation.invoke].f.as_str();
            let bin = self.bin(operation.end.unwrap_or(operation.invoke));
            let at = match operation.kind {
                Kind::Ok => 0,
                Kind::Fail => 1,
                Kind::Info | Kind::Invoke => 2,
            };
            kinds.entry(f).or_insert_with(|| vec![[0; 3]; BINS])[bin][at] += 1;
        }
        if kinds.is_empty() {
            return;
        }
        self.name("operations", self.y + 14.0);
        let width = (RIGHT - LEFT) / BINS as f64;
        let height = 20.0;
        for (f, bins) in kinds {
            self.picture.text("soft", (LEFT - 8.0, self.y + 14.0), "end", f);
            let top = bins.iter().map(|bin| bin[0]).max().unwrap_or(0).max(1) as f64;
            self.picture
                .rect("lane", (LEFT, self.y + height + 1.0), (RIGHT - LEFT, 6.0), "");
            for (at, [ok, fail, info]) in bins.into_iter().enumerate() {
                let x = Self::bin_x(at);
                if ok > 0 {
                    let bar = (height * ok as f64 / top).max(1.0);
                    self.picture.rect("ok", (x, self.y + height - bar), (width, bar), "");
                }
                // Both may have happened at once.
                for (count, class, shift, word) in [(fail, "fail", 0.0, "failed"), (info, "info", 3.0, "unknown")] {
                    if count > 0 {
                        let place = (x, self.y + height + 1.0 + shift);
                        self.picture
                            .rect(class, place, (width.max(2.5), 3.0), &format!("{f}: {count} {word}"));
                    }
                }
            }
            self.y += height + 13.0;
        }
    }

    /// Seconds or minutes, and lines up to `top`.
    fn axis(&mut self, top: f64) {
        let step = [
            500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000,
        ]
        .into_iter()
        .find(|step| self.span / *step as f64 <= 14.0)
        .unwrap_or(7_200_000);
        let mut ms = 0;
        while ms as f64 <= self.span {
            let x = self.x(ms);
            self.picture.grid((x, top), (x, self.y));
            let text = match step {
                ..1_000 => format!("{:.1} s", ms as f64 / 1_000.0),
                1_000..60_000 => format!("{} s", ms / 1_000),
                _ => format!("{} min", ms / 60_000),
            };
            self.picture.text("soft", (x, self.y + 15.0), "middle", &text);
            ms += step;
        }
        self.y += 24.0;
    }
}

/// A round number that is not less.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    let rounds = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    rounds
        .into_iter()
        .map(|round| round * power)
        .find(|round| *round >= value)
        .unwrap_or(value)
}

/// A number in little room.
fn short(value: f64) -> String {
    match value {
        1_000_000.0.. => format!("{}M", value / 1_000_000.0),
        10_000.0.. => format!("{}k", value / 1_000.0),
        _ if value.fract() == 0.0 => grouped(value as u64),
        _ => format!("{value:.1}"),
    }
}
