//! Does verification stay cheap as models grow? Measures every way to check an answer, for models of nine widths, and writes the
//! numbers, a report and a chart.
//!
//! Rows that a run does not measure stay as they are, each with the commit and machine it was measured on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use assay_engine::kernel::Kernel;
use clap::Args;
use serde_json::{Value, json};

use self::execution::{Base, Bench};
use self::row::{Row, Tier, merged};
use self::shapes::{Model, SHAPES, of_width};

mod clock;
mod execution;
mod fit;
mod parts;
mod report;
mod row;
mod shapes;
mod tiers;

/// Shortest sequence that can be measured: decoding is sampled at three places of its second half.
const T_MIN: u32 = 32;

#[derive(Args)]
pub struct Verification {
    /// Widths of the models [default: all there are, 64 to 8192].
    #[arg(long, value_delimiter = ',')]
    dims: Vec<u32>,
    /// Positions of the sequences, half prompt, half answer.
    #[arg(long, value_delimiter = ',', default_value = "64,512,2048", value_parser = clap::value_parser!(u32).range(T_MIN as i64..=8192))]
    positions: Vec<u32>,
    /// How often; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Positions that a light audit opens.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=32))]
    opened: u32,
    /// The four smallest models, 64 and 512 positions, one round.
    #[arg(long)]
    quick: bool,
    /// Measure nothing: write report and chart again from the numbers that are there.
    #[arg(long)]
    render: bool,
    /// Folder of verification.json, .md and .svg.
    #[arg(long, default_value = "docs/benchmarks")]
    out: PathBuf,
}

/// What is measured: resolved arguments.
struct Setup {
    dims: Vec<u32>,
    positions: Vec<u32>,
    rounds: u32,
    opened: u32,
    kernel: Kernel,
    commit: String,
    machine: String,
}

impl Verification {
    pub fn run(self, print: &mut dyn FnMut(Value)) -> Result<()> {
        let json = self.out.join("verification.json");
        let mut rows = read(&json)?;
        if !self.render {
            let setup = self.setup()?;
            for d in &setup.dims {
                rows = merged(rows, measure(*d, &setup, print)?);
                write(&self.out, &rows)?;
            }
        }
        if rows.is_empty() {
            bail!("{} has no numbers: measure some first", json.display());
        }
        write(&self.out, &rows)
    }

    fn setup(&self) -> Result<Setup> {
        let kernel = Kernel::from_environment()?;
        let all = || SHAPES.iter().map(|s| s.dim).collect::<Vec<_>>();
        let dims = match (self.quick, self.dims.is_empty()) {
            (true, true) => all().into_iter().take(4).collect(),
            (false, true) => all(),
            (_, false) => self.dims.clone(),
        };
        for d in &dims {
            of_width(*d)?;
        }
        let mut positions = self.positions.clone();
        if self.quick {
            positions.retain(|t| *t <= 512);
        }
        let rounds = if self.quick { 1 } else { self.rounds };
        let (commit, machine) = (commit(), machine(kernel));
        Ok(Setup { dims, positions, rounds, opened: self.opened, kernel, commit, machine })
    }
}

fn measure(d: u32, setup: &Setup, print: &mut dyn FnMut(Value)) -> Result<Vec<Row>> {
    let size = of_width(d)?;
    let longest = setup.positions.iter().max().copied().unwrap_or(T_MIN);
    // The last token of an answer has no position, but needs room in the window.
    let model = Model::new(size, longest + 1);
    let mut bench = Bench::new(&model, setup.kernel);
    // The first pass of an executor makes its buffers.
    bench.measure(T_MIN as usize, 1);
    let mut rows = vec![];
    for t in &setup.positions {
        let base = bench.measure(*t as usize, setup.rounds as usize);
        for measured in tiers::measure(&model, *t, setup, &base)? {
            let row = measured.row(&model, *t, &base, setup);
            print(json!({
                "d": row.d, "t": row.t, "tier": row.tier, "core_ms_per_token": row.core_ms_per_token,
                "share_of_reexecution": row.share_of_reexecution, "share_of_generation": row.share_of_generation,
            }));
            rows.push(row);
        }
    }
    Ok(rows)
}

