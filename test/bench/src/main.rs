//! The part of the benchmark of uds_dist that is not written in Erlang.
//!
//! | module        | purpose                                                                |
//! |---------------|------------------------------------------------------------------------|
//! | [`floor`]     | the path of the bytes without a VM, which no carrier of this shape beats |
//! | [`figures`]   | the lines that a run has written                                       |
//! | [`record`]    | medians and ratios of a run, and ratios that fell since another run    |
//! | [`table`]     | the record as a table, in text and in Markdown                         |
//! | [`chart`]     | the record as a chart                                                  |

mod chart;
mod figures;
mod floor;
mod record;
mod table;

use record::Record;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

const USAGE: &str = "usage: uds_dist_bench floor-round-trips COUNT
       uds_dist_bench floor-stream SIZE MILLISECONDS
       uds_dist_bench report FIGURES DIRECTORY [EARLIER...]";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("uds_dist_bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<ExitCode, Box<dyn Error>> {
    match arguments {
        ["floor-round-trips", count] => floor::round_trips(count.parse()?)?,
        ["floor-stream", size, time] => floor::stream(size.parse()?, time.parse()?)?,
        ["report", figures, directory, earlier @ ..] => {
            return report(figures, directory, earlier);
        }
        [role] if floor::play(role)? => {}
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the record, writes it to the directory, and fails if ratios have fallen since the earlier run on the
/// same processor.
fn report(figures: &str, directory: &str, earlier: &[&str]) -> Result<ExitCode, Box<dyn Error>> {
    let record = Record::of(&figures::read(Path::new(figures))?);
    let directory = Path::new(directory);
    print!("{}", table::text(&record));
    fs::write(directory.join("bench.json"), record.to_json()?)?;
    fs::write(directory.join("bench.md"), table::markdown(&record))?;
    chart::draw(&record, &directory.join("bench.svg"))?;
    let earlier = earlier
        .iter()
        .map(|file| read_record(file))
        .collect::<Result<Vec<_>, _>>()?;
    let Some(before) = earlier.iter().find(|it| it.is_of_processor_of(&record)) else {
        if !earlier.is_empty() {
            println!("No earlier run was on this processor, so the ratios are not compared.");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let falls = record.falls_since(before);
    if falls.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for fall in &falls {
        println!("{fall}");
    }
    if record.machine != before.machine {
        println!("The earlier run was on another machine or OTP.");
    }
    Ok(ExitCode::FAILURE)
}

fn read_record(file: &str) -> Result<Record, Box<dyn Error>> {
    fs::read_to_string(file)
        .map_err(Into::into)
        .and_then(|text| Record::from_json(&text))
        .map_err(|error| format!("{file}: {error}").into())
}
