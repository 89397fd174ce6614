//! Samples, and the tables they are shown in.
//!
//! Invariant: a ratio is taken within each round, between measurements made seconds apart, before any median is.

use std::fmt::{self, Display, Write};
use std::time::Duration;

/// What was measured, once a round.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the next round's value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }
    /// Adds the next round's duration, in milliseconds.
    pub fn push_ms(&mut self, duration: Duration) {
        self.push(duration.as_secs_f64() * 1e3);
    }
    /// The middle value; `NaN` when there is none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(upper), Some(lower)) = (sorted.get(sorted.len() / 2), sorted.get(sorted.len().saturating_sub(1) / 2)) else {
            return f64::NAN;
        };
        f64::midpoint(*lower, *upper)
    }
    /// This over the other, round by round.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
    /// The sum of this and the other, round by round.
    pub fn plus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a + b).collect())
    }
    /// The least value; infinite when there is none.
    pub fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
    /// The most; infinite when there is none.
    pub fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
    /// `median (least–most)` with this many decimals.
    pub fn show(&self, decimals: usize) -> String {
        let (least, most) = (self.least(), self.most());
        match self.0.len() {
            0 => "–".to_owned(),
            1 => format!("{least:.decimals$}"),
            _ => format!("{:.decimals$} ({least:.decimals$}–{most:.decimals$})", self.median()),
        }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// Whether a goal is met, in a word for the table.
pub fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}

/// A table in Markdown.
#[derive(Debug)]
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new<const N: usize>(title: impl Into<String>, heads: [&str; N]) -> Self {
        Self { title: title.into(), rows: vec![heads.map(str::to_owned).to_vec()] }
    }
    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [&dyn Display; N]) {
        self.rows.push(cells.map(ToString::to_string).to_vec());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::from("|");
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, " {cell:width$} |")?;
            }
            writeln!(f, "{line}")?;
            if number == 0 {
                writeln!(f, "|{}", "---|".repeat(columns))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        for (values, median) in [(&[3.0, 1.0, 2.0][..], 2.0), (&[4.0, 1.0, 2.0, 3.0], 2.5), (&[7.0], 7.0)] {
            assert!((samples(values).median() - median).abs() < 1e-9, "{values:?}");
        }
        assert!(samples(&[]).median().is_nan());
        assert_eq!(samples(&[]).show(1), "–");
        assert_eq!(samples(&[1.0, 5.0, 2.0]).show(1), "2.0 (1.0–5.0)");
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // The machine slows down tenfold between the rounds; the ratio does not.
        let ratio = samples(&[2.0, 20.0]).over(&samples(&[1.0, 10.0]));
        assert_eq!(ratio, samples(&[2.0, 2.0]));
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new("T", ["a", "bb"]);
        table.row([&1, &"x"]);
        assert_eq!(table.to_string(), "### T\n\n| a | bb |\n|---|---|\n| 1 | x  |\n");
    }
}
