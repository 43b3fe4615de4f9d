//! What was measured: for people, for programs, and beside what it must reach.

use std::{
    fmt::{self, Write as _},
    fs,
};

use serde::Serialize;

use super::{
    matrix::{Case, Path, Row},
    packets::Family,
    plot::Picture,
    statistics::{median, middle_half},
    tandem::CAPACITY,
};

/// A row's figures.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) row: Row,
    pub(crate) frame_bytes: usize,
    /// Nanoseconds a packet without the harness, of each round.
    pub(crate) rounds_ns: Vec<f64>,
}

impl Measured {
    /// The median of the rounds.
    pub(crate) fn ns(&self) -> f64 {
        median(&self.rounds_ns)
    }
}

/// A row of the part with live frames.
#[derive(Clone, Debug)]
pub(crate) struct LiveMeasured {
    pub(crate) row: Row,
    pub(crate) cores: usize,
    /// Packets a second, of each round.
    pub(crate) rounds_pps: Vec<f64>,
}

/// A row that was not measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LeftOut {
    path: String,
    family: Family,
    flows: u32,
    bytes: usize,
    why: &'static str,
}

impl LeftOut {
    pub(crate) fn new(row: Row, why: &'static str) -> Self {
        Self { path: row.path.to_string(), family: row.family, flows: row.flows, bytes: row.bytes, why }
    }
}

/// A run's figures.
#[derive(Debug, Default)]
pub struct Report {
    pub(crate) rows: Vec<Measured>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) live: Vec<LiveMeasured>,
    /// What a packet costs that no program looks at.
    pub(crate) harness_ns: f64,
}

/// A ratio of two rows of one run, and what it must be.
#[derive(Clone, Debug, Serialize)]
struct Requirement {
    /// Which ratio.
    ratio: String,
    measured: f64,
    /// At most this.
    required: f64,
    /// What to aim for.
    aimed_at: f64,
    reached: bool,
}

#[derive(Serialize)]
struct Json<'r> {
    date: String,
    machine: Machine,
    rounds: usize,
    harness_ns: f64,
    rows: Vec<JsonRow>,
    left_out: &'r [LeftOut],
    live: Vec<JsonLive>,
    requirements: Vec<Requirement>,
}

#[derive(Serialize)]
struct JsonRow {
    path: String,
    family: Family,
    flows: u32,
    bytes: usize,
    frame_bytes: usize,
    ns: f64,
    /// Half of the rounds took between these two.
    ns_from: f64,
    ns_to: f64,
    ratio_to_floor: f64,
}

#[derive(Serialize)]
struct JsonLive {
    path: String,
    family: Family,
    flows: u32,
    bytes: usize,
    cores: usize,
    packets_per_second: f64,
    /// Half of the rounds lie between these two.
    from: f64,
    to: f64,
}

/// Where it was measured.
#[derive(Serialize)]
struct Machine {
    processor: String,
    cpus: usize,
    kernel: String,
}

impl Report {
    /// Cost against the number of flows and of members, as SVG; `against` is what the other program is called.
    pub fn picture(&self, against: &str) -> String {
        Picture { report: self, against }.to_string()
    }

    /// One object, on one line.
    pub fn json(&self) -> String {
        let rows = self.rows.iter().map(|measured| {
            let (ns_from, ns_to) = middle_half(&measured.rounds_ns);
            let Row { path, family, flows, bytes } = measured.row;
            JsonRow {
                path: path.to_string(),
                family,
                flows,
                bytes,
                frame_bytes: measured.frame_bytes,
                ns: rounded(measured.ns()),
                ns_from: rounded(ns_from),
                ns_to: rounded(ns_to),
                ratio_to_floor: rounded(self.ratio_to_floor(measured)),
            }
        });
        let json = Json {
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            machine: Machine::this(),
            rounds: self.rows.first().map_or(0, |measured| measured.rounds_ns.len()),
            harness_ns: rounded(self.harness_ns),
            rows: rows.collect(),
            left_out: &self.left_out,
            live: self.live.iter().map(JsonLive::of).collect(),
            requirements: self.requirements(),
        };
        serde_json::to_string(&json).unwrap_or_default()
    }

