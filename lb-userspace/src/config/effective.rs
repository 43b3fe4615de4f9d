//! A configuration with everything that it leaves to defaults, as `tandem config show` prints it.

use serde_json::{Map, Value as Json, json};

use super::{
    Config, Host,
    catalogue::{Catalogue, Form, Key, Recorder},
};
use crate::identity::KEY_FILE;

/// All settings that are in effect on this host.
#[derive(Debug)]
pub struct Effective(Catalogue);

impl Effective {
    /// What `text`, which means `config` on `host`, says and leaves to defaults.
    pub(super) fn of(text: &str, config: &Config, host: &Host<'_>) -> Self {
        let mut catalogue = Catalogue::read(text, Recorder::of_one_file());
        let interfaces: Vec<toml::Value> =
            config.node.interfaces.iter().map(|name| name.as_str().to_owned().into()).collect();
        let cluster = interfaces.first().cloned();
        catalogue.set("/node", "name", config.this_member().name.to_string().into());
        catalogue.set("/node", "interfaces", interfaces.into());
        if let Some(cluster) = cluster {
            catalogue.set("/node", "cluster_interface", cluster);
        }
        let has_key_file = catalogue.table("/node").is_some_and(|node| node.has("key_file"));
        if config.node.key.is_some() && !has_key_file {
            catalogue.set("/node", "key_file", host.state.join(KEY_FILE).display().to_string().into());
        }
        Self(catalogue)
    }

    /// What `text` says and leaves to defaults, wherever it is read.
    pub(super) fn anywhere(text: &str) -> Self {
        Self(Catalogue::read(text, Recorder::of_one_file()))
    }

    /// As a file that means the same.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        self.write("", &mut text);
        text
    }

    /// For programs.
    pub fn to_json(&self) -> Json {
        self.json("")
    }

    /// The table at `pointer`: values and small tables first, as TOML wants them, then those with a title.
    fn write(&self, pointer: &str, text: &mut String) {
        let has_title = |tables: &[String]| tables.iter().any(|at| self.title(at).starts_with('['));
        let (titled, plain): (Vec<_>, Vec<_>) = self.keys(pointer).into_iter().partition(|(_, at)| has_title(at));
        for (key, tables) in plain {
            if let Some(value) = self.inline(key, &tables) {
                *text += &format!("{} = {value}\n", key.name);
            }
        }
        for at in titled.iter().flat_map(|(_, tables)| tables) {
            *text += &format!("\n{}\n", self.title(at));
            self.write(at, text);
        }
    }

    /// What is at a key, on one line, or one for each of several tables; `None` for what is not there.
    fn inline(&self, key: &Key, tables: &[String]) -> Option<String> {
        let table = |at: &String| {
            let inner = self.keys(at).into_iter().filter_map(|(key, tables)| {
                let value = self.inline(key, &tables)?;
                Some(format!("{} = {value}", key.name))
            });
            format!("{{ {} }}", inner.collect::<Vec<_>>().join(", "))
        };
        match key.form {
            Form::Value(_) | Form::List(_) => key.value.as_ref().map(ToString::to_string),
            Form::Table => tables.first().map(table),
            Form::Tables(_) if tables.is_empty() => None,
            Form::Tables(_) => {
                let lines: String = tables.iter().map(|at| format!("  {},\n", table(at))).collect();
                Some(format!("[\n{lines}]"))
            }
        }
    }

    fn json(&self, pointer: &str) -> Json {
        let mut object = Map::new();
        for (key, tables) in self.keys(pointer) {
            let value = match key.form {
                Form::Value(_) | Form::List(_) => key.value.as_ref().map(|value| json!(value)),
                Form::Table => tables.first().map(|at| self.json(at)),
                Form::Tables(_) => Some(tables.iter().map(|at| self.json(at)).collect()),
            };
            if let Some(value) = value {
                object.insert(key.name.to_owned(), value);
            }
        }
        Json::Object(object)
    }

    /// The keys of the table at `pointer`, and where the tables are that they hold.
    fn keys(&self, pointer: &str) -> Vec<(&Key, Vec<String>)> {
        let keys = self.0.table(pointer).map(|table| table.keys.as_slice()).unwrap_or_default();
        let held = |key: &Key| {
            let mut held = match key.form {
                Form::Value(_) | Form::List(_) => Vec::new(),
                Form::Table => vec![format!("{pointer}/{}", key.name)],
                Form::Tables(count) => (0..count).map(|at| format!("{pointer}/{}/{at}", key.name)).collect(),
            };
            held.retain(|at| self.0.table(at).is_some_and(|table| table.is_whole));
            held
        };
        keys.iter().map(|key| (key, held(key))).collect()
    }

    fn title(&self, pointer: &str) -> &'static str {
        self.0.table(pointer).map(|table| table.title).unwrap_or_default()
    }
}
