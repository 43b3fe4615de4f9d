//! What is wrong with a configuration: collected, and shown with the line it is about.

use std::{
    cell::RefCell,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet, renderer::DecorStyle};

use super::catalogue::{Catalogue, Recorder};

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: String,
    },
    /// The file was read and is wrong.
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is in it.
        text: String,
        /// Everything that is wrong with it, in the order of the file; at least one.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    message: String,
    /// Bytes of the text, and what to say beside them.
    at: Option<(Range<usize>, String)>,
    related: Option<(Range<usize>, String)>,
    help: Option<String>,
}

/// Collects problems from readers that go on after the first.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: RefCell<Vec<Problem>>,
    /// Takes down which keys the readers know, where somebody wants to know that.
    recorder: Option<Recorder>,
}

impl Problems {
    /// The same readers, and what they ask for is taken down.
    pub(super) fn recorded(recorder: Recorder) -> Self {
        Self { found: RefCell::default(), recorder: Some(recorder) }
    }

    pub(super) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// What was taken down.
    pub(super) fn into_catalogue(self) -> Catalogue {
        self.recorder.map(Recorder::finish).unwrap_or_default()
    }

    pub(super) fn push(&self, problem: Problem) {
        self.found.borrow_mut().push(problem);
    }

    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.found.into_inner();
        problems.sort_by_key(|problem| problem.at.as_ref().map_or(usize::MAX, |(span, _)| span.start));
        problems
    }
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), at: None, related: None, help: None }
    }

    /// Points at `span`.
    pub(super) fn at(self, span: Range<usize>, label: impl Into<String>) -> Self {
        Self { at: Some((span, label.into())), ..self }
    }

    /// Points at `span` too, which explains.
    pub(super) fn with(self, span: Range<usize>, label: impl Into<String>) -> Self {
        Self { related: Some((span, label.into())), ..self }
    }

    /// Says what to do.
    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn render(&self, path: &str, source: &Source<'_>, renderer: &Renderer) -> String {
        let mut group = Group::with_title(Level::ERROR.primary_title(self.message.as_str()));
        group = match &self.at {
            Some((span, label)) => {
                let span = clamp(span, source.text);
                let related = self.related.as_ref().map(|(span, label)| (clamp(span, source.text), label));
                let ends = [Some(&span), related.as_ref().map(|(span, _)| span)];
                let (first, text, begin) = source.lines_of(ends.into_iter().flatten());
                let shift = |span: Range<usize>| span.start - begin..span.end - begin;
                let mut snippet = Snippet::source(text).line_start(first).path(path);
                snippet = snippet.annotation(annotation(AnnotationKind::Primary, shift(span), label));
                if let Some((span, label)) = related {
                    snippet = snippet.annotation(annotation(AnnotationKind::Context, shift(span), label));
                }
                group.element(snippet)
            }
            None => group.element(Origin::path(path)),
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }
}

/// A file's text, whose lines can be found without reading it from the beginning for each of ten thousand problems.
struct Source<'a> {
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, lines: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect() }
    }

    /// The lines that hold all of `spans`: the number of the first, their text, and where that begins.
    fn lines_of<'s>(&self, spans: impl Iterator<Item = &'s Range<usize>> + Clone) -> (usize, &'a str, usize) {
        let start = spans.clone().map(|span| span.start).min().unwrap_or(0);
        let end = spans.map(|span| span.end).max().unwrap_or(0);
        let number = self.lines.partition_point(|begin| *begin <= start).max(1);
        let begin = self.lines[number - 1];
        let next = self.lines.partition_point(|begin| *begin <= end);
        (number, &self.text[begin..self.lines.get(next).copied().unwrap_or(self.text.len())], begin)
    }
}

fn annotation<'a>(kind: AnnotationKind, span: Range<usize>, label: &'a str) -> annotate_snippets::Annotation<'a> {
    let annotation = kind.span(span);
    if label.is_empty() { annotation } else { annotation.label(label) }
}

/// The part of `span` on its first line (a table's span may hold many), within `text` and on character boundaries.
fn clamp(span: &Range<usize>, text: &str) -> Range<usize> {
    let start = text.floor_char_boundary(span.start);
    let end = text.ceil_char_boundary(span.end.max(start));
    let line = text[start..end].find('\n').map_or(end, |at| start + at);
    start..line
}

impl ConfigError {
    /// The problems with source lines, as rustc shows them; with colours if `styled`.
    pub fn render(&self, styled: bool) -> String {
        let renderer = if styled { Renderer::styled() } else { Renderer::plain() }.decor_style(DecorStyle::Ascii);
        match self {
            Self::Unreadable { path, error } => {
                format!("error: cannot read the configuration {}: {error}", path.display())
            }
            Self::Invalid { path, text, problems } => {
                let (path, source) = (path.display().to_string(), Source::of(text));
                let mut rendered: Vec<String> =
                    problems.iter().map(|problem| problem.render(&path, &source, &renderer)).collect();
                if problems.len() > 1 {
                    rendered.push(format!("{} problems in {path}", problems.len()));
                }
                rendered.join("\n\n")
            }
        }
    }

    /// The file it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Unreadable { path, .. } | Self::Invalid { path, .. } => path,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigError {}
