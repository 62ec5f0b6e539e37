//! Curves as SVG, written by hand: panels side by side, logarithmic or linear axes, labels at the ends of curves, one legend.
//!
//! The background is drawn and light, so that a chart reads alike on light and dark pages. What is drawn follows from the numbers
//! alone: the same numbers give the same bytes. It refuses nothing: a panel without numbers that its axes can show stays empty.

use std::fmt::Write as _;

/// How an axis runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// By powers of ten; numbers must be above 0.
    Log,
    /// Evenly; a vertical axis shows 0.
    Linear,
}

/// Points of one thing.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub label: String,
    /// Of its line, as SVG writes colours.
    pub colour: &'static str,
    /// Drawn broken: what is not measured, or not the subject.
    pub broken: bool,
    /// In the order in which they are joined.
    pub points: Vec<(f64, f64)>,
    /// Half the length of each point's bar of uncertainty; empty for none.
    pub spreads: Vec<f64>,
}

/// A single point beside the curves: a target.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where.
    pub at: (f64, f64),
    /// Of its line.
    pub colour: &'static str,
}

/// A vertical line at a number that something predicts.
#[derive(Clone, Debug)]
pub struct Guide {
    /// Where it stands. It is left out where the axis does not reach.
    pub x: f64,
    /// What it says.
    pub label: String,
    /// Of its line.
    pub colour: &'static str,
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Beside it.
    pub y_label: String,
    /// How the horizontal and the vertical axis run.
    pub scales: (Scale, Scale),
    /// What a tick of the vertical axis says.
    pub tick: fn(f64) -> String,
    /// What is drawn.
    pub series: Vec<Series>,
    /// Targets.
    pub marks: Vec<Mark>,
    /// Predictions.
    pub guides: Vec<Guide>,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 440.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 352.0;
/// Room left of a panel's axis, and right of it for the labels of curves.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 92.0;
/// Labels stay so far apart.
const LINE: f64 = 14.0;
/// Ticks nearer than this to one with a label have none.
const TICK_ROOM: f64 = 27.0;

/// Where numbers lie on a panel.
struct Axes {
    scales: (Scale, Scale),
    x: (f64, f64),
    y: (f64, f64),
    from: f64,
    to: f64,
}

impl Axes {
    fn new(panel: &Panel, from: f64, to: f64) -> Option<Axes> {
        let all = || panel.series.iter().flat_map(|s| &s.points).chain(panel.marks.iter().map(|m| &m.at));
        let least = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(f64::INFINITY, f64::min);
        let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(f64::NEG_INFINITY, f64::max);
        let (x, y) = ((least(|p| p.0), most(|p| p.0)), (least(|p| p.1), most(|p| p.1)));
        let shown = |scale: Scale, v: f64| v.is_finite() && (scale == Scale::Linear || v > 0.0);
        if ![(panel.scales.0, x), (panel.scales.1, y)].iter().all(|(s, v)| shown(*s, v.0) && shown(*s, v.1)) {
            return None;
        }
        let decade = |v: f64, round: fn(f64) -> f64| 10f64.powf(round(v.log10()));
        let y = match panel.scales.1 {
            Scale::Log => {
                (decade(y.0, f64::floor), decade(y.1, f64::ceil).max(decade(y.0, f64::floor) * 10.0))
            }
            Scale::Linear => {
                let step = step_of(y.0.min(0.0), y.1.max(0.0));
                let ends = ((y.0.min(0.0) / step).floor() * step, (y.1.max(0.0) / step).ceil() * step);
                (ends.0, ends.1.max(ends.0 + step))
            }
        };
        let x = match panel.scales.0 {
            Scale::Log => (x.0, x.1.max(x.0 * 2.0)),
            Scale::Linear => (x.0, if x.1 > x.0 { x.1 } else { x.0 + 1.0 }),
        };
        Some(Axes { scales: panel.scales, x, y, from, to })
    }

    /// The part of the way from the beginning of an axis to its end.
    fn part(scale: Scale, (low, high): (f64, f64), v: f64) -> f64 {
        match scale {
            Scale::Log => (v.ln() - low.ln()) / (high.ln() - low.ln()),
            Scale::Linear => (v - low) / (high - low),
        }
    }

