//! Formats tables and sections: with aligned columns and colours for a terminal, with tabs between columns for
//! everything else. Also wraps text. Pure.

use std::fmt::Write;

/// The reader of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A person at a terminal: the columns are aligned.
    Person {
        /// Whether to use colours.
        color: bool,
    },
    /// A program: columns are separated by tabs.
    Program,
}

/// The styles in use. The numbers are parameters of the escape sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Color {
    /// Bold: a heading.
    Heading = 1,
    /// Red.
    Bad = 31,
    /// Green.
    Good = 32,
    /// Yellow.
    Doubtful = 33,
}

/// A cell of a table. Its text contains no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    color: Option<Color>,
    is_right: bool,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell {
            text: text.into(),
            color: None,
            is_right: false,
        }
    }
}

impl Cell {
    /// The text of the cell.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same cell in a colour.
    pub fn colored(self, color: Color) -> Cell {
        Cell {
            color: Some(color),
            ..self
        }
    }

    /// The same cell aligned to the right, for numbers.
    pub fn right(self) -> Cell {
        Cell {
            is_right: true,
            ..self
        }
    }

    /// Appends the cell, padded to `width`. The padding is outside of the coloured part.
    fn append(&self, out: &mut String, width: usize, color: bool) {
        let Cell { text, is_right, .. } = self;
        let space = " ".repeat(width.saturating_sub(text.chars().count()));
        let (before, after) = if *is_right {
            (&space[..], "")
        } else {
            ("", &space[..])
        };
        let written = match self.color.filter(|_| color) {
            Some(color) => write!(out, "{before}\x1b[{}m{text}\x1b[0m{after}", color as u8),
            None => write!(out, "{before}{text}{after}"),
        };
        written.expect("a string takes everything");
    }
}

/// Formats a table. All rows have the same number of cells.
pub fn table(rows: &[Vec<Cell>], reader: Reader) -> String {
    match reader {
        Reader::Person { color } => aligned(rows, "", color),
        Reader::Program => rows.iter().map(|row| separated(row)).collect(),
    }
}

/// Formats tables with titles. For a program, the title is the first column of each row.
pub fn sections(sections: &[(&str, Vec<Vec<Cell>>)], reader: Reader) -> String {
    let mut text = String::new();
    for (title, rows) in sections.iter().filter(|(_, rows)| !rows.is_empty()) {
        match reader {
            Reader::Person { color } => {
                text.push_str(if text.is_empty() { "" } else { "\n" });
                Cell::from(*title)
                    .colored(Color::Heading)
                    .append(&mut text, 0, color);
                text.push('\n');
                text.push_str(&aligned(rows, "  ", color));
            }
            Reader::Program => {
                for row in rows {
                    write!(text, "{title}\t{}", separated(row)).expect("a string takes everything");
                }
            }
        }
    }
    text
}

fn separated(row: &[Cell]) -> String {
    let cells: Vec<_> = row.iter().map(|cell| &cell.text[..]).collect();
    cells.join("\t") + "\n"
}

fn aligned(rows: &[Vec<Cell>], indent: &str, color: bool) -> String {
    let mut text = String::new();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widths = cells.map(|cell| cell.text.chars().count());
        widths.max().unwrap_or(0)
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    for row in rows {
        text.push_str(indent);
        for (column, cell) in row.iter().enumerate() {
            let is_last = column + 1 == row.len();
            let width = if is_last && !cell.is_right {
                0
            } else {
                widths[column]
            };
            text.push_str(if column > 0 { "  " } else { "" });
            cell.append(&mut text, width, color);
        }
        text.push('\n');
    }
    text
}

/// Formats words and their meanings, indented and wrapped at 80 characters.
pub fn definitions(pairs: &[(&str, &str)]) -> String {
    const WIDTH: usize = 80;
    let longest = pairs.iter().map(|(word, _)| word.chars().count()).max();
    let indent = longest.unwrap_or(0) + 4;
    let mut text = String::new();
    for (word, meaning) in pairs {
        let mut line = format!("  {word:width$}", width = indent - 3);
        for word in meaning.split(' ') {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                text.push_str(&line);
                text.push('\n');
                line = " ".repeat(indent - 1);
            }
            line.push(' ');
            line.push_str(word);
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}