impl tiers::Measured {
    fn row(self, model: &Model, t: u32, base: &Base, setup: &Setup) -> Row {
        let reexecution = base.reexecution.total();
        let cost = self.parts.total();
        let one = self.tier == Tier::Reexec;
        Row {
            d: model.size.dim,
            t,
            tier: self.tier,
            core_ms_per_token: rounded(cost),
            share_of_generation: rounded(cost / base.generation),
            share_of_reexecution: rounded(cost / reexecution),
            bytes_per_token: rounded(self.bytes_per_token),
            key_bytes: self.key_bytes as u64,
            soundness_bits: self.soundness_bits,
            share_of_generation_16: rounded(cost / base.generation_16),
            prover_core_ms_per_token: rounded(self.prover_core_ms_per_token),
            checked: self.checked,
            memory_bytes: self.memory_bytes as u64,
            parts: self.parts.iter().map(|(name, ms)| (name.to_owned(), rounded(ms))).collect(),
            shape: model.size.name.into(),
            layers: model.size.layers,
            layers_measured: self.layers,
            from_one_layer: self.from_one_layer.map(rounded),
            generation_core_ms_per_token: rounded(base.generation),
            generation_16_core_ms_per_token: rounded(base.generation_16),
            generation_from_one_layer: base
                .from_one
                .filter(|_| one && model.is_whole())
                .map(|b| rounded(b.0)),
            reexecution_core_ms_per_token: rounded(reexecution),
            rounds: setup.rounds,
            commit: setup.commit.clone(),
            machine: setup.machine.clone(),
        }
    }
}

/// Five significant digits: more would pretend.
fn rounded(v: f64) -> f64 {
    if v == 0.0 || !v.is_finite() {
        return 0.0;
    }
    let unit = 10f64.powf(4.0 - v.abs().log10().floor());
    (v * unit).round() / unit
}

fn read(path: &Path) -> Result<Vec<Row>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is of another version", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

fn write(folder: &Path, rows: &[Row]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let lines: Vec<String> =
        rows.iter().map(|r| serde_json::to_string(r).map(|l| format!("  {l}"))).collect::<Result<_, _>>()?;
    for (name, text) in [
        ("verification.json", format!("[\n{}\n]\n", lines.join(",\n"))),
        ("verification.md", report::markdown(rows)),
        ("verification.svg", report::svg(rows)),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The commit that is checked out here, if there is one; marked when files differ from it.
fn commit() -> String {
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short=7", "HEAD"]) {
        None => "unknown".into(),
        // The numbers themselves are rewritten by every run.
        Some(commit) => match git(&["status", "--porcelain", "--untracked-files=no", "--", ":!docs"]) {
            Some(changes) if changes.is_empty() => commit,
            _ => format!("{commit} with changes"),
        },
    }
}

/// Processor and kernel.
fn machine(kernel: Kernel) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name").and_then(|l| l.split(": ").nth(1)));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} ({cores} cores, kernel {})", name.unwrap_or(std::env::consts::ARCH).trim(), kernel.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_five_digits() {
        assert_eq!([rounded(1.234_567), rounded(-98_765.4), rounded(0.0)], [1.2346, -98_765.0, 0.0]);
        assert!((rounded(0.000_123_456_7) - 0.000_123_46).abs() < 1e-12);
    }

    #[test]
    fn a_small_model_is_measured_and_reported() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = |render| Verification {
            dims: vec![64],
            positions: vec![T_MIN],
            rounds: 1,
            opened: 2,
            quick: false,
            render,
            out: folder.path().to_owned(),
        };
        assert!(arguments(true).run(&mut |_| {}).is_err(), "there is nothing to render");
        let mut printed = vec![];
        arguments(false).run(&mut |line| printed.push(line)).unwrap();
        let rows = read(&folder.path().join("verification.json")).unwrap();
        assert_eq!(rows.len(), printed.len());
        assert!(rows.iter().all(|r| r.core_ms_per_token > 0.0 && r.share_of_generation > 0.0), "{rows:?}");
        let report = std::fs::read_to_string(folder.path().join("verification.md")).unwrap();
        arguments(true).run(&mut |_| {}).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("verification.md")).unwrap(), report);
    }
}
