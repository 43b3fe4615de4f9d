//! What is printed, what is documented, and that both are the same.

use std::collections::BTreeSet;

use super::*;
use crate::inspect::fixture::{names, readings};

/// Every metric of the text, by the names of its samples.
fn sampled(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

#[test]
fn every_metric_is_printed_and_is_in_the_table_of_the_documentation_and_no_other_is() {
    let mut readings = readings();
    (readings.liveness.flags, readings.liveness.left) = (lb_common::liveness::LIVENESS_DRAINING, 12);
    let printed = sampled(&exposition(&readings, &names()));
    let declared: BTreeSet<String> = METRICS.iter().map(Metric::name).collect();
    assert_eq!(declared.len(), METRICS.len(), "a name twice");
    assert_eq!(printed, declared);

    let documentation = include_str!("../../../../docs/metrics.md");
    for metric in METRICS {
        let kind = if metric.kind == Kind::Counter { "counter" } else { "gauge" };
        let mut found = Samples::default();
        let facts = facts(&readings, &names());
        (metric.samples)(&facts, &mut found);
        let labels: Vec<String> = found.0[0].0.iter().map(|(label, _)| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        let row = format!("\n| `{}` | {kind} | {labels} | {} |\n", metric.name(), metric.help);
        assert!(documentation.contains(&row), "docs/metrics.md has no row{row}");
    }
    let documented = documentation.lines().filter(|line| line.starts_with("| `tandem_")).count();
    assert_eq!(documented, METRICS.len(), "docs/metrics.md has a metric that does not exist");
}

#[test]
fn a_reason_that_never_happened_is_printed_as_0_so_that_its_first_time_is_a_rise() {
    let text = exposition(&readings(), &names());
    for reason in Reason::ALL {
        let start = format!("tandem_packets_total{{reason=\"{}\",action=\"", reason.name());
        assert!(text.lines().any(|line| line.starts_with(&start)), "{start}");
    }
    let line = |line: &str| assert!(text.contains(&format!("\n{line}\n")), "no line {line} in\n{text}");
    line("tandem_packets_total{reason=\"drop_fragment_no_head\",action=\"drop\"} 3");
    line("tandem_packets_total{reason=\"drop_martian\",action=\"drop\"} 0");
    line("tandem_service_packets_total{service=\"web\",vip=\"203.0.113.10:80/tcp\",action=\"deliver\"} 1234567");
    line("tandem_peer_round_trip_seconds{peer=\"lb2\",peer_id=\"2\"} 0.000084");
    line("tandem_flows{family=\"ipv6\"} 67");
    assert!(text.ends_with("\n# EOF\n"));
}

/// Names that begin with `tandem_` in the expressions of `text`.
fn used(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("tandem_")).map(str::to_owned).collect()
}

/// Every string at a key called `key`, however deep.
fn strings<'a>(value: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                found.extend(value.as_str().filter(|_| name == key));
                strings(value, key, found);
            }
        }
        serde_json::Value::Array(array) => array.iter().for_each(|value| strings(value, key, found)),
        _ => {}
    }
}

#[test]
fn rules_and_dashboard_ask_for_metrics_and_reasons_that_exist() {
    let rules = serde_saphyr::from_str(include_str!("../../../../etc/prometheus/tandem.rules.yml")).unwrap();
    let dashboard = serde_json::from_str(include_str!("../../../../etc/grafana/tandem.json")).unwrap();
    let declared: BTreeSet<String> = METRICS.iter().map(Metric::name).collect();
    let mut asked = BTreeSet::new();
    for (file, least) in [(&rules, 15), (&dashboard, 20)] {
        let mut expressions = Vec::new();
        strings(file, "expr", &mut expressions);
        assert!(expressions.len() >= least, "{} expressions", expressions.len());
        for expression in expressions {
            let used = used(expression);
            let unknown: Vec<_> = used.difference(&declared).collect();
            assert!(unknown.is_empty(), "{expression}: {unknown:?}");
            for reason in expression.split("reason=~\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let exists = |name: &str| Reason::ALL.iter().any(|reason| reason.name() == name);
                assert!(reason.split('|').all(exists), "{expression}");
            }
            asked.extend(used);
        }
    }
    let unseen: Vec<_> = declared.difference(&asked).filter(|name| !name.ends_with("_bytes_total")).collect();
    assert!(unseen.len() <= 4, "metrics that nobody looks at: {unseen:?}");
}
