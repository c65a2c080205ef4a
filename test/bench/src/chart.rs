//! Draws the record as a chart for the README, with the bars of all carriers side by side.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::record::{FLOOR, OURS, Record};

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A panel with some cases whose figures have the same unit.
struct Panel {
    title: &'static str,
    /// Case, figure, and the label below the bars.
    groups: &'static [(&'static str, &'static str, &'static str)],
    /// The divisor for the figures.
    unit: f64,
}

const PANELS: [Panel; 6] = [
    Panel {
        title: "Round trip, µs (less is better)",
        groups: &[("rtt", "p50_us", "median"), ("rtt", "p99_us", "99%")],
        unit: 1.0,
    },
    Panel {
        title: "1000 messages/s",
        groups: &[
            ("msg16", "msg_s", "16 B"),
            ("msg256", "msg_s", "256 B"),
            ("msg1k", "msg_s", "1 KiB"),
        ],
        unit: 1000.0,
    },
    Panel {
        title: "MB/s",
        groups: &[
            ("bulk16k", "mb_s", "16 KiB"),
            ("bulk64k", "mb_s", "64 KiB"),
            ("bulk1m", "mb_s", "1 MiB"),
            ("bulk16m", "mb_s", "16 MiB"),
        ],
        unit: 1.0,
    },
    Panel {
        title: "Round trip when busy, µs (less is better)",
        groups: &[
            ("rtt_busy", "p50_us", "median"),
            ("rtt_busy", "p99_us", "99%"),
        ],
        unit: 1.0,
    },
    Panel {
        title: "erpc:multicall, µs (less is better)",
        groups: &[
            ("fan_out2", "p50_us", "2 nodes"),
            ("fan_out8", "p50_us", "8 nodes"),
            ("fan_out19", "p50_us", "19 nodes"),
        ],
        unit: 1.0,
    },
    Panel {
        title: "MB/s of a busy node",
        groups: &[
            ("into_busy_bulk1m", "mb_s", "in, 1 MiB"),
            ("out_of_busy_bulk1m", "mb_s", "out, 1 MiB"),
            ("out_of_busy_bulk64k", "mb_s", "out, 64 KiB"),
        ],
        unit: 1.0,
    },
];

const WIDTH: u32 = 960;
const PANEL_HEIGHT: u32 = 294;
const LEGEND_HEIGHT: u32 = 36;
/// Number of panels in a row.
const COLUMNS: usize = 3;
const FONT: &str = "sans-serif";
/// The colours of our transports, and of the other carriers in their order.
const OUR_COLORS: [RGBColor; OURS.len()] = [RGBColor(208, 72, 32), RGBColor(240, 150, 100)];
const COLORS: [RGBColor; 5] = [
    RGBColor(52, 101, 164),
    RGBColor(86, 166, 150),
    RGBColor(146, 121, 184),
    RGBColor(196, 160, 60),
    RGBColor(110, 110, 110),
];
/// The part of a group's width that stays free between it and the next one.
const GAP: f64 = 0.2;

/// Draws the panels whose cases have been run; `None` if there are none.
pub fn draw(record: &Record, path: &Path) -> Drawn {
    let panels: Vec<&Panel> = PANELS.iter().filter(|panel| panel.is_in(record)).collect();
    if panels.is_empty() {
        return Ok(());
    }
    // The floor is not a carrier, and where it is far above them, it would make all bars look small.
    let carriers: Vec<&str> = record
        .carriers
        .iter()
        .map(String::as_str)
        .filter(|name| *name != FLOOR)
        .collect();
    let columns = panels.len().min(COLUMNS);
    let rows = panels.len().div_ceil(columns);
    let height = rows as u32 * PANEL_HEIGHT;
    let root = SVGBackend::new(path, (WIDTH, height + LEGEND_HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let (top, legend) = root.split_vertically(height);
    for (area, panel) in top.split_evenly((rows, columns)).iter().zip(panels) {
        panel.draw(record, &carriers, area)?;
    }
    draw_legend(&carriers, &legend)?;
    root.present()?;
    Ok(())
}

impl Panel {
    fn is_in(&self, record: &Record) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|(case, figure, _)| record.row(case, figure).is_some())
    }

    fn draw(&self, record: &Record, carriers: &[&str], area: &Area) -> Drawn {
        let mut bars = Vec::new();
        for (group, (case, figure, _)) in self.groups.iter().enumerate() {
            let Some(row) = record.row(case, figure) else {
                continue;
            };
            let width = (1.0 - GAP) / carriers.len() as f64;
            for (place, carrier) in carriers.iter().enumerate() {
                let left = group as f64 + GAP / 2.0 + place as f64 * width;
                if let Some(value) = row.values.get(*carrier) {
                    let height = value.median / self.unit;
                    bars.push((left, left + width, height, color(carriers, carrier)));
                }
            }
        }
        let highest = bars.iter().map(|bar| bar.2).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .caption(self.title, (FONT, 15))
            .x_label_area_size(24)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..self.groups.len() as f64, 0.0..highest * 1.05)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_labels(6)
            .y_label_formatter(&|value| format!("{value:.0}"))
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .axis_style(RGBColor(150, 150, 150))
            .label_style((FONT, 12))
            .draw()?;
        chart.draw_series(bars.into_iter().map(|(left, right, height, color)| {
            Rectangle::new([(left, 0.0), (right, height)], color.filled())
        }))?;
        let below = (FONT, 13)
            .into_font()
            .color(&BLACK)
            .pos(Pos::new(HPos::Center, VPos::Top));
        for (group, (_, _, label)) in self.groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(group as f64 + 0.5, 0.0));
            let (left, top) = area.get_base_pixel();
            area.draw(&Text::new(*label, (x - left, y - top + 6), below.clone()))?;
        }
        Ok(())
    }
}

fn draw_legend(carriers: &[&str], area: &Area) -> Drawn {
    let width = WIDTH as i32 / (carriers.len() as i32 + 1);
    let style = (FONT, 14)
        .into_font()
        .color(&BLACK)
        .pos(Pos::new(HPos::Left, VPos::Center));
    for (place, carrier) in carriers.iter().enumerate() {
        let x = width / 2 + place as i32 * width;
        let fill = color(carriers, carrier).filled();
        area.draw(&Rectangle::new([(x, 8), (x + 14, 22)], fill))?;
        area.draw(&Text::new(carrier.to_string(), (x + 20, 15), style.clone()))?;
    }
    Ok(())
}

fn color(carriers: &[&str], carrier: &str) -> RGBColor {
    match OURS.iter().position(|ours| *ours == carrier) {
        Some(place) => OUR_COLORS[place],
        None => {
            let others = carriers.iter().filter(|name| !OURS.contains(name));
            let place = others.take_while(|name| **name != carrier).count();
            COLORS[place % COLORS.len()]
        }
    }
}
