//! Plain tables: aligned, two spaces apart, one line a row, so that `awk` and people can both read them.

/// Rows under headers.
pub(super) struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Columns of numbers, which are aligned to the right.
    right: &'static [usize],
}

impl Table {
    pub(super) fn new(headers: &[&'static str], right: &'static [usize]) -> Self {
        Self { headers: headers.to_vec(), rows: Vec::new(), right }
    }

    /// Adds a row; an empty cell becomes `-`, so that columns can be counted.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells = cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
        self.rows.push(cells.to_vec());
    }

    /// Adds a last column; `cells` has one for each row.
    pub(super) fn column(&mut self, header: &'static str, cells: impl IntoIterator<Item = String>) {
        self.headers.push(header);
        for (row, cell) in self.rows.iter_mut().zip(cells) {
            row.push(if cell.is_empty() { "-".to_owned() } else { cell });
        }
    }

    /// Its rows, of as many cells as there are headers.
    pub(super) fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Its headers.
    pub(super) fn headers(&self) -> Vec<String> {
        self.headers.iter().map(|header| (*header).to_owned()).collect()
    }

    /// Whether a column is aligned to the right.
    pub(super) fn is_right(&self, column: usize) -> bool {
        self.right.contains(&column)
    }

    /// Characters that each column takes, its header among them.
    pub(super) fn widths(&self) -> Vec<usize> {
        widths(self.headers.len(), std::iter::once(&self.headers()).chain(&self.rows))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, headers first if they are wanted.
    pub(super) fn render(&self, with_headers: bool) -> String {
        let headers = self.headers();
        let lines = || with_headers.then_some(&headers).into_iter().chain(&self.rows);
        let widths = widths(headers.len(), lines());
        lines().map(|cells| self.line(cells, &widths)).collect()
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let aligned = cells.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if self.right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        format!("{}\n", aligned.collect::<Vec<_>>().join("  ").trim_end())
    }
}

fn widths<'a>(columns: usize, lines: impl Iterator<Item = &'a Vec<String>>) -> Vec<usize> {
    lines.fold(vec![0; columns], |mut widths, cells| {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = cell.chars().count().max(*width);
        }
        widths
    })
}
