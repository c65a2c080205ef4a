//! Formats the record as tables. The first one has the medians of all carriers, with a row for each figure. There is
//! one more for each of our transports with its ratios to the other carriers; ratios above 1 are better for us.

use crate::record::{FLOOR, Record, Row, Spread};

/// Suffix of figures that are a part of another figure.
const OF_SIDECARS: &str = "_sidecars";

/// Prefix of figures that tell the cost to the system.
const COSTS: [&str; 2] = ["cpu_", "switches_"];

/// A table: a head and rows, all with the same number of cells.
type Table = Vec<Vec<String>>;

/// Formats a table as text with aligned columns.
pub fn text(record: &Record) -> String {
    let tables = tables(record);
    let texts: Vec<String> = tables.iter().map(aligned).collect();
    texts.join("\n") + "\n" + &note(record)
}

fn aligned(table: &Table) -> String {
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
    for row in table {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

/// Formats a table as Markdown.
pub fn markdown(record: &Record) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = String::new();
    for table in tables(record) {
        let rule = format!("|---|{}\n", "--:|".repeat(table[0].len() - 1));
        let rows: String = table[1..].iter().map(|row| line(row)).collect();
        text += &(line(&table[0]) + &rule + &rows + "\n");
    }
    text + &note(record)
}

fn tables(record: &Record) -> Vec<Table> {
    // Costs come last. The sidecars' part of a figure is in the same cell as the whole.
    let (costs, others): (Vec<&Row>, Vec<&Row>) = record
        .rows
        .iter()
        .filter(|row| !row.figure.ends_with(OF_SIDECARS))
        .partition(|row| COSTS.iter().any(|cost| row.figure.starts_with(cost)));
    let rows: Vec<&Row> = others.into_iter().chain(costs).collect();
    let of_ours = record.ours().into_iter();
    let ratios = of_ours.map(|ours| ratios(record, &rows, ours));
    let mut tables = vec![medians(record, &rows)];
    tables.extend(ratios.filter(|table| table[0].len() > 1));
    tables
}

/// A cell, with the sidecars' part in parentheses.
fn medians(record: &Record, rows: &[&Row]) -> Table {
    let mut table = vec![vec![String::new()]];
    table[0].extend(record.carriers.iter().cloned());
    for row in rows {
        let of_sidecars = record.row(&row.case, &format!("{}{OF_SIDECARS}", row.figure));
        let median = |row: &Row, name: &str| {
            let value = row.values.get(name)?;
            Some(number(value.median / unit(&row.figure).1))
        };
        let value = |name: &String| {
            let whole = median(row, name)?;
            Some(match of_sidecars.and_then(|row| median(row, name)) {
                Some(part) => format!("{whole} ({part})"),
                None => whole,
            })
        };
        let mut cells = vec![label(row)];
        let values = record.carriers.iter().map(value);
        cells.extend(values.map(Option::unwrap_or_default));
        table.push(cells);
    }
    table
}

fn ratios(record: &Record, rows: &[&Row], ours: &str) -> Table {
    let others = record.others();
    let with_best = others.len() > 1;
    let floor = record.has_floor().then_some(FLOOR);
    let mut table = vec![vec![format!("{ours} to")]];
    table[0].extend(with_best.then(|| "best".to_owned()));
    table[0].extend(others.iter().chain(&floor).map(|other| other.to_string()));
    for row in rows {
        let mut ratios = Vec::new();
        ratios.extend(with_best.then(|| row.ratio_to_best(ours)));
        ratios.extend(
            others
                .iter()
                .chain(&floor)
                .map(|other| row.ratio(ours, other)),
        );
        if ratios.iter().any(Option::is_some) {
            let mut cells = vec![label(row)];
            cells.extend(
                ratios
                    .iter()
                    .map(|ratio| ratio.map(mark).unwrap_or_default()),
            );
            table.push(cells);
        }
    }
    table
}

/// A ratio, which is marked if it may only be noise.
fn mark(ratio: Spread) -> String {
    let even = if ratio.is_even() { "~" } else { "" };
    format!("{:.2}{even}", ratio.median)
}

fn label(row: &Row) -> String {
    format!("{}, {}", row.case, unit(&row.figure).0)
}

/// The label of a figure, and its unit.
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
        "cpu_us_trip" => ("CPU µs/round trip", 1.0),
        "cpu_ms_idle_second" => ("CPU ms/s", 1.0),
        "switches_trip" => ("context switches/round trip", 1.0),
        "rss_mib" => ("MiB in RAM", 1.0),
        "memory_mib" => ("MiB at most", 1.0),
        other => (other, 1.0),
    }
}

/// Formats a number with three significant digits.
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
