//! Colours, where a person looks.

use std::io::IsTerminal;

/// Paints words, or leaves them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    is_on: bool,
}

impl Paint {
    /// For stdout.
    pub(super) fn stdout() -> Self {
        Self { is_on: is_wanted(std::io::stdout().is_terminal()) }
    }

    /// For tests.
    #[cfg(test)]
    pub(super) fn off() -> Self {
        Self { is_on: false }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.is_on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether a stream that is a terminal or not gets colours (see no-color.org).
pub(super) fn is_wanted(is_terminal: bool) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