    fn ratio_to_floor(&self, measured: &Measured) -> f64 {
        let floor = Row { path: Path::Floor, ..measured.row };
        self.ns(&floor).map_or(f64::NAN, |floor_ns| measured.ns() / floor_ns)
    }

    fn ns(&self, row: &Row) -> Option<f64> {
        self.rows.iter().find(|measured| measured.row == *row).map(Measured::ns)
    }

    /// The ratios that both rows were measured of.
    fn requirements(&self) -> Vec<Requirement> {
        let mut found = Vec::new();
        let mut require =
            |(path, family): (Path, Family), (to, to_family): (Path, Family), flows, required, aimed_at| {
                let row = Row { path, family, flows, bytes: 64 };
                let other = Row { path: to, family: to_family, ..row };
                let (Some(ns), Some(other_ns)) = (self.ns(&row), self.ns(&other)) else { return };
                let measured = rounded(ns / other_ns);
                let ratio = format!("{path} {family} / {to} {to_family}, {flows} flows");
                found.push(Requirement { ratio, measured, required, aimed_at, reached: measured <= required });
            };
        let (v4, v6) = (Family::V4, Family::V6);
        let against = |case| (Path::Against(case), v4);
        let established = (Path::Established, v4);
        require(established, against(Case::Established), 1, 0.85, 0.7);
        require(established, against(Case::Established), 4096, 0.65, 0.5);
        require(established, against(Case::Established), CAPACITY, 1.0, 0.85);
        for flows in [1, 4096, CAPACITY] {
            require((Path::HandOff, v4), established, flows, 1.05, 1.05);
            require((Path::Direct, v4), established, flows, 1.05, 1.05);
            require((Path::Established, v6), established, flows, 1.25, 1.25);
            require((Path::Syn(16), v4), against(Case::Syn), flows, 1.3, 1.0);
            require((Path::New(16), v4), against(Case::Syn), flows, 1.3, 1.0);
            require((Path::Pass, v4), (Path::Floor, v4), flows, 0.5, 0.5);
        }
        found
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = Machine::this();
        writeln!(f, "{}, {} CPUs, Linux {}", machine.processor, machine.cpus, machine.kernel)?;
        if !self.rows.is_empty() {
            self.write_rows(f)?;
            self.write_left_out(f)?;
            self.write_requirements(f)?;
        }
        if !self.live.is_empty() {
            self.write_live(f)?;
        }
        Ok(())
    }
}

impl JsonLive {
    fn of(live: &LiveMeasured) -> Self {
        let (from, to) = middle_half(&live.rounds_pps);
        let Row { path, family, flows, bytes } = live.row;
        let packets_per_second = median(&live.rounds_pps).round();
        let (from, to) = (from.round(), to.round());
        Self { path: path.to_string(), family, flows, bytes, cores: live.cores, packets_per_second, from, to }
    }
}

