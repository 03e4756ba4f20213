//! The metrics of [`crate::metrics`] as text, under the names that its exporters give them.
//!
//! This is a recorder of its own, not `metrics-exporter-prometheus`. That exporter takes histograms apart into single
//! values. So the cost of a page with all counts since launch would grow with the counts.
//!
//! See <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use rocket::http::ContentType;

use crate::counters::LIMITS;
use crate::metrics::publish_all;
use crate::statistics::Statistics;

pub(super) fn content_type() -> ContentType {
    ContentType::new("application", "openmetrics-text")
        .with_params([("version", "1.0.0"), ("charset", "utf-8")])
}

pub(super) fn text(statistics: &Statistics) -> String {
    let text = Text::default();
    metrics::with_local_recorder(&text, || publish_all(statistics));
    text.to_string()
}

/// The metrics that were published, by name.
#[derive(Default)]
struct Text(Mutex<BTreeMap<String, Family>>);

/// The series of one name.
struct Family {
    kind: &'static str,
    unit: Option<Unit>,
    help: SharedString,
    /// The series by their labels.
    series: BTreeMap<String, Arc<Series>>,
}

#[derive(Default)]
struct Series(Mutex<Value>);

#[derive(Default)]
struct Value {
    number: f64,
    /// The buckets of a histogram. `number` is its sum.
    buckets: [u64; LIMITS.len() + 1],
}

impl Text {
    fn describe(&self, name: &KeyName, kind: &'static str, unit: Option<Unit>, help: SharedString) {
        let family = Family { kind, unit, help, series: BTreeMap::new() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.as_str().to_owned(), family);
    }

    fn series(&self, key: &Key) -> Arc<Series> {
        let labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}=\"{}\"", sanitized(label.key()), escaped(label.value())))
            .collect();
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.get_mut(key.name());
        // INVARIANT: all published metrics were described.
        family.map(|family| family.series.entry(labels.join(",")).or_default().clone()).unwrap_or_default()
    }
}

impl Recorder for Text {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(&key, "counter", unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(&key, "gauge", unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(&key, "histogram", unit, description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.series(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.series(key))
    }
}

impl Series {
    fn change(&self, change: impl FnOnce(&mut Value)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl CounterFn for Series {
    fn increment(&self, more: u64) {
        self.change(|value| value.number += more as f64);
    }

    fn absolute(&self, number: u64) {
        self.change(|value| value.number = number as f64);
    }
}

impl GaugeFn for Series {
    fn increment(&self, more: f64) {
        self.change(|value| value.number += more);
    }

    fn decrement(&self, less: f64) {
        self.change(|value| value.number -= less);
    }

    fn set(&self, number: f64) {
        self.change(|value| value.number = number);
    }
}

impl HistogramFn for Series {
    fn record(&self, seconds: f64) {
        self.record_many(seconds, 1);
    }

    fn record_many(&self, seconds: f64, count: usize) {
        let bucket = LIMITS.iter().position(|limit| seconds <= limit.as_secs_f64()).unwrap_or(LIMITS.len());
        self.change(|value| {
            value.number += seconds * count as f64;
            value.buckets[bucket] += count as u64;
        });
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, Family { kind, unit, help, series }) in
            &*self.0.lock().unwrap_or_else(PoisonError::into_inner)
        {
            let seconds = if *unit == Some(Unit::Seconds) { "_seconds" } else { "" };
            let name = sanitized(name) + seconds;
            writeln!(f, "# TYPE {name} {kind}")?;
            if !seconds.is_empty() {
                writeln!(f, "# UNIT {name} seconds")?;
            }
            writeln!(f, "# HELP {name} {}", escaped(help))?;
            for (labels, series) in series {
                let Value { number, buckets } = &*series.0.lock().unwrap_or_else(PoisonError::into_inner);
                match *kind {
                    "counter" => writeln!(f, "{name}_total{{{labels}}} {number}")?,
                    "gauge" => writeln!(f, "{name}{{{labels}}} {number}")?,
                    _ => {
                        let mut sum = 0;
                        let limits = LIMITS.iter().map(|limit| limit.as_secs_f64().to_string());
                        for (limit, count) in limits.chain(["+Inf".into()]).zip(buckets) {
                            sum += count;
                            writeln!(f, "{name}_bucket{{{labels},le=\"{limit}\"}} {sum}")?;
                        }
                        writeln!(f, "{name}_sum{{{labels}}} {number}\n{name}_count{{{labels}}} {sum}")?;
                    }
                }
            }
        }
        f.write_str("# EOF\n")
    }
}

fn sanitized(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "_")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use metrics::{Label, Level};

    use super::*;

    #[test]
    fn it_is_as_the_specification_has_it() {
        let text = Text::default();
        let metadata = Metadata::new("test", Level::INFO, None);
        let key = |name: &'static str| Key::from_parts(name, vec![Label::new("a.b", "x\"\\\n")]);
        text.describe_counter("c.d".into(), Some(Unit::Count), "How often".into());
        text.describe_gauge("a".into(), None, "How much".into());
        text.describe_histogram("t.t".into(), Some(Unit::Seconds), "How long".into());
        text.register_counter(&key("c.d"), &metadata).increment(2);
        text.register_counter(&key("c.d"), &metadata).increment(3);
        text.register_gauge(&key("a"), &metadata).set(f64::NAN);
        let times = text.register_histogram(&key("t.t"), &metadata);
        times.record_many(0.0001, 4);
        times.record(6.0);

        let labels = r#"a_b="x\"\\\n""#;
        let written = text.to_string();
        let lines: Vec<_> = written.lines().collect();
        assert_eq!(lines[..3], ["# TYPE a gauge", "# HELP a How much", &format!("a{{{labels}}} NaN")]);
        assert_eq!(
            lines[3..6],
            ["# TYPE c_d counter", "# HELP c_d How often", &format!("c_d_total{{{labels}}} 5")]
        );
        assert_eq!(
            lines[6..9],
            ["# TYPE t_t_seconds histogram", "# UNIT t_t_seconds seconds", "# HELP t_t_seconds How long"]
        );
        assert_eq!(lines[9], format!("t_t_seconds_bucket{{{labels},le=\"0.0001\"}} 4"));
        assert_eq!(lines[20], format!("t_t_seconds_bucket{{{labels},le=\"+Inf\"}} 5"));
        assert_eq!(lines[21], format!("t_t_seconds_sum{{{labels}}} 6.0004"));
        assert_eq!(lines[22..], [&format!("t_t_seconds_count{{{labels}}} 5"), "# EOF"]);
    }
}
