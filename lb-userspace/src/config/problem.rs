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

    fn render(&self, path: &str, text: &str, renderer: &Renderer) -> String {
        let mut group = Group::with_title(Level::ERROR.primary_title(self.message.as_str()));
        group = match &self.at {
            Some((span, label)) => {
                let mut snippet = Snippet::source(text).path(path).annotation(annotation(
                    AnnotationKind::Primary,
                    clamp(span, text),
                    label,
                ));
                if let Some((span, label)) = &self.related {
                    snippet = snippet.annotation(annotation(AnnotationKind::Context, clamp(span, text), label));
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
                let path = path.display().to_string();
                let mut rendered: Vec<String> =
                    problems.iter().map(|problem| problem.render(&path, text, &renderer)).collect();
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
