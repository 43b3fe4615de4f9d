//! Reads a TOML table key by key, and goes on after an error, so that all of them are found.
//!
//! A derived deserializer stops at its first error; this reader is as much code as the structs it would need.

use std::{ops::Range, sync::LazyLock};

use serde_json::{Value as Json, json};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    catalogue::{Form, Key, Table, plain},
    problem::{Problem, Problems},
};

/// A type that one TOML value becomes.
pub(super) trait Value: Sized {
    /// What the value must be, for "`key` must be ...".
    fn what() -> String;

    /// The value, or why it is none, in a few words; empty when `what` says it all.
    fn read(value: &DeValue<'_>) -> Result<Self, String>;

    /// What `read` takes, as far as a JSON schema can say it.
    fn schema() -> Json {
        json!({})
    }

    /// As it would be written; for types with defaults.
    fn written(&self) -> Option<toml::Value> {
        None
    }
}

/// What a table that is not there is read as, where that is wanted.
static EMPTY: LazyLock<DeTable<'static>> = LazyLock::new(DeTable::new);

/// A table that is being read.
pub(super) struct Section<'a> {
    title: &'static str,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    /// Keys that were asked for: all that the table may have.
    known: Vec<&'static str>,
    /// Required keys that are not there, and what they are.
    missing: Vec<(&'static str, String)>,
    /// Where it is, and what was asked for, if somebody takes that down.
    record: Option<(String, Vec<Key>)>,
    /// Whether the file has it.
    is_real: bool,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    pub(super) fn new(title: &'static str, table: &'a Spanned<DeTable<'a>>, problems: &'a Problems) -> Self {
        let record = problems.recorder().map(|_| (String::new(), Vec::new()));
        Self { record, ..Self::of(title, table.get_ref(), table.span(), problems) }
    }

    /// Where the table begins.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value of `key`, which must be there.
    pub(super) fn required<T: Value>(&mut self, key: &'static str) -> Option<Spanned<T>> {
        if !self.has(key) {
            self.missing.push((key, T::what()));
        }
        let read = self.optional(key);
        self.demand(key);
        read
    }

    /// The value of `key`, if it is there.
    pub(super) fn optional<T: Value>(&mut self, key: &'static str) -> Option<Spanned<T>> {
        let value = self.value(key);
        self.note(key, T::what, || Form::Value(T::schema()), || value.map(|value| plain(value.get_ref())));
        self.read(key, value?)
    }

    /// The value of `key`, or `default`; `None` only for a wrong value.
    pub(super) fn or<T: Value>(&mut self, key: &'static str, default: T) -> Option<T> {
        let value = self.value(key);
        let written = || value.map_or_else(|| default.written(), |value| Some(plain(value.get_ref())));
        self.note(key, T::what, || Form::Value(T::schema()), written);
        match value {
            Some(value) => self.read(key, value).map(Spanned::into_inner),
            None => Some(default),
        }
    }

    /// Where the list at `key` should be and is not, or is and is empty.
    pub(super) fn lack(&self, key: &str) -> Option<Range<usize>> {
        match self.table.get(key) {
            None => Some(self.span()),
            Some(value) if value.get_ref().as_array().is_some_and(|array| array.is_empty()) => Some(value.span()),
            Some(_) => None,
        }
    }

    /// The valid elements of the list at `key`.
    pub(super) fn list<T: Value>(&mut self, key: &'static str) -> Vec<Spanned<T>> {
        let value = self.value(key);
        self.note(key, String::new, || Form::List(T::schema()), || value.map(|value| plain(value.get_ref())));
        let Some(value) = value else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.mistyped(key, "a list", value);
            return Vec::new();
        };
        array.iter().filter_map(|element| self.read(key, element)).collect()
    }

    /// The table at `key`, if it is there.
    pub(super) fn table(&mut self, key: &'static str, title: &'static str) -> Option<Self> {
        let value = self.value(key);
        self.note(key, String::new, || Form::Table, || None);
        match value {
            Some(value) => self.section(key, key, title, value),
            None => self.example(key, title),
        }
    }

    /// The tables of the list at `key`, and where the list is.
    pub(super) fn tables(&mut self, key: &'static str, title: &'static str) -> Option<Spanned<Vec<Self>>> {
        let Some(value) = self.value(key) else {
            self.note(key, String::new, || Form::Tables(1), || None);
            let is_wanted = self.problems.recorder().is_some_and(|recorder| recorder.has_examples);
            let example = if is_wanted { self.example(&format!("{key}/0"), title) } else { None };
            return example.map(|example| Spanned::new(self.span(), vec![example]));
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.mistyped(key, "a list of tables", value);
            return None;
        };
        self.note(key, String::new, || Form::Tables(array.len()), || None);
        let tables = array.iter().enumerate();
        let tables = tables.filter_map(|(at, element)| self.section(key, &format!("{key}/{at}"), title, element));
        Some(Spanned::new(value.span(), tables.collect()))
    }