    fn x(&self, v: f64) -> f64 {
        self.from + 8.0 + Self::part(self.scales.0, self.x, v) * (self.to - self.from - 16.0)
    }

    fn y(&self, v: f64) -> f64 {
        BOTTOM - Self::part(self.scales.1, self.y, v) * (BOTTOM - TOP)
    }

    /// Ticks of the vertical axis.
    fn ticks(&self) -> Vec<f64> {
        let (low, high) = self.y;
        match self.scales.1 {
            Scale::Log => {
                let decades = (high / low).log10().round() as i32;
                (0..=decades).map(|i| low * 10f64.powi(i)).collect()
            }
            Scale::Linear => {
                let step = step_of(low, high);
                let first = (low / step).round() as i64;
                let last = (high / step).round() as i64;
                (first..=last).map(|i| i as f64 * step).collect()
            }
        }
    }
}

/// A step of 1, 2 or 5 times a power of ten that divides a range into at most ten parts.
fn step_of(low: f64, high: f64) -> f64 {
    let range = if high > low { high - low } else { 1.0 };
    let decade = 10f64.powf((range / 10.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * decade).find(|s| range / s <= 10.0).unwrap_or(decade * 10.0)
}

/// Panels side by side under one title, and a legend below. `x_label` names the horizontal axis of every panel.
pub fn draw(title: &str, x_label: &str, panels: &[Panel]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', sans-serif\" font-size=\"11\" fill=\"#33383d\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fdfdfb\"/>\n\
         <text x=\"{}\" y=\"24\" font-size=\"15\" font-weight=\"600\" text-anchor=\"middle\">{}</text>\n",
        WIDTH / 2.0,
        escaped(title)
    );
    let each = WIDTH / panels.len().max(1) as f64;
    for (i, panel) in panels.iter().enumerate() {
        let from = each * i as f64 + LEFT;
        if let Some(axes) = Axes::new(panel, from, each * (i + 1) as f64 - RIGHT) {
            grid(&mut out, panel, &axes, x_label);
            guides(&mut out, panel, &axes);
            curves(&mut out, panel, &axes);
        }
    }
    legend(&mut out, panels);
    out.push_str("</svg>\n");
    out
}

fn text(out: &mut String, (x, y): (f64, f64), attributes: &str, content: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escaped(content));
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn grid(out: &mut String, panel: &Panel, axes: &Axes, x_label: &str) {
    let (from, to) = (axes.from, axes.to);
    let middle = (from + to) / 2.0;
    text(
        out,
        (middle, TOP - 14.0),
        "text-anchor=\"middle\" font-weight=\"600\" font-size=\"12\"",
        &panel.title,
    );
    for tick in axes.ticks() {
        let y = axes.y(tick);
        line(out, (from, y), (to, y), if tick == 0.0 { "#8a8f94" } else { "#e4e4de" });
        text(out, (from - 6.0, y + 4.0), "text-anchor=\"end\"", &(panel.tick)(tick));
    }
    let mut widths: Vec<f64> = panel.series.iter().flat_map(|s| s.points.iter().map(|p| p.0)).collect();
    widths.sort_by(f64::total_cmp);
    widths.dedup();
    let mut last = f64::NEG_INFINITY;
    for width in widths {
        let x = axes.x(width);
        line(out, (x, BOTTOM), (x, BOTTOM + 4.0), "#8a8f94");
        if x - last >= TICK_ROOM {
            text(out, (x, BOTTOM + 17.0), "text-anchor=\"middle\" font-size=\"10\"", &format!("{width}"));
            last = x;
        }
    }
    line(out, (from, BOTTOM), (to, BOTTOM), "#8a8f94");
    line(out, (from, TOP), (from, BOTTOM), "#8a8f94");
    text(out, (middle, BOTTOM + 34.0), "text-anchor=\"middle\"", x_label);
    let (x, y) = (from - 44.0, (TOP + BOTTOM) / 2.0);
    text(
        out,
        (x, y),
        &format!("text-anchor=\"middle\" transform=\"rotate(-90 {x:.1} {y:.1})\""),
        &panel.y_label,
    );
}

/// Vertical lines under the curves, what they say at their upper ends, each lower than the one before.
fn guides(out: &mut String, panel: &Panel, axes: &Axes) {
    let inside = panel.guides.iter().filter(|g| (axes.x.0..=axes.x.1).contains(&g.x));
    for (i, guide) in inside.enumerate() {
        let x = axes.x(guide.x);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {TOP:.1}V{BOTTOM:.1}\" stroke=\"{}\" stroke-dasharray=\"2 3\" fill=\"none\"/>",
            guide.colour
        );
        let left = x > (axes.from + axes.to) / 2.0;
        let (at, anchor) = if left { (x - 4.0, "end") } else { (x + 4.0, "start") };
        let attributes = format!("fill=\"{}\" font-size=\"10\" text-anchor=\"{anchor}\"", guide.colour);
        text(out, (at, TOP + 10.0 + LINE * i as f64), &attributes, &guide.label);
    }
}

