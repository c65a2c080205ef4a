//! Medians and ratios of a run, and ratios that have fallen since another run.
//!
//! A ratio compares one of our transports with another carrier in the same round, so that other load on the machine
//! affects both. Ratios above 1 are better for us.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::figures::Figures;

/// Our transports, each of which is compared with the other carriers.
pub const OURS: [&str; 2] = ["uds", "uds_direct"];
/// Not a carrier: the cost of the system calls alone.
pub const FLOOR: &str = "floor";

/// Version of the format. It is raised if older records cannot be read any more, or mean something else.
const FORMAT: u32 = 2;

/// The key of the processor's name in the facts about the machine.
const PROCESSOR: &str = "processor";

/// A ratio that falls by less than this is ignored.
const NOTICEABLE: f64 = 0.05;
/// Fewest rounds for a comparison. With fewer, all of them are on the same side by chance too often.
const ENOUGH_ROUNDS: usize = 4;

/// The result of a run.
#[derive(Serialize, Deserialize)]
pub struct Record {
    format: u32,
    pub machine: serde_json::Map<String, serde_json::Value>,
    pub rounds: u32,
    /// The rows, in the order of the run.
    pub carriers: Vec<String>,
    pub rows: Vec<Row>,
}

/// One figure of one case, for all carriers.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub case: String,
    pub figure: String,
    pub values: BTreeMap<String, Spread>,
    /// The ratios of each of our transports to each other carrier and to the floor.
    pub ratios: BTreeMap<String, BTreeMap<String, Spread>>,
}

/// A summary of the rounds: their median, minimum and maximum.
#[derive(Serialize, Deserialize, Clone, Copy)]
pub struct Spread {
    pub rounds: usize,
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// A ratio that is worse than in an earlier run by more than both runs' noise.
pub struct Fall<'a> {
    row: &'a Row,
    ours: &'a str,
    other: &'a str,
    now: Spread,
    then: Spread,
}

impl Record {
    pub fn of(figures: &Figures) -> Record {
        let mut carriers: Vec<String> = Vec::new();
        let mut rows: Vec<(&str, &str, ByCarrier)> = Vec::new();
        for figure in &figures.figures {
            if !carriers.contains(&figure.carrier) {
                carriers.push(figure.carrier.clone());
            }
            let place = rows
                .iter()
                .position(|(case, name, _)| (*case, *name) == (&figure.case, &figure.name));
            let place = place.unwrap_or_else(|| {
                rows.push((&figure.case, &figure.name, ByCarrier::new()));
                rows.len() - 1
            });
            rows[place]
                .2
                .entry(&figure.carrier)
                .or_default()
                .insert(figure.round, figure.value);
        }
        Record {
            format: FORMAT,
            machine: figures
                .machine
                .iter()
                .map(|fact| (fact.key.clone(), fact.value.clone().into()))
                .collect(),
            rounds: figures.figures.iter().map(|f| f.round).max().unwrap_or(0),
            carriers,
            rows: rows
                .into_iter()
                .map(|(case, name, values)| Row::of(case, name, &values))
                .collect(),
        }
    }

    /// True if both runs were on the same kind of processor. Ratios depend on how long a processor takes to wake up.
    pub fn is_of_processor_of(&self, other: &Record) -> bool {
        self.machine.get(PROCESSOR) == other.machine.get(PROCESSOR)
    }

