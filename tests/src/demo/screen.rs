//! The demo's display: a panel redrawn in place on a terminal, plain lines elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// How often a plain display repeats where things stand.
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);

/// Whether output is coloured.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// No colours.
    pub const PLAIN: Self = Self { colour: false };

    /// Emphasised.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// As it should be.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// As it should not be.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// In transition.
    pub fn changing(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// In the background.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Where things stand: for a terminal as a panel, elsewhere as one line.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Lines of the panel.
    pub panel: Vec<String>,
    /// The same in a line.
    pub line: String,
}

/// The display.
pub struct Screen {
    out: Box<dyn Write>,
    live: bool,
    style: Style,
    began: Instant,
    /// Lines of the panel on the terminal, below which the cursor is.
    drawn: usize,
    standing: Option<Standing>,
    last_plain: Option<Instant>,
}

impl Screen {
    /// A display on stdout, or on stderr where stdout is for the receipt alone.
    pub fn new(on_stderr: bool) -> Self {
        let (out, terminal): (Box<dyn Write>, bool) = if on_stderr {
            (Box::new(io::stderr()), io::stderr().is_terminal())
        } else {
            (Box::new(io::stdout()), io::stdout().is_terminal())
        };
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let live = terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let style = Style { colour: live && !set("NO_COLOR") };
        Self { out, live, style, began: Instant::now(), drawn: 0, standing: None, last_plain: None }
    }

    /// A display that shows nothing.
    pub fn silent() -> Self {
        let began = Instant::now();
        let out = Box::new(io::sink());
        Self { out, live: false, style: Style::PLAIN, began, drawn: 0, standing: None, last_plain: None }
    }

    /// How text is styled here.
    pub fn style(&self) -> Style {
        self.style
    }

    /// A paragraph that stays, as it is.
    pub fn print(&mut self, text: &str) {
        self.erase();
        let _ = writeln!(self.out, "{text}");
        self.draw();
    }

    /// Something that happens now; it stays above the panel, with its time.
    pub fn event(&mut self, text: &str) {
        let time = self.style.faint(&format!("{:6.1} s", self.began.elapsed().as_secs_f64()));
        self.print(&format!("{time}  {text}"));
    }

    /// Shows where things stand now.
    pub fn show(&mut self, standing: Standing) {
        if self.live {
            self.erase();
            self.standing = Some(standing);
            self.draw();
        } else if self.last_plain.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL) {
            self.last_plain = Some(Instant::now());
            self.event(&standing.line);
        }
    }

    /// Takes the panel away.
    pub fn close(&mut self) {
        self.erase();
        self.standing = None;
        let _ = self.out.flush();
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            let _ = write!(self.out, "\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    fn draw(&mut self) {
        let Some(standing) = &self.standing else { return };
        // Without wrapping, a line too long for the terminal is one row nevertheless.
        let _ = write!(self.out, "\x1b[?7l");
        for line in &standing.panel {
            let _ = writeln!(self.out, "{line}");
        }
        let _ = write!(self.out, "\x1b[?7h");
        self.drawn = standing.panel.len();
        let _ = self.out.flush();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}