impl Report {
    fn write_rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nns a packet, the harness's {:.1} ns taken off; half of the rounds lie in the range\n",
            self.harness_ns
        )?;
        writeln!(
            f,
            "{:<20}{:<4}{:>8}{:>6}{:>9}   {:<15}{:>9}",
            "path", "", "flows", "bytes", "ns", "range", "/ floor"
        )?;
        for measured in &self.rows {
            let Row { path, family, flows, bytes } = measured.row;
            let (from, to) = middle_half(&measured.rounds_ns);
            writeln!(
                f,
                "{:<20}{family:<4}{flows:>8}{bytes:>6}{:>9.1}   {:<15}{:>9.2}",
                path.to_string(),
                measured.ns(),
                format!("{from:.1}-{to:.1}"),
                self.ratio_to_floor(measured),
            )?;
        }
        Ok(())
    }

    fn write_requirements(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requirements = self.requirements();
        if !requirements.is_empty() {
            writeln!(f, "\n{:<62}{:>9}{:>9}{:>9}", "ratio, 64 bytes", "measured", "required", "aimed at")?;
        }
        for Requirement { ratio, measured, required, aimed_at, reached } in requirements {
            let verdict = if reached { "" } else { "  not reached" };
            writeln!(f, "{ratio:<62}{measured:>9.2}{required:>9.2}{aimed_at:>9.2}{verdict}")?;
        }
        Ok(())
    }

    fn write_live(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nmillion packets a second through veth pairs; half of the rounds lie in the range\n")?;
        writeln!(f, "{:<20}{:<4}{:>8}{:>6}{:>7}{:>9}   range", "path", "", "flows", "bytes", "cores", "Mpps")?;
        for live in &self.live {
            let Row { path, family, flows, bytes } = live.row;
            let (from, to) = middle_half(&live.rounds_pps);
            writeln!(
                f,
                "{:<20}{family:<4}{flows:>8}{bytes:>6}{:>7}{:>9.2}   {:.2}-{:.2}",
                path.to_string(),
                live.cores,
                median(&live.rounds_pps) / 1e6,
                from / 1e6,
                to / 1e6,
            )?;
        }
        Ok(())
    }

    /// One line for all rows of a path and family that are left out for the same reason.
    fn write_left_out(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for LeftOut { path, family, why, .. } in &self.left_out {
            let mut line = String::new();
            write!(line, "left out: {path} {family}: {why}")?;
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            processor: field.map_or("unknown processor", |(_, name)| name).to_owned(),
            // Not `available_parallelism`: this thread keeps to one of them.
            cpus: aya::util::nr_cpus().unwrap_or(1),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let row = |path, rounds_ns: &[f64]| Measured {
            row: Row { path, family: Family::V4, flows: 1, bytes: 64 },
            frame_bytes: 64,
            rounds_ns: rounds_ns.to_vec(),
        };
        let rows = vec![
            row(Path::Floor, &[10.0, 11.0, 9.0]),
            row(Path::Established, &[80.0, 79.0, 200.0]),
            row(Path::Against(Case::Established), &[100.0; 3]),
            row(Path::Pass, &[6.0; 3]),
        ];
        let direct = Row { path: Path::Direct, family: Family::V4, flows: 1, bytes: 64 };
        let left_out = vec![LeftOut::new(direct, "not there")];
        Report { rows, left_out, live: Vec::new(), harness_ns: 18.0 }
    }

    #[test]
    fn json_is_one_line_with_the_promised_fields() {
        let json = report().json();
        assert!(!json.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let row = &value["rows"][1];
        assert_eq!(row["path"], "established");
        assert_eq!(row["family"], "v4");
        assert_eq!((row["flows"].as_u64(), row["bytes"].as_u64()), (Some(1), Some(64)));
        assert_eq!((row["ns"].as_f64(), row["ratio_to_floor"].as_f64()), (Some(80.0), Some(8.0)));
        assert_eq!(value["left_out"][0]["why"], "not there");
    }

    #[test]
    fn requirements_are_ratios_of_medians_of_rows_that_were_measured() {
        let found = report().requirements();
        let lines: Vec<(&str, f64, bool)> =
            found.iter().map(|found| (found.ratio.as_str(), found.measured, found.reached)).collect();
        assert_eq!(
            lines,
            [
                ("established v4 / against-established v4, 1 flows", 0.8, true),
                ("pass v4 / floor v4, 1 flows", 0.6, false)
            ]
        );
    }

    #[test]
    fn people_are_told_what_is_missing_and_what_was_not_reached() {
        let text = report().to_string();
        assert!(text.contains("left out: direct v4: not there"), "{text}");
        assert!(text.contains("not reached"), "{text}");
    }
}