    /// Formats the record as JSON, with a line for each row, so that a diff shows the changes.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let rows = self.rows.iter().map(serde_json::to_string);
        let rows = rows.collect::<Result<Vec<_>, _>>()?.join(",\n");
        let machine = serde_json::to_string(&self.machine)?;
        let carriers = serde_json::to_string(&self.carriers)?;
        Ok(format!(
            "{{\"format\":{FORMAT},\n\"machine\":{machine},\n\"rounds\":{},\n\"carriers\":{carriers},\n\"rows\":[\n{rows}\n]}}\n",
            self.rounds
        ))
    }

    pub fn from_json(text: &str) -> Result<Record, Box<dyn Error>> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        // The first format had no version.
        match value
            .get("format")
            .map_or(Some(1), |format| format.as_u64())
        {
            Some(format) if format == u64::from(FORMAT) => Ok(serde_json::from_value(value)?),
            _ => Err(format!(
                "this is no record of format {FORMAT}, so nothing is compared with it"
            )
            .into()),
        }
    }

    /// Our transports that have been measured.
    pub fn ours(&self) -> Vec<&str> {
        self.names(is_ours)
    }

    /// The carriers that ours are compared with.
    pub fn others(&self) -> Vec<&str> {
        self.names(|name| !is_ours(name) && name != FLOOR)
    }

    pub fn has_floor(&self) -> bool {
        self.carriers.iter().any(|name| name == FLOOR)
    }

    fn names(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let names = self.carriers.iter().map(String::as_str);
        names.filter(|name| is_wanted(name)).collect()
    }

    pub fn row(&self, case: &str, figure: &str) -> Option<&Row> {
        let is_it = |row: &&Row| row.case == case && row.figure == figure;
        self.rows.iter().find(is_it)
    }

    /// The ratios that both runs have measured and that have become worse.
    pub fn falls_since<'a>(&'a self, earlier: &Record) -> Vec<Fall<'a>> {
        let mut falls = Vec::new();
        for row in &self.rows {
            let Some(before) = earlier.row(&row.case, &row.figure) else {
                continue;
            };
            for (ours, ratios) in &row.ratios {
                for (other, now) in ratios {
                    match before.ratio(ours, other) {
                        Some(then) if now.is_below(&then) => falls.push(Fall {
                            row,
                            ours,
                            other,
                            now: *now,
                            then,
                        }),
                        _ => {}
                    }
                }
            }
        }
        falls
    }
}

type ByCarrier<'a> = BTreeMap<&'a str, BTreeMap<u32, f64>>;

impl Row {
    fn of(case: &str, figure: &str, values: &ByCarrier) -> Row {
        let ratios = |ours: &BTreeMap<u32, f64>| {
            let others = values.iter().filter(|(name, _)| !is_ours(name));
            others
                .filter_map(|(name, theirs)| {
                    let of_rounds = theirs.iter().filter_map(|(round, theirs)| {
                        let ours = ours.get(round)?;
                        Some(if more_is_better(figure) {
                            ours / theirs
                        } else {
                            theirs / ours
                        })
                    });
                    Some((name.to_string(), Spread::of(of_rounds)?))
                })
                .collect()
        };
        Row {
            case: case.to_owned(),
            figure: figure.to_owned(),
            ratios: values
                .iter()
                .filter(|(name, _)| is_ours(name))
                .map(|(name, ours)| (name.to_string(), ratios(ours)))
                .collect(),
            values: values
                .iter()
                .filter_map(|(name, values)| {
                    Some((name.to_string(), Spread::of(values.values().copied())?))
                })
                .collect(),
        }
    }

    pub fn ratio(&self, ours: &str, other: &str) -> Option<Spread> {
        self.ratios.get(ours)?.get(other).copied()
    }

    /// The ratio to the best of the other carriers, not including the floor.
    pub fn ratio_to_best(&self, ours: &str) -> Option<Spread> {
        let others = self.ratios.get(ours)?.iter();
        others
            .filter(|(name, _)| *name != FLOOR)
            .map(|(_, ratio)| *ratio)
            .min_by(|a, b| a.median.total_cmp(&b.median))
    }
}

fn is_ours(name: &str) -> bool {
    OURS.contains(&name)
}

fn more_is_better(figure: &str) -> bool {
    figure.ends_with("_s")
}

impl Spread {
    /// `None` if there are no values, or if one is not a number, such as a share of zero.
    fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Spread {
            rounds: sorted.len(),
            median: significant(median),
            low: significant(low),
            high: significant(high),
        })
    }

    /// True if the difference from 1 may only be noise.
    pub fn is_even(&self) -> bool {
        !self.is_sure() || self.low < 1.0 && self.high > 1.0
    }

    fn is_sure(&self) -> bool {
        self.rounds >= ENOUGH_ROUNDS
    }

    fn is_below(&self, then: &Spread) -> bool {
        self.is_sure()
            && then.is_sure()
            && self.high < then.low
            && self.median < then.median * (1.0 - NOTICEABLE)
    }
}

/// Rounds a number to its significant digits.
fn significant(value: f64) -> f64 {
    match value {
        0.0 => value,
        _ => {
            let unit = 10f64.powi(3 - value.abs().log10().floor() as i32);
            (value * unit).round() / unit
        }
    }
}

impl fmt::Display for Fall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fall {
            row,
            ours,
            other,
            now,
            then,
        } = self;
        write!(
            f,
            "worse than before: {} {}, {ours} to {other} {:.2} ({:.2} to {:.2}), was {:.2} ({:.2} to {:.2})",
            row.case, row.figure, now.median, now.low, now.high, then.median, then.low, then.high
        )
    }
}
