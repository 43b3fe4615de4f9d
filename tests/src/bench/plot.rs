//! The figures as a picture: cost against the number of flows, and against the number of members.

use std::fmt::{self, Write as _};

use super::{
    matrix::{Case, Path, Row},
    packets::Family,
    report::Report,
};

/// A picture of a report: two charts side by side, as SVG.
pub(crate) struct Picture<'r> {
    pub(crate) report: &'r Report,
    /// What the other program is called.
    pub(crate) against: &'r str,
}

/// Measures of a chart, in SVG units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 132.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 46.0;
/// Distance of two labels.
const LINE: f64 = 15.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#333}.title{font-size:14px;font-weight:bold}.axis{stroke:#888}\
                     .grid{stroke:#e5e5e5}.curve{fill:none;stroke-width:2}";

struct Curve {
    label: String,
    colour: &'static str,
    dashes: &'static str,
    /// The horizontal place as a binary logarithm, and nanoseconds.
    points: Vec<(f64, f64)>,
}

struct Chart {
    title: String,
    abscissa: &'static str,
    curves: Vec<Curve>,
}

impl fmt::Display for Picture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let charts = [self.by_flows(), self.by_members()];
        let width = WIDTH * charts.len() as f64;
        writeln!(f, r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}">"#)?;
        writeln!(f, r##"<style>{STYLE}</style><rect width="{width}" height="{HEIGHT}" fill="#fff"/>"##)?;
        for (index, chart) in charts.iter().enumerate() {
            writeln!(f, r#"<g transform="translate({} 0)">"#, index as f64 * WIDTH)?;
            chart.draw(f)?;
            writeln!(f, "</g>")?;
        }
        writeln!(f, "</svg>")
    }
}

impl Picture<'_> {
    fn by_flows(&self) -> Chart {
        let against = self.against;
        let curves = [
            (Path::Syn(16), Family::V4, "SYN, 16 members".to_owned(), BLUE, "6 3"),
            (Path::Against(Case::Syn), Family::V4, format!("{against}, SYN"), ORANGE, "6 3"),
            (Path::Against(Case::Established), Family::V4, against.to_owned(), ORANGE, ""),
            (Path::Established, Family::V4, "owner".to_owned(), BLUE, ""),
            (Path::Established, Family::V6, "owner, IPv6".to_owned(), VIOLET, ""),
            (Path::HandOff, Family::V4, "hand-off".to_owned(), GREEN, ""),
            (Path::Direct, Family::V4, "direct".to_owned(), BROWN, ""),
            (Path::Floor, Family::V4, "floor".to_owned(), GREY, ""),
        ];
        let curves = curves.map(|(path, family, label, colour, dashes)| {
            let points = self.points(|row| row.path == path && row.family == family, |row| f64::from(row.flows).log2());
            Curve { label, colour, dashes, points }
        });
        Chart { title: "ns a packet, 64 bytes, by flows".into(), abscissa: "flows", curves: curves.into() }
    }

    fn by_members(&self) -> Chart {
        let members = |row: &Row| match row.path {
            Path::Syn(members) | Path::New(members) => f64::from(members).log2(),
            _ => 0.0,
        };
        let few = |row: &Row| row.family == Family::V4 && row.flows == 4096;
        let syn = self.points(|row| few(row) && matches!(row.path, Path::Syn(_)), members);
        let new = self.points(|row| few(row) && matches!(row.path, Path::New(_)), members);
        let curves = vec![
            Curve { label: "SYN".into(), colour: BLUE, dashes: "6 3", points: syn },
            Curve { label: "end of handshake".into(), colour: BLUE, dashes: "", points: new },
        ];
        Chart { title: "ns a packet that begins one of 4,096 flows, by members".into(), abscissa: "members", curves }
    }

    /// The rows with small frames that `wanted` picks, from left to right.
    fn points(&self, wanted: impl Fn(&Row) -> bool, place: impl Fn(&Row) -> f64) -> Vec<(f64, f64)> {
        let rows = self.report.rows.iter().filter(|measured| measured.row.bytes == 64 && wanted(&measured.row));
        let mut points: Vec<(f64, f64)> = rows.map(|measured| (place(&measured.row), measured.ns())).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }
}

const BLUE: &str = "#1f6fb4";
const ORANGE: &str = "#d9730d";
const GREEN: &str = "#2f8f4e";
const VIOLET: &str = "#7a4fb5";
const BROWN: &str = "#8a5a2b";
const GREY: &str = "#777777";

