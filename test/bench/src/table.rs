//! The record for people: one row for each figure, with the medians of all carriers and the ratios
//! of ours to the others, turned so that above 1 is better for us.

use crate::record::{Record, Row, Spread};

/// How the names of figures end that are a part of another one.
const OF_SIDECARS: &str = "_sidecars";

/// With columns that stand below each other.
pub fn text(record: &Record) -> String {
    let table = cells(record);
    let widths: Vec<usize> = (0..table[0].len())
        .map(|column| {
            table
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in &table {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text + &note(record)
}

/// For a README.
pub fn markdown(record: &Record) -> String {
    let table = cells(record);
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|---|{}\n", "--:|".repeat(table[0].len() - 1));
    let rows: String = table[1..].iter().map(|row| line(row)).collect();
    line(&table[0]) + &rule + &rows + "\n" + &note(record)
}

/// The head and the rows; what the processors had to do for it stands last, with the sidecars' part in
/// parentheses.
fn cells(record: &Record) -> Vec<Vec<String>> {
    let mut head = vec![String::new()];
    head.extend(record.carriers.iter().cloned());
    let others = record.others();
    head.extend(others.first().map(|_| "ours to best".to_owned()));
    head.extend(others.iter().map(|other| format!("to {other}")));
    let (of_cpu, others): (Vec<&Row>, Vec<&Row>) = record
        .rows
        .iter()
        .filter(|row| !row.figure.ends_with(OF_SIDECARS))
        .partition(|row| row.figure.starts_with("cpu"));
    let rows = others.into_iter().chain(of_cpu);
    let mut table = vec![head];
    table.extend(rows.map(|row| row_cells(record, row)));
    table
}

fn row_cells(record: &Record, row: &Row) -> Vec<String> {
    let (what, unit) = unit(&row.figure);
    let of_sidecars = record.row(&row.case, &format!("{}{OF_SIDECARS}", row.figure));
    let median = |row: &Row, name: &str| {
        row.values
            .get(name)
            .map(|value| number(value.median / unit))
    };
    let value = |name: &String| {
        let whole = median(row, name)?;
        Some(match of_sidecars.and_then(|row| median(row, name)) {
            Some(part) => format!("{whole} ({part})"),
            None => whole,
        })
    };
    let ratio = |ratio: Option<&Spread>| {
        let ratio = ratio?;
        let even = if ratio.is_even() { "~" } else { "" };
        Some(format!("{:.2}{even}", ratio.median))
    };
    let mut cells = vec![Some(format!("{}, {what}", row.case))];
    cells.extend(record.carriers.iter().map(value));
    let others = record.others();
    cells.extend(others.first().map(|_| ratio(row.ratio_to_best().as_ref())));
    cells.extend(others.iter().map(|other| ratio(row.ratios.get(*other))));
    cells.into_iter().map(Option::unwrap_or_default).collect()
}

/// How people call a figure, and what they count it in.
fn unit(figure: &str) -> (&str, f64) {
    match figure {
        "mean_us" => ("mean, µs", 1.0),
        "p50_us" => ("p50, µs", 1.0),
        "p99_us" => ("p99, µs", 1.0),
        "p999_us" => ("p99.9, µs", 1.0),
        "msg_s" => ("1000 messages/s", 1000.0),
        "mb_s" => ("MB/s", 1.0),
        "connects_s" => ("connections/s", 1.0),
        "cpu_us_msg" => ("CPU µs/message", 1.0),
        "cpu_s_gb" => ("CPU s/GB", 1.0),
        "cpu_ms_idle_second" => ("CPU ms/s", 1.0),
        "rss_mib" => ("MiB in RAM", 1.0),
        other => (other, 1.0),
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn note(record: &Record) -> String {
    let facts: Vec<String> = record
        .machine
        .iter()
        .map(|(key, value)| format!("{key} {}", value.as_str().unwrap_or("unknown")))
        .collect();
    format!(
        "Medians of {} rounds. A ratio above 1 is better for us; ~ marks those that noise may hide.\n\
         Measured on: {}.\n",
        record.rounds,
        facts.join(", ")
    )
}