fn curves(out: &mut String, panel: &Panel, axes: &Axes) {
    for s in &panel.series {
        let points: Vec<String> =
            s.points.iter().map(|(x, y)| format!("{:.1},{:.1}", axes.x(*x), axes.y(*y))).collect();
        let dashes = if s.broken { " stroke-dasharray=\"5 4\"" } else { "" };
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-linejoin=\"round\"{dashes}/>",
            points.join(" "),
            s.colour
        );
        for ((x, y), spread) in s.points.iter().zip(&s.spreads) {
            let shown = |v: f64| axes.y(v.clamp(axes.y.0, axes.y.1));
            let _ = writeln!(
                out,
                "<path d=\"M{:.1} {:.1}V{:.1}\" stroke=\"{}\" stroke-width=\"1\" fill=\"none\"/>",
                axes.x(*x),
                shown(y - spread),
                shown(y + spread),
                s.colour
            );
        }
        if !s.broken {
            for (x, y) in &s.points {
                let (x, y) = (axes.x(*x), axes.y(*y));
                let _ =
                    writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\" fill=\"{}\"/>", s.colour);
            }
        }
    }
    for mark in &panel.marks {
        let (x, y) = (axes.x(mark.at.0), axes.y(mark.at.1));
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {y:.1}H{:.1}M{x:.1} {y:.1}v7\" stroke=\"{}\" stroke-width=\"1.6\" fill=\"none\"/>",
            x - 7.0,
            x + 7.0,
            mark.colour
        );
    }
    labels(out, panel, axes);
}

/// Each curve's name at its end, moved down where two would meet.
fn labels(out: &mut String, panel: &Panel, axes: &Axes) {
    let mut ends: Vec<(f64, &Series)> =
        panel.series.iter().filter_map(|s| Some((axes.y(s.points.last()?.1), s))).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut above = f64::NEG_INFINITY;
    for (y, s) in ends {
        let y = y.max(above + LINE);
        above = y;
        let attributes = format!("fill=\"{}\" font-weight=\"600\"", s.colour);
        text(out, (axes.to + 4.0, y + 4.0), &attributes, &s.label);
    }
}

fn legend(out: &mut String, panels: &[Panel]) {
    let mut shown: Vec<&Series> = Vec::new();
    for s in panels.iter().flat_map(|p| &p.series) {
        if shown.iter().all(|known| known.label != s.label) {
            shown.push(s);
        }
    }
    let mark = panels.iter().flat_map(|p| &p.marks).next();
    let room = WIDTH / (shown.len() + usize::from(mark.is_some()) + 1) as f64;
    let y = HEIGHT - 22.0;
    for (i, s) in shown.iter().enumerate() {
        let x = room * (i as f64 + 0.5);
        let dashes = if s.broken { " stroke-dasharray=\"5 4\"" } else { "" };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{y}\" x2=\"{:.1}\" y2=\"{y}\" stroke=\"{}\" stroke-width=\"2\"{dashes}/>",
            x + 22.0,
            s.colour
        );
        text(out, (x + 28.0, y + 4.0), "", &s.label);
    }
    if let Some(mark) = mark {
        let x = room * (shown.len() as f64 + 0.5);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {y}h14m-7 0v7\" stroke=\"{}\" stroke-width=\"1.6\" fill=\"none\"/>",
            mark.colour
        );
        text(out, (x + 20.0, y + 4.0), "", "target: at most");
    }
}