impl Chart {
    fn draw(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drawn: Vec<&Curve> = self.curves.iter().filter(|curve| !curve.points.is_empty()).collect();
        let all = || drawn.iter().flat_map(|curve| curve.points.iter().copied());
        let (from, to) = all().fold((f64::INFINITY, 1.0_f64), |(from, to), (x, _)| (from.min(x), to.max(x)));
        let step = step(all().map(|(_, ns)| ns).fold(1.0, f64::max));
        let top = step * (all().map(|(_, ns)| ns).fold(1.0, f64::max) / step).ceil();
        let x = |place: f64| LEFT + (place - from) / (to - from).max(1.0) * (WIDTH - LEFT - RIGHT);
        let y = |ns: f64| HEIGHT - BOTTOM - ns / top * (HEIGHT - TOP - BOTTOM);
        writeln!(f, r#"<text class="title" x="{LEFT}" y="22">{}</text>"#, self.title)?;
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        let mut ns = 0.0;
        while ns <= top {
            writeln!(f, r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{0:.1}" y2="{0:.1}"/>"#, y(ns))?;
            writeln!(f, r#"<text x="{}" y="{:.1}" text-anchor="end">{ns}</text>"#, LEFT - 8.0, y(ns) + 4.0)?;
            ns += step;
        }
        writeln!(f, r#"<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>"#)?;
        let mut places: Vec<f64> = all().map(|(place, _)| place).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        for place in places {
            let (at, label) = (x(place), grouped(place.exp2().round() as u64));
            writeln!(f, r#"<text x="{at:.1}" y="{}" text-anchor="middle">{label}</text>"#, bottom + 18.0)?;
        }
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        writeln!(f, r#"<text x="{middle}" y="{}" text-anchor="middle">{}</text>"#, bottom + 38.0, self.abscissa)?;
        for curve in &drawn {
            curve.draw(f, &x, &y)?;
        }
        labels(f, &drawn, right + 8.0, &y)
    }
}

impl Curve {
    fn draw(&self, f: &mut fmt::Formatter<'_>, x: &impl Fn(f64) -> f64, y: &impl Fn(f64) -> f64) -> fmt::Result {
        let mut line = String::new();
        for (place, ns) in &self.points {
            write!(line, "{:.1},{:.1} ", x(*place), y(*ns))?;
            writeln!(f, r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{}"/>"#, x(*place), y(*ns), self.colour)?;
        }
        let Self { colour, dashes, .. } = self;
        let line = line.trim_end();
        writeln!(f, r#"<polyline class="curve" points="{line}" stroke="{colour}" stroke-dasharray="{dashes}"/>"#)
    }
}

/// Names the curves at their ends, from the top down, far enough from each other to be read.
fn labels(f: &mut fmt::Formatter<'_>, curves: &[&Curve], at: f64, y: &impl Fn(f64) -> f64) -> fmt::Result {
    let mut ends: Vec<(f64, &Curve)> =
        curves.iter().filter_map(|curve| Some((y(curve.points.last()?.1), *curve))).collect();
    ends.sort_by(|a, b| b.0.total_cmp(&a.0));
    // From the bottom up: below is the axis.
    let mut free = f64::INFINITY;
    for (end, curve) in ends {
        free = end.min(free - LINE);
        let Curve { label, colour, .. } = curve;
        writeln!(f, r#"<text x="{at}" y="{:.1}" style="fill:{colour}">{label}</text>"#, free + 4.0)?;
    }
    Ok(())
}

/// The distance of grid lines: 1, 2 or 5 times a power of ten, so that there are at most six.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 6.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| most / step <= 6.0).unwrap_or(most)
}

/// `1,048,576`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Measured;

    #[test]
    fn every_measured_curve_is_drawn_and_named() {
        let row = |path, flows, ns| Measured {
            row: Row { path, family: Family::V4, flows, bytes: 64 },
            frame_bytes: 64,
            rounds_ns: vec![ns],
        };
        let rows = vec![
            row(Path::Floor, 1, 9.0),
            row(Path::Established, 1, 70.0),
            row(Path::Established, 4096, 200.0),
            row(Path::New(4), 4096, 300.0),
            row(Path::New(64), 4096, 500.0),
        ];
        let report = Report { rows, ..Report::default() };
        let picture = Picture { report: &report, against: "other" }.to_string();
        assert_eq!(picture.matches("<polyline").count(), 3);
        for word in ["floor", "owner", "end of handshake", ">4,096<", ">64<"] {
            assert!(picture.contains(word), "{word}");
        }
        assert!(!picture.contains("other") && !picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        assert_eq!(picture.matches('<').count(), picture.matches('>').count());
    }

    #[test]
    fn grid_lines_are_few_and_round() {
        assert_eq!([7.0, 60.0, 950.0, 1300.0].map(step), [2.0, 10.0, 200.0, 500.0]);
        assert_eq!([1, 999, 4096, 1_048_576].map(grouped), ["1", "999", "4,096", "1,048,576"]);
    }
}
