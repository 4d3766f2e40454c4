//! Medians of several runs of both systems, and their ratios.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(clap::Args)]
pub struct Args {
    /// Results of `tillsync bench`, one file a run
    #[arg(long, num_args = 1.., required = true)]
    tillsync: Vec<PathBuf>,
    /// Results of `etcd-load`
    #[arg(long, num_args = 1.., required = true)]
    etcd: Vec<PathBuf>,
    /// Write the table there as JSON, too
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured (bench, clients, whether the writers hear broadcasts) and every run's figures of it.
type Runs = BTreeMap<(String, u64, bool), Vec<Figures>>;

#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
}

pub fn run(args: &Args) -> Result<(), Error> {
    let (ours, theirs) = (read(&args.tillsync)?, read(&args.etcd)?);
    println!(
        "{:<18} {:>7} | {:>10} {:>17} {:>9} {:>9} | {:>10} {:>17} {:>9} {:>9} | {:>6} {:>9} {:>6}",
        "",
        "clients",
        "tillsync/s",
        "(least..most)",
        "p50 ms",
        "p99 ms",
        "etcd/s",
        "(least..most)",
        "p50 ms",
        "p99 ms",
        "ratio",
        "p99 ratio",
        "errors"
    );
    let mut rows = Vec::new();
    for (key @ (bench, clients, subscribed), runs) in &ours {
        // etcd's writers hear nothing; with broadcasts or not, ours stand beside the same row.
        let Some(peer) = theirs.get(&(bench.clone(), *clients, false)) else { continue };
        let (a, b) = (Row::of(runs), Row::of(peer));
        let name = if *subscribed { format!("{bench}, all hear all") } else { bench.clone() };
        let (ratio, p99_ratio) = (a.per_second / b.per_second, a.p99_ms / b.p99_ms);
        println!("{name:<18} {clients:>7} | {a} | {b} | {ratio:>6.2} {p99_ratio:>9.2} {:>6}", a.errors + b.errors);
        rows.push(json!({
            "bench": bench, "clients": clients, "subscribed": key.2, "runs": runs.len(), "ratio": ratio,
            "p99_ratio": p99_ratio, "tillsync": a.json(), "etcd": b.json(),
        }));
    }
    if let Some(path) = &args.json {
        std::fs::write(path, format!("{:#}\n", Value::from(rows)))?;
    }
    Ok(())
}

fn read(paths: &[PathBuf]) -> Result<Runs, Error> {
    let mut runs = Runs::new();
    for path in paths {
        for result in results(path)? {
            let number = |key: &str| result[key].as_f64().ok_or_else(|| format!("{}: no {key}", path.display()));
            let bench = result["bench"].as_str().unwrap_or_default().to_owned();
            let key = (bench, number("clients")? as u64, result["subscribe"] == "all");
            runs.entry(key).or_default().push(Figures {
                per_second: number("per_second")?,
                p50_ms: number("p50_ms")?,
                p99_ms: number("p99_ms")?,
                errors: number("errors")? as u64,
            });
        }
    }
    Ok(runs)
}

fn results(path: &Path) -> Result<Vec<Value>, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// Medians over the runs, and the spread of the rate.
struct Row {
    per_second: f64,
    least: f64,
    most: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
}

impl Row {
    fn of(runs: &[Figures]) -> Self {
        let rates: Vec<f64> = runs.iter().map(|r| r.per_second).collect();
        Self {
            per_second: median(rates.clone()),
            least: rates.iter().copied().fold(f64::INFINITY, f64::min),
            most: rates.iter().copied().fold(0.0, f64::max),
            p50_ms: median(runs.iter().map(|r| r.p50_ms).collect()),
            p99_ms: median(runs.iter().map(|r| r.p99_ms).collect()),
            errors: runs.iter().map(|r| r.errors).sum(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "per_second": self.per_second, "least": self.least, "most": self.most, "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms, "errors": self.errors,
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let spread = format!("({:.0}..{:.0})", self.least, self.most);
        write!(f, "{:>10.0} {spread:>17} {:>9.2} {:>9.2}", self.per_second, self.p50_ms, self.p99_ms)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
