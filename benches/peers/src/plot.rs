//! A picture of each group: a line for each candidate, its values as dots on a logarithmic scale, each with a bar from the tenth to the ninetieth percentile of the
//! rounds.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Outcome;
use crate::catalogue::Group;
use crate::report::{Results, Spread, values};
use crate::workload::Work;

const WIDTH: u32 = 900;
const ROW: u32 = 26;
const NAMES: u32 = 240;
const COLOURS: [RGBColor; 3] = [RGBColor(0, 90, 181), RGBColor(220, 120, 0), RGBColor(150, 30, 60)];

/// Writes an SVG file for each group of which anything was measured.
pub fn write(groups: &[Group], results: &Results, directory: &Path) -> Outcome<()> {
    let mut first = 0;
    for group in groups {
        let rows: Vec<(&str, Vec<Spread>)> = group
            .candidates
            .iter()
            .enumerate()
            .map(|(index, candidate)| (candidate.name, spreads(group, results, first + index)))
            .filter(|(_, spreads)| !spreads.is_empty())
            .collect();
        first += group.candidates.len();
        if !rows.is_empty() {
            let words = group.title.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty());
            let path = directory.join(words.collect::<Vec<_>>().join("-") + ".svg");
            draw(group, &rows, &path).map_err(|error| format!("cannot draw {}: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// As shown: rates for streams.
fn spreads(group: &Group, results: &Results, candidate: usize) -> Vec<Spread> {
    let all = (0..values(group.work).len()).filter_map(|value| results.spread(candidate, value));
    let shown = all.map(|spread| match group.work {
        Work::Stream | Work::TwoProducers => spread.dividing(1e3),
        Work::Memory => spread.times(1.0 / 1024.0),
        _ => spread,
    });
    // Nothing can be shown of nothing: there is not always a driver.
    shown.filter(|spread| spread.low > 0.0 && spread.high.is_finite()).collect()
}

fn legend(work: Work) -> (&'static str, &'static [&'static str]) {
    match work {
        Work::RoundTrip | Work::Publications | Work::Subscriptions => ("nanoseconds (less is better)", &["p50", "p99", "p99.9"]),
        Work::Stream | Work::TwoProducers => ("million messages a second (more is better)", &["rate"]),
        Work::Memory => ("MiB resident", &["driver", "both ends"]),
    }
}

fn draw(group: &Group, rows: &[(&str, Vec<Spread>)], path: &Path) -> Outcome<()> {
    let all = || rows.iter().flat_map(|(_, spreads)| spreads);
    let lowest = all().map(|spread| spread.low).fold(f64::INFINITY, f64::min) / 1.2;
    let highest = all().map(|spread| spread.high).fold(0.0, f64::max) * 1.2;
    let (unit, names) = legend(group.work);

    let root = SVGBackend::new(path, (WIDTH, ROW * rows.len() as u32 + 130)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(&group.title, ("sans-serif", 20))
        .margin(10)
        .margin_right(40)
        .x_label_area_size(45)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((lowest..highest).log_scale(), 0.0..rows.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_desc(unit)
        .x_labels(8)
        .x_label_formatter(&|value| short(*value))
        .draw()?;

    let label = TextStyle::from(("sans-serif", 14)).pos(Pos::new(HPos::Right, VPos::Center));
    for (number, (name, spreads)) in rows.iter().enumerate() {
        // The first one at the top.
        let height = rows.len() as f64 - 0.5 - number as f64;
        let (_, middle) = chart.backend_coord(&(lowest, height));
        root.draw(&Text::new((*name).to_owned(), (NAMES as i32, middle), label.clone()))?;
        for (spread, colour) in spreads.iter().zip(COLOURS) {
            chart.draw_series([PathElement::new([(spread.low, height), (spread.high, height)], colour.stroke_width(3))])?;
            chart.draw_series([Circle::new((spread.median, height), 4, colour.filled())])?;
        }
    }
    for (number, (name, colour)) in names.iter().zip(COLOURS).enumerate() {
        let left = WIDTH as i32 - 220 + 70 * number as i32;
        root.draw(&Circle::new((left, 20), 4, colour.filled()))?;
        root.draw(&Text::new((*name).to_owned(), (left + 8, 14), ("sans-serif", 13)))?;
    }
    Ok(root.present()?)
}

fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{value}"),
    }
}
