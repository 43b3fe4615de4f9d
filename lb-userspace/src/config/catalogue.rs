//! What the readers ask for: every key of every table, as one reading of a file records them.
//!
//! The schema and `config show` are made of this, so that neither can differ from what the parser takes.

use std::{cell::RefCell, collections::BTreeMap};

use serde_json::{Map, Value as Json, json};
use toml::de::DeValue;

use super::{draft::Draft, problem::Problems};

/// Takes down what is asked for while a file is read.
#[derive(Debug)]
pub(super) struct Recorder {
    tables: RefCell<BTreeMap<String, Table>>,
    /// Whether tables that are not there are read as if they were empty, and lists of tables as if they had one.
    pub(super) has_examples: bool,
}

/// All that was asked for, by JSON pointer: `/cluster/member/0`.
#[derive(Debug, Default)]
pub(super) struct Catalogue(BTreeMap<String, Table>);

/// A table that was read.
#[derive(Debug)]
pub(super) struct Table {
    /// What messages call it: `[cluster]`, `cluster.probe`.
    pub(super) title: &'static str,
    /// Its keys, in the order they were asked for.
    pub(super) keys: Vec<Key>,
    /// Whether the file has it, or it would be complete without a word.
    pub(super) is_whole: bool,
}

impl Table {
    /// Whether `name` has a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name && key.value.is_some())
    }
}

/// A key that a table may have.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What its value is, for people.
    pub(super) what: String,
    pub(super) form: Form,
    pub(super) is_required: bool,
    /// The value in the file, or the default.
    pub(super) value: Option<toml::Value>,
}

/// What is at a key.
#[derive(Debug)]
pub(super) enum Form {
    /// A value of this schema.
    Value(Json),
    /// A list of such values.
    List(Json),
    /// A table.
    Table,
    /// So many tables.
    Tables(usize),
}

impl Recorder {
    /// Of all keys that a file may have.
    pub(super) fn of_everything() -> Self {
        Self { tables: RefCell::default(), has_examples: true }
    }

    /// Of the keys of one file, with the defaults of those that it leaves out.
    pub(super) fn of_one_file() -> Self {
        Self { tables: RefCell::default(), has_examples: false }
    }

    pub(super) fn push(&self, pointer: String, table: Table) {
        self.tables.borrow_mut().insert(pointer, table);
    }

    pub(super) fn finish(self) -> Catalogue {
        Catalogue(self.tables.into_inner())
    }
}

impl Catalogue {
    /// Of what the readers ask for in `text`.
    pub(super) fn read(text: &str, recorder: Recorder) -> Self {
        let problems = Problems::recorded(recorder);
        Draft::read(text, &problems);
        problems.into_catalogue()
    }

    /// The table at `pointer`.
    pub(super) fn table(&self, pointer: &str) -> Option<&Table> {
        self.0.get(pointer)
    }

    /// Replaces the value at `name` of the table at `pointer`.
    pub(super) fn set(&mut self, pointer: &str, name: &str, value: toml::Value) {
        let table = self.0.get_mut(pointer);
        if let Some(key) = table.and_then(|table| table.keys.iter_mut().find(|key| key.name == name)) {
            key.value = Some(value);
        }
    }

    /// A JSON schema (draft 7, which editors of TOML read) of all that was asked for.
    pub(super) fn schema(&self) -> Json {
        let mut schema = self.schema_of("");
        schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
        schema["title"] = "Tandem's configuration".into();
        schema
    }

    fn schema_of(&self, pointer: &str) -> Json {
        let keys = self.table(pointer).map(|table| table.keys.as_slice()).unwrap_or_default();
        let required: Vec<&str> = keys.iter().filter(|key| key.is_required).map(|key| key.name).collect();
        let properties: Map<String, Json> =
            keys.iter().map(|key| (key.name.to_owned(), self.schema_of_key(pointer, key))).collect();
        json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
    }

    fn schema_of_key(&self, pointer: &str, key: &Key) -> Json {
        let mut schema = match &key.form {
            Form::Value(schema) => schema.clone(),
            Form::List(items) => json!({ "type": "array", "items": items }),
            Form::Table => self.schema_of(&format!("{pointer}/{}", key.name)),
            Form::Tables(_) => {
                json!({ "type": "array", "items": self.schema_of(&format!("{pointer}/{}/0", key.name)) })
            }
        };
        if key.is_required && schema["type"] == "array" {
            schema["minItems"] = 1.into();
        }
        if !key.what.is_empty() {
            schema["description"] = key.what.clone().into();
        }
        if let Some(default) = &key.value {
            schema["default"] = json!(default);
        }
        schema
    }
}

/// A value of the file, without its place.
pub(super) fn plain(value: &DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or_default().into(),
        DeValue::Float(float) => float.as_str().parse::<f64>().unwrap_or_default().into(),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(value) => toml::Value::Datetime(*value),
        DeValue::Array(array) => toml::Value::Array(array.iter().map(|value| plain(value.get_ref())).collect()),
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref())));
            toml::Value::Table(entries.collect())
        }
    }
}
