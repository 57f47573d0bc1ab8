//! Columns that line up, with no frame, so that they can be cut and searched.

use super::output::{Paint, Styles, harmless};

/// Space between two columns.
const GAP: &str = "  ";

/// One field.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    pub(super) fn painted(paint: Paint, text: &str) -> Self {
        Self {
            text: harmless(text),
            paint,
        }
    }

    /// Alone, outside of a table.
    pub(super) fn show(&self, styles: Styles) -> String {
        styles.paint(self.paint, &self.text)
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::painted(Paint::Plain, text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// A table whose rows may come one by one.
#[derive(Debug)]
pub(super) struct Table {
    headers: Vec<Cell>,
    widths: Vec<usize>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(headers: &[&str]) -> Self {
        let headers: Vec<Cell> = headers
            .iter()
            .map(|header| Cell::painted(Paint::Strong, header))
            .collect();
        Self {
            widths: headers.iter().map(Cell::width).collect(),
            headers,
            rows: Vec::new(),
        }
    }

    /// Adds a row; columns become as wide as they must.
    pub(super) fn push(&mut self, row: Vec<Cell>) {
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            *width = cell.width().max(*width);
        }
        self.rows.push(row);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The line with the columns' names.
    pub(super) fn header(&self, styles: Styles) -> String {
        self.format(&self.headers, styles)
    }

    /// The lines of the rows that were added since the last call.
    pub(super) fn take_rows(&mut self, styles: Styles) -> Vec<String> {
        let rows = std::mem::take(&mut self.rows);
        rows.iter().map(|row| self.format(row, styles)).collect()
    }

    fn format(&self, row: &[Cell], styles: Styles) -> String {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&self.widths).enumerate() {
            if index > 0 {
                line.push_str(GAP);
            }
            line.push_str(&styles.paint(cell.paint, &cell.text));
            if index + 1 < row.len() {
                line.extend(std::iter::repeat_n(' ', width - cell.width().min(*width)));
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}
