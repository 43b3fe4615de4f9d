//! The terminal: draws what was seen, and obeys keys.

use std::time::{Duration, Instant};

use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Row, Table as Rows},
};

use super::{Order, Top, heading, tables, verdict};
use crate::{
    cli::{Exit, Failure, table::Table},
    inspect::status::Verdict,
};

/// Between columns.
const GAP: u16 = 2;

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    End,
    Sort,
    Nothing,
}

/// Draws until a key ends it.
pub(super) fn run(
    interval: Duration,
    is_coloured: bool,
    mut look: impl FnMut() -> Result<Top, Failure>,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("the terminal: {error}"));
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut show = || -> Result<(), Failure> {
        let (mut order, mut top, mut looked) = (Order::default(), look()?, Instant::now());
        loop {
            terminal.draw(|frame| draw(frame, &top, order, is_coloured)).map_err(failed)?;
            if event::poll(interval.saturating_sub(looked.elapsed())).map_err(failed)? {
                match event::read().map_err(failed)? {
                    Event::Key(key) if key.kind == KeyEventKind::Press => match wish(key) {
                        Wish::End => return Ok(()),
                        Wish::Sort => order = order.next(),
                        Wish::Nothing => {}
                    },
                    // Another size of the terminal, above all.
                    _ => {}
                }
            }
            if looked.elapsed() >= interval {
                (top, looked) = (look()?, Instant::now());
            }
        }
    };
    let shown = show();
    ratatui::restore();
    shown
}

fn wish(key: KeyEvent) -> Wish {
    match (key.code, key.modifiers) {
        (KeyCode::Char('q') | KeyCode::Esc, _) | (KeyCode::Char('c'), KeyModifiers::CONTROL) => Wish::End,
        (KeyCode::Char('s'), _) => Wish::Sort,
        _ => Wish::Nothing,
    }
}

fn draw(frame: &mut Frame<'_>, top: &Top, order: Order, is_coloured: bool) {
    let tables = tables(top, order);
    let shown: Vec<&Table> = tables.iter().map(|(_, table)| table).filter(|table| !table.is_empty()).collect();
    let area = frame.area();
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(3), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    draw_heading(frame, head, top, is_coloured);
    for (table, area) in shown.iter().zip(divided(body, &shown)) {
        draw_table(frame, area, table);
    }
    let keys = format!("sorted by {}   s: sort   q: end", order.name());
    frame.render_widget(Line::styled(keys, Style::new().add_modifier(Modifier::DIM)), foot);
}

fn draw_heading(frame: &mut Frame<'_>, area: Rect, top: &Top, is_coloured: bool) {
    let colour = match top.verdict {
        Verdict::Ok => Color::Green,
        Verdict::Degraded => Color::Yellow,
        Verdict::Down => Color::Red,
    };
    let style = Style::new().add_modifier(Modifier::BOLD);
    let style = if is_coloured { style.fg(colour) } else { style };
    let [first, second] = heading(top);
    let lines =
        vec![Line::from(vec![Span::styled(verdict(top), style), Span::raw(format!(": {first}"))]), second.into()];
    frame.render_widget(ratatui::text::Text::from(lines), area);
}

/// A header, the rows, and an empty line for each table. Where not all fit, each has its part, and the first ones what is left.
fn divided(area: Rect, tables: &[&Table]) -> Vec<Rect> {
    let wanted: Vec<u16> =
        tables.iter().map(|table| u16::try_from(table.rows().len() + 2).unwrap_or(u16::MAX)).collect();
    let mut left = area.height;
    let mut heights = vec![0_u16; wanted.len()];
    // The small ones first: what they do not need is for the others.
    let mut by_size: Vec<usize> = (0..wanted.len()).collect();
    by_size.sort_by_key(|at| wanted[*at]);
    for (done, at) in by_size.iter().enumerate() {
        let share = left / (wanted.len() - done) as u16;
        heights[*at] = wanted[*at].min(share);
        left -= heights[*at];
    }
    let mut y = area.y;
    let place = |height: &u16| {
        let place = Rect { y, height: *height, ..area };
        y += height;
        place
    };
    heights.iter().map(place).collect()
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, table: &Table) {
    let widths = table.widths();
    let row = |cells: &[String]| {
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            let line = Line::raw(cell.clone());
            Cell::from(if table.is_right(column) { line.right_aligned() } else { line })
        });
        Row::new(cells.collect::<Vec<_>>())
    };
    let header = row(&table.headers()).style(Style::new().add_modifier(Modifier::BOLD));
    // The last line of each area stays empty.
    let area = Rect { height: area.height.saturating_sub(1), ..area };
    let rows = Rows::new(table.rows().iter().map(|cells| row(cells)), widths.iter().map(|width| *width as u16));
    frame.render_widget(rows.header(header).column_spacing(GAP), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::tests::top, *};

    fn drawn(top: &Top, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, top, Order::Packets, true)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn the_screen_has_the_verdict_the_sums_and_every_table() {
        let screen = drawn(&top(), 110, 30);
        let lines: Vec<&str> = screen.lines().collect();
        assert_eq!(lines[0], "ok: lb1 of edge-1");
        assert!(lines[1].starts_with("25,002 packets/s"), "{screen}");
        let starts =
            ["SERVICE", "web ", "BACKEND", "-  ", "DROPPED", "drop_fragment_no_head", "MEMBER", "lb1 (this)", "lb2 "];
        let mut at = 0;
        for start in starts {
            at += 1 + lines[at..]
                .iter()
                .position(|line| line.starts_with(start))
                .unwrap_or_else(|| panic!("no {start}:\n{screen}"));
        }
        assert_eq!(lines[29], "sorted by packets   s: sort   q: end");
        let numbers = lines.iter().find(|line| line.starts_with("web ")).unwrap();
        assert!(numbers.contains("1/2") && numbers.contains("25,000"), "{numbers}");
    }

    #[test]
    fn a_small_terminal_shows_the_head_of_each_table_and_none_is_too_small() {
        let mut top = top();
        top.backends = vec![top.backends[0].clone(); 5000];
        let screen = drawn(&top, 60, 24);
        for title in ["SERVICE", "BACKEND", "DROPPED", "MEMBER", "sorted by"] {
            assert!(screen.contains(title), "no {title}:\n{screen}");
        }
        for (width, height) in [(1, 1), (200, 2), (3, 50), (80, 6)] {
            drawn(&top, width, height);
        }
    }

    #[test]
    fn keys_end_and_sort() {
        assert_eq!(wish(KeyEvent::from(KeyCode::Char('q'))), Wish::End);
        assert_eq!(wish(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::End);
        assert_eq!(wish(KeyEvent::from(KeyCode::Char('c'))), Wish::Nothing);
        assert_eq!(wish(KeyEvent::from(KeyCode::Char('s'))), Wish::Sort);
    }
}