fn escaped(content: &str) -> String {
    content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Whether every element is closed, in order, attributes are quoted, and numbers are numbers: enough to catch what a template
/// can get wrong. For the tests of those who draw.
pub fn is_well_formed(svg: &str) -> bool {
    let mut open: Vec<&str> = vec![];
    for piece in svg.split('<').skip(1) {
        let Some((tag, content)) = piece.split_once('>') else { return false };
        if content.contains(['"', '>'])
            || tag.matches('"').count() % 2 != 0
            || tag.contains("NaN")
            || tag.contains("inf")
        {
            return false;
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return false;
            }
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap_or(tag));
        }
    }
    open.is_empty() && svg.starts_with("<svg ") && svg.ends_with("</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>) -> Panel {
        let series = |label: &str, broken| Series {
            label: label.into(),
            colour: "#123456",
            broken,
            points: points.clone(),
            spreads: vec![],
        };
        Panel {
            title: "a < b & \"c\"".into(),
            y_label: "y".into(),
            scales: (Scale::Log, Scale::Log),
            tick: |v| format!("{v}"),
            series: vec![series("one", false), series("two", true)],
            marks: vec![Mark { at: (100.0, 1.0), colour: "#654321" }],
            guides: vec![],
        }
    }

    #[test]
    fn charts_are_well_formed() {
        let many = (1..9).map(|i| (f64::from(1 << i), 0.01 * f64::from(i * i))).collect();
        for points in [many, vec![(64.0, 1.0)], vec![]] {
            let svg = draw("t < 1", "d", &[panel(points.clone()), panel(points)]);
            assert!(is_well_formed(&svg), "{svg}");
        }
        let mut none = panel(vec![]);
        none.marks.clear();
        assert!(is_well_formed(&draw("none", "d", &[none])));
        for broken in
            ["<svg ><g></svg>\n", "<svg x=\"1></svg>\n", "<svg x=\"NaN\"></svg>\n", "<svg ></g></svg>\n"]
        {
            assert!(!is_well_formed(broken), "{broken}");
        }
    }

    #[test]
    fn linear_axes_show_losses_and_zero() {
        let mut losses = panel(vec![(0.0, -3.0), (0.5, 4.0), (1.0, 12.0)]);
        losses.scales = (Scale::Linear, Scale::Linear);
        losses.series[0].spreads = vec![1.0; 3];
        losses.marks.clear();
        losses.guides =
            [0.25, 7.0].map(|x| Guide { x, label: format!("at {x}"), colour: "#111111" }).to_vec();
        let svg = draw("t", "x", &[losses]);
        assert!(is_well_formed(&svg), "{svg}");
        assert!(svg.contains(">-4<") && svg.contains(">0<") && svg.contains(">12<"), "{svg}");
        assert!(svg.contains("at 0.25") && !svg.contains("at 7"), "what the axis does not reach is left out");
        let mut negative = panel(vec![(1.0, -1.0), (2.0, 1.0)]);
        negative.marks.clear();
        assert!(!draw("t", "x", &[negative]).contains("polyline"), "no logarithm of a loss");
    }

    #[test]
    fn steps_are_round() {
        for (low, high, step) in [(0.0, 1.0, 0.1), (0.0, 11.0, 2.0), (-4.0, 12.0, 2.0), (0.0, 450.0, 50.0)] {
            assert!((step_of(low, high) - step).abs() < 1e-12, "{low} {high}");
        }
    }

    #[test]
    fn labels_keep_their_distance_and_points_stay_inside() {
        let svg = draw("t", "d", &[panel(vec![(10.0, 0.5), (1000.0, 5.0)])]);
        let number = |piece: &str| piece.split('"').next().and_then(|n| n.parse::<f64>().ok()).unwrap();
        let ends: Vec<f64> = svg
            .lines()
            .filter(|l| l.contains("font-weight=\"600\">one") || l.contains("font-weight=\"600\">two"))
            .map(|l| number(l.split("y=\"").nth(1).unwrap()))
            .collect();
        assert!(ends.len() == 2 && (ends[1] - ends[0]).abs() >= LINE - 0.2, "{ends:?}");
        for circle in svg.lines().filter(|l| l.starts_with("<circle")) {
            let (x, y) = (
                number(circle.split("cx=\"").nth(1).unwrap()),
                number(circle.split("cy=\"").nth(1).unwrap()),
            );
            assert!((LEFT..WIDTH).contains(&x) && (TOP..=BOTTOM).contains(&y), "{circle}");
        }
    }
}
