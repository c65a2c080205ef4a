//! Reads the lines that a run has written. `bench.erl` describes them.

use std::error::Error;
use std::fs;
use std::path::Path;

/// The description of the machine.
pub struct Fact {
    pub key: String,
    pub value: String,
}

/// One measured number.
pub struct Figure {
    pub round: u32,
    pub carrier: String,
    /// The case, and the name of the figure.
    pub case: String,
    pub name: String,
    pub value: f64,
}

/// Everything that a run has written, in its order.
pub struct Figures {
    pub machine: Vec<Fact>,
    pub figures: Vec<Figure>,
}

/// Reads the file of a run.
pub fn read(path: &Path) -> Result<Figures, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut machine = Vec::new();
    let mut figures = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["machine", key, value] => machine.push(Fact {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            ["figure", round, carrier, case, name, value] => figures.push(Figure {
                round: round.parse()?,
                carrier: carrier.to_owned(),
                case: case.to_owned(),
                name: name.to_owned(),
                value: value.parse()?,
            }),
            _ => {
                let place = format!("{}:{}", path.display(), number + 1);
                return Err(format!("{place}: neither a fact nor a figure: {line}").into());
            }
        }
    }
    Ok(Figures { machine, figures })
}
