//! A chart of the lag over the last minutes, without a script or an inline style.

use std::time::Duration;

use maud::{Markup, html};

use crate::health::{LAG_PERIOD, LagSample};

/// The width in units of the drawing, which is stretched to the available width.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 60.0;

/// Samples that are further apart are not joined by a line.
const GAP: Duration = Duration::from_secs(15);

/// The shapes of a chart.
#[derive(Debug, PartialEq)]
struct Drawing {
    /// Each line is a row of samples without a gap.
    lines: Vec<Vec<(f64, f64)>>,
    /// The height of `max_lag`, beyond which slaves are left out, if it is within the chart.
    limit: Option<f64>,
    /// The lag at the upper edge.
    top: Duration,
    highest: Option<Duration>,
}

fn draw(samples: &[LagSample], max_lag: Option<Duration>) -> Drawing {
    let highest = samples.iter().filter_map(|sample| sample.lag).max();
    let needed = highest.unwrap_or_default();
    let top = Duration::from_secs(match needed.as_secs_f64() * 1.1 {
        seconds if seconds <= 1.0 => 1,
        seconds => [2_u32, 5, 10, 20, 30, 60, 120, 300, 600, 1_800, 3_600, 21_600, 86_400]
            .into_iter()
            .find(|top| seconds <= f64::from(*top))
            .map_or(needed.as_secs() + 1, u64::from),
    });
    let y = |lag: Duration| HEIGHT * (1.0 - (lag.as_secs_f64() / top.as_secs_f64()).min(1.0));
    let x = |ago: Duration| WIDTH * (1.0 - (ago.as_secs_f64() / LAG_PERIOD.as_secs_f64()).min(1.0));
    let mut lines: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut before: Option<Duration> = None;
    for LagSample { ago, lag } in samples {
        match (lag, before) {
            (None, _) => before = None,
            (Some(lag), before_) => {
                if before_.is_none_or(|before| before.saturating_sub(*ago) > GAP) {
                    lines.push(Vec::new());
                }
                before = Some(*ago);
                if let Some(line) = lines.last_mut() {
                    line.push((x(*ago), y(*lag)));
                }
            }
        }
    }
    let limit = max_lag.filter(|max| *max <= top).map(y);
    Drawing { lines, limit, top, highest }
}

/// The chart, with the same in words.
pub(super) fn chart(lag: Option<Duration>, samples: &[LagSample], max_lag: Option<Duration>) -> Markup {
    let Drawing { lines, limit, top, highest } = draw(samples, max_lag);
    let now = lag.map_or_else(|| "not known".into(), seconds);
    let minutes = LAG_PERIOD.as_secs() / 60;
    html! {
        figure.chart {
            div.plot {
                span.top aria-hidden="true" { (seconds(top)) }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" aria-hidden="true" focusable="false" {
                    @if let Some(y) = limit {
                        line.limit x1="0" x2=(WIDTH) y1=(round(y)) y2=(round(y)) {}
                    }
                    @for line in &lines {
                        @let points = points(line);
                        @if let (Some((first, _)), Some((last, _))) = (line.first(), line.last()) {
                            polygon.area points=(format!("{},{HEIGHT} {points} {},{HEIGHT}", round(*first), round(*last))) {}
                        }
                        polyline.line points=(points) {}
                    }
                }
                span.from aria-hidden="true" { (minutes) " min ago" }
                span.until aria-hidden="true" { "now" }
            }
            figcaption {
                "Lag " strong data-lag=[lag.map(|lag| lag.as_secs_f64())] { (now) }
                @if let Some(highest) = highest { ", at most " (seconds(highest)) " in " (minutes) " min" }
                @if let Some(max) = max_lag { ", left out beyond " (seconds(max)) }
            }
        }
    }
}

fn points(line: &[(f64, f64)]) -> String {
    let points: Vec<_> = line.iter().map(|(x, y)| format!("{},{}", round(*x), round(*y))).collect();
    points.join(" ")
}

fn round(coordinate: f64) -> f64 {
    (coordinate * 10.0).round() / 10.0
}

fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds if seconds < 10.0 => format!("{:.1} s", seconds).replace(".0 s", " s"),
        seconds => format!("{seconds:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ago: u64, lag: Option<u64>) -> LagSample {
        LagSample { ago: Duration::from_secs(ago), lag: lag.map(Duration::from_millis) }
    }

    #[test]
    fn lines_end_where_lag_is_not_known() {
        let samples = [
            sample(300, Some(0)),
            sample(298, Some(2_500)),
            sample(296, None),
            sample(100, Some(5_000)),
            sample(10, Some(1_000)),
            sample(0, Some(4_000)),
        ];
        let drawing = draw(&samples, Some(Duration::from_secs(3)));
        assert_eq!(drawing.top, Duration::from_secs(10), "with some room above");
        assert_eq!(drawing.highest, Some(Duration::from_secs(5)));
        assert_eq!(drawing.limit, Some(42.0));
        let lines: Vec<Vec<_>> = drawing
            .lines
            .iter()
            .map(|line| line.iter().map(|(x, y)| (x.round(), y.round())).collect())
            .collect();
        assert_eq!(
            lines,
            [vec![(0.0, 60.0), (2.0, 45.0)], vec![(200.0, 30.0)], vec![(290.0, 54.0), (300.0, 36.0)]]
        );
    }

    #[test]
    fn nothing_is_drawn_of_what_is_not_known() {
        let drawing = draw(&[sample(4, None), sample(2, None)], Some(Duration::from_secs(3)));
        assert_eq!((drawing.lines, drawing.limit, drawing.highest), (vec![], None, None));
        assert_eq!(drawing.top, Duration::from_secs(1));
        assert!(chart(None, &[], None).into_string().contains("not known"));
    }
}
