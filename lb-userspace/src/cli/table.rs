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

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, headers first if they are wanted.
    pub(super) fn render(&self, with_headers: bool) -> String {
        let headers: Vec<String> = self.headers.iter().map(|header| (*header).to_owned()).collect();
        let lines = || with_headers.then_some(&headers).into_iter().chain(&self.rows);
        let width =
            |column: usize| lines().filter_map(|cells| cells.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..headers.len()).map(|column| width(column).unwrap_or(0)).collect();
        lines().map(|cells| self.line(cells, &widths)).collect()
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let aligned = cells.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if self.right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        format!("{}\n", aligned.collect::<Vec<_>>().join("  ").trim_end())
    }
}
