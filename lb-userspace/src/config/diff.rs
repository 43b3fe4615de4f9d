//! In what two configurations differ: every setting, those that are left to defaults among them, found by the names of things
//! and not by their places.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use super::effective::Effective;

/// A setting that one text has and the other has not, or has otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Where: `service[web].backends[web-1].weight`.
    pub setting: String,
    /// What runs; `None` for nothing.
    pub running: Option<Json>,
    /// What the file says; `None` for nothing.
    pub file: Option<Json>,
}

/// What would change if `file` took the place of `running`. The generation is no difference: it only counts them.
pub fn differences(running: &str, file: &str) -> Vec<Difference> {
    let settings = |text| Effective::anywhere(text).to_json();
    let mut found = Vec::new();
    compare("", Some(&settings(running)), Some(&settings(file)), &mut found);
    found.retain(|difference| difference.setting != "cluster.generation");
    found
}

fn compare(setting: &str, running: Option<&Json>, file: Option<&Json>, found: &mut Vec<Difference>) {
    match (running, file) {
        (Some(Json::Object(running)), Some(Json::Object(file))) => {
            let keys = running.keys().chain(file.keys().filter(|key| !running.contains_key(*key)));
            for key in keys {
                let inner = if setting.is_empty() { key.clone() } else { format!("{setting}.{key}") };
                compare(&inner, running.get(key), file.get(key), found);
            }
        }
        (Some(Json::Array(running)), Some(Json::Array(file))) => match (by_name(running), by_name(file)) {
            (Some(running), Some(file)) => {
                let names = running.keys().chain(file.keys().filter(|name| !running.contains_key(*name)));
                for name in names {
                    let inner = format!("{setting}[{name}]");
                    compare(&inner, running.get(name).copied(), file.get(name).copied(), found);
                }
            }
            _ if running == file => {}
            _ => found.push(Difference {
                setting: setting.into(),
                running: Some(running.clone().into()),
                file: Some(file.clone().into()),
            }),
        },
        (running, file) if is_same(running, file) => {}
        (running, file) => {
            found.push(Difference { setting: setting.into(), running: running.cloned(), file: file.cloned() });
        }
    }
}

/// Equal, or the same time in other units.
fn is_same(running: Option<&Json>, file: Option<&Json>) -> bool {
    let time = |value: Option<&Json>| humantime::parse_duration(value?.as_str()?).ok();
    running == file || time(running).is_some_and(|running| time(file) == Some(running))
}

/// A list of tables that have names of their own.
fn by_name(list: &[Json]) -> Option<BTreeMap<&str, &Json>> {
    let named: BTreeMap<&str, &Json> =
        list.iter().map(|table| Some((table.get("name")?.as_str()?, table))).collect::<Option<_>>()?;
    (named.len() == list.len()).then_some(named)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RUNNING: &str = r#"version = 1
[cluster]
name = "edge-1"
hash_key_file = "hash.key"
generation = 4
[[cluster.member]]
id = 1
name = "lb1"
address = "10.0.1.11"
[[service]]
name = "web"
vip = ["203.0.113.10:80/tcp"]
backends = [{ name = "web-1", address = "10.0.2.11" }, { name = "web-2", address = "10.0.2.12" }]
"#;

    #[test]
    fn what_means_the_same_has_no_differences() {
        assert_eq!(differences(RUNNING, RUNNING), []);
        let other = RUNNING.replace("generation = 4", "# seven\ngeneration = 7\ngrace = \"60s\"");
        assert_eq!(differences(RUNNING, &other), []);
        let turned = r#"backends = [{ name = "web-2", address = "10.0.2.12", weight = 100 }, { name = "web-1", address = "10.0.2.11" }]"#;
        let turned = RUNNING.lines().map(|line| if line.starts_with("backends") { turned } else { line });
        assert_eq!(differences(RUNNING, &turned.collect::<Vec<_>>().join("\n")), []);
    }

    #[test]
    fn differences_are_found_by_name() {
        let file = RUNNING
            .replace(r#"{ name = "web-1", address = "10.0.2.11" }, "#, r#"{ name = "web-3", address = "10.0.2.13" }, "#)
            .replace(r#""10.0.2.12" }"#, r#""10.0.2.12", weight = 7 }"#)
            .replace("generation = 4", "grace = \"5s\"");
        let found = differences(RUNNING, &file);
        let settings: Vec<&str> = found.iter().map(|difference| difference.setting.as_str()).collect();
        assert_eq!(
            settings,
            [
                "cluster.grace",
                "service[web].backends[web-1]",
                "service[web].backends[web-2].weight",
                "service[web].backends[web-3]"
            ]
        );
        assert_eq!((&found[0].running, &found[0].file), (&Some(json!("1m")), &Some(json!("5s"))));
        assert_eq!((&found[2].running, &found[2].file), (&Some(json!(100)), &Some(json!(7))));
        assert!(found[1].file.is_none() && found[3].running.is_none());
    }
}
