//! The spread of a figure over several rounds.

use std::fmt;

/// The least, the median and the most.
#[derive(Debug)]
pub struct Spread([f64; 3]);

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        Self([values[0], values[values.len() / 2], values[values.len() - 1]])
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, median, most] = self.0;
        let precision = if median < 100.0 { 2 } else { 0 };
        write!(f, "{median:.precision$} ({least:.precision$}–{most:.precision$})")
    }
}
