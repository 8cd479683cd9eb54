//! Pictures of runs, as SVG text: what happened over time, and cost against violations.

use std::fmt::Write as _;

use super::judge::Moment;
use super::suite::Row;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const PANEL: f64 = 170.0;
const GAP: f64 = 34.0;

/// Told apart by people with any colour vision (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

type Figure = fn(&Moment) -> f64;

/// Waiting messages, instances and the age of the oldest message over time, one line per policy.
pub fn timeline(title: &str, freshness_s: f64, runs: &[(String, Vec<Moment>)]) -> String {
    let panels: [(&str, Figure); 3] = [
        ("messages waiting", |m| m.visible as f64),
        ("instances at work", |m| f64::from(m.running)),
        ("oldest message, s", |m| m.oldest_s),
    ];
    let span_s = runs.iter().filter_map(|(_, run)| run.last()).map(|m| m.at_s).fold(1.0, f64::max);
    let mut svg = open(GAP + 3.0 * (PANEL + GAP), title);
    for (number, (label, figure)) in panels.into_iter().enumerate() {
        let top = GAP + number as f64 * (PANEL + GAP);
        let most = runs.iter().flat_map(|(_, run)| run).map(figure).fold(1.0, f64::max);
        let place = |at_s: f64, value: f64| {
            let x = LEFT + at_s / span_s * (WIDTH - LEFT - RIGHT);
            (x, top + PANEL - value / most * PANEL)
        };
        axes(&mut svg, top, label, most, &format!("{:.0} min", span_s / 60.0));
        if number == 2 && freshness_s < most {
            let ((x, y), (end, _)) = (place(0.0, freshness_s), place(span_s, 0.0));
            let _ = writeln!(
                svg,
                r##"<path d="M{x:.1} {y:.1}H{end:.1}" stroke="#888" stroke-dasharray="4 3"/><text x="{:.1}" y="{y:.1}" fill="#666">the promise</text>"##,
                end + 6.0
            );
        }
        for (index, (_, run)) in runs.iter().enumerate() {
            // A point per pixel is all a picture can show.
            let every = (run.len() / 700).max(1);
            let mut path = String::new();
            for moment in run.iter().step_by(every) {
                let (x, y) = place(moment.at_s, figure(moment));
                let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
            }
            let _ = writeln!(
                svg,
                r#"<path d="{path}" fill="none" stroke="{}" stroke-width="1.2"/>"#,
                COLOURS[index % COLOURS.len()]
            );
        }
    }
    let names = runs.iter().map(|(name, _)| name.as_str());
    for (index, name) in names.enumerate() {
        legend(&mut svg, index, name, COLOURS[index % COLOURS.len()]);
    }
    svg + "</svg>\n"
}

/// Median cost over the bound to the right, late messages upwards on a logarithmic scale.
pub fn pareto(title: &str, rows: &[&Row]) -> String {
    const HEIGHT: f64 = 420.0;
    /// Where "none" is drawn.
    const NONE: f64 = 0.001;
    let most = rows.iter().map(|row| row.median.cost_ratio).fold(2.0, f64::max);
    let mut svg = open(HEIGHT + 2.0 * GAP, title);
    let _ = writeln!(
        svg,
        r##"<path d="M{LEFT} {GAP}V{HEIGHT}H{:.1}" fill="none" stroke="#888"/><text x="{LEFT}" y="{:.1}">cost over the bound: 1 to {most:.1}</text>"##,
        WIDTH - RIGHT,
        HEIGHT + GAP
    );
    let y_of = |late: f64| {
        let part = (late.max(NONE) / NONE).log10() / (100.0 / NONE).log10();
        HEIGHT - 12.0 - part * (HEIGHT - GAP - 24.0)
    };
    for (late, label) in [(NONE, "none"), (0.01, "0.01 %"), (0.2, "0.2 %"), (10.0, "10 %")] {
        let y = y_of(late);
        let _ = writeln!(
            svg,
            r##"<text x="{:.1}" y="{y:.1}" text-anchor="end">{label}</text><path d="M{LEFT} {y:.1}H{:.1}" stroke="#eee"/>"##,
            LEFT - 6.0,
            WIDTH - RIGHT
        );
    }
    for row in rows {
        let x =
            LEFT + (row.median.cost_ratio - 1.0).max(0.0) / (most - 1.0) * (WIDTH - LEFT - RIGHT);
        let y = y_of(row.median.late_percent);
        let ours = row.policy == "weirgate";
        let (colour, size) = if ours { (COLOURS[1], 7.0) } else { (COLOURS[0], 4.0) };
        let _ = writeln!(
            svg,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{size}" fill="{colour}"><title>{}: cost {:.2}, late {:.3} %</title></circle><text x="{:.1}" y="{:.1}" font-size="9">{}</text>"#,
            escape(&row.policy),
            row.median.cost_ratio,
            row.median.late_percent,
            x + 7.0,
            y - 4.0,
            escape(&row.policy)
        );
    }
    svg + "</svg>\n"
}

fn open(height: f64, title: &str) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{LEFT}" y="18" font-size="14">{}</text>
"##,
        escape(title)
    )
}

fn axes(svg: &mut String, top: f64, label: &str, most: f64, end: &str) {
    let (bottom, right) = (top + PANEL, WIDTH - RIGHT);
    let _ = writeln!(
        svg,
        r##"<path d="M{LEFT} {top}V{bottom}H{right}" fill="none" stroke="#888"/>
<text x="{:.1}" y="{:.1}">{label}</text>
<text x="{:.1}" y="{:.1}" text-anchor="end">{most:.0}</text>
<text x="{right}" y="{:.1}" text-anchor="end">{end}</text>"##,
        LEFT + 6.0,
        top + 10.0,
        LEFT - 6.0,
        top + 10.0,
        bottom + 13.0
    );
}

fn legend(svg: &mut String, index: usize, name: &str, colour: &str) {
    let (x, y) = (WIDTH - RIGHT + 20.0, 50.0 + 16.0 * index as f64);
    let _ = writeln!(
        svg,
        r#"<rect x="{x}" y="{:.1}" width="10" height="10" fill="{colour}"/><text x="{:.1}" y="{y:.1}">{}</text>"#,
        y - 9.0,
        x + 15.0,
        escape(name)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