    /// Takes down that `key`, which was asked for, must be there.
    pub(super) fn demand(&mut self, key: &str) {
        let keys = self.record.iter_mut().flat_map(|(_, keys)| keys);
        keys.filter(|known| known.name == key).for_each(|known| known.is_required = true);
    }

    /// Complains about required keys that are not there, and keys that nobody asked for.
    pub(super) fn finish(self) {
        let mut misspelt = Vec::new();
        for key in self.table.keys().filter(|key| !self.known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let near = nearest(name, &self.known).filter(|near| !self.has(near));
            misspelt.extend(near);
            let label = near.map(|near| format!("did you mean `{near}`?")).unwrap_or_default();
            let problem = Problem::new(format!("unknown key `{name}` in {}", self.title)).at(key.span(), label);
            self.problems.push(problem.help(format!("keys of {}: {}", self.title, self.known.join(", "))));
        }
        for (key, what) in self.missing.iter().filter(|(key, _)| !misspelt.contains(key)) {
            let problem = Problem::new(format!("`{key}` is missing in {}", self.title)).at(self.span(), "");
            self.problems.push(problem.help(format!("`{key}` is {what}")));
        }
        if let (Some((pointer, keys)), Some(recorder)) = (self.record, self.problems.recorder()) {
            let is_whole = self.is_real || self.missing.is_empty();
            recorder.push(pointer, Table { title: self.title, keys, is_whole });
        }
    }

    fn of(title: &'static str, table: &'a DeTable<'a>, span: Range<usize>, problems: &'a Problems) -> Self {
        Self { title, table, span, known: Vec::new(), missing: Vec::new(), record: None, is_real: true, problems }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn read<T: Value>(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Spanned<T>> {
        match T::read(value.get_ref()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(why) => {
                let problem = Problem::new(format!("`{key}` must be {}", T::what()));
                self.problems.push(problem.at(value.span(), why));
                None
            }
        }
    }

    /// The table that `value`, found at `key`, must be; `step` leads to it from here.
    fn section(&self, key: &str, step: &str, title: &'static str, value: &'a Spanned<DeValue<'a>>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            self.mistyped(key, "a table", value);
            return None;
        };
        Some(Self { record: self.record_at(step), ..Self::of(title, table, value.span(), self.problems) })
    }

    /// An empty table in the place of one that is not there, so that its keys are asked for: only where that is taken down.
    fn example(&self, step: &str, title: &'static str) -> Option<Self> {
        let record = Some(self.record_at(step)?);
        Some(Self { record, is_real: false, ..Self::of(title, &EMPTY, self.span(), self.problems) })
    }

    fn record_at(&self, step: &str) -> Option<(String, Vec<Key>)> {
        let (pointer, _) = self.record.as_ref()?;
        Some((format!("{pointer}/{step}"), Vec::new()))
    }

    fn note(
        &mut self,
        name: &'static str,
        what: impl FnOnce() -> String,
        form: impl FnOnce() -> Form,
        value: impl FnOnce() -> Option<toml::Value>,
    ) {
        if let Some((_, keys)) = &mut self.record {
            keys.push(Key { name, what: what(), form: form(), is_required: false, value: value() });
        }
    }

    fn mistyped(&self, key: &str, what: &str, value: &Spanned<DeValue<'_>>) {
        let problem = Problem::new(format!("`{key}` must be {what}"));
        self.problems.push(problem.at(value.span(), found(value.get_ref())));
    }
}

/// Says of which type a value is that should have been of another.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value.type_str() {
        kind @ ("integer" | "array") => format!("this is an {kind}"),
        kind => format!("this is a {kind}"),
    }
}

/// The candidate that `word` may be a misspelling of.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let distance = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    let near = candidates.iter().copied().min_by_key(|candidate| distance(candidate))?;
    (distance(near) <= 1 + near.len() / 4).then_some(near)
}

/// Complains about every element that equals an earlier one.
pub(super) fn reject_duplicates<K: Ord>(
    items: impl IntoIterator<Item = (K, Range<usize>)>,
    problems: &Problems,
    message: impl Fn(&K) -> String,
) {
    let mut first = std::collections::BTreeMap::new();
    for (key, span) in items {
        match first.get(&key) {
            Some(before) => {
                let problem = Problem::new(message(&key)).at(span, "used again here");
                problems.push(problem.with(Range::clone(before), "first used here"));
            }
            None => {
                first.insert(key, span);
            }
        }
    }
}
