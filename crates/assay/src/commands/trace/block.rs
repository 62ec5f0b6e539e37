//! One block of a trace: its steps, their parts, and numbers.

use anyhow::{Result, bail};
use assay_core::id::Hash;
use assay_engine::program::{Program, ValueId};
use assay_verify::microstep::{Cell, PartSpec, parts_of, rule};
use assay_verify::trace::part::{Layout, Part};
use assay_verify::trace::walk::{Block, Trace as Walk, Walked, commitment};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::Shown;
use crate::commands::steps::{rule_name, step_name};

/// Numbers of a row that are printed at its beginning and its end, when it is long.
const SHOWN: (usize, usize) = (56, 8);
/// Numbers of a printed line.
const LINE: usize = 8;

/// A block that is shown.
pub struct Inside<'a, 'w> {
    pub program: &'a Program,
    pub walk: &'a Walk<'w>,
    pub block: &'a Block,
}

impl Inside<'_, '_> {
    fn source(&self) -> Walked<'_, '_, '_> {
        Walked { trace: self.walk, block: self.block }
    }

    pub fn step(&self, step: ValueId) -> Result<(Vec<PartSpec>, &[Part])> {
        let specs = parts_of(&mut self.source(), step, self.program.is_attended(step));
        let (Some(specs), Some(parts)) = (specs, self.block.parts(step)) else {
            bail!("there is no step {step}: the block has {}", self.block.steps());
        };
        Ok((specs, parts))
    }

    fn head(&self, shown: &Shown<'_>) -> String {
        let (carry, range) = (shown.carries.get(self.block.index as usize), &self.block.positions);
        let carry = carry.map_or(String::new(), Hash::to_string);
        let warning = if shown.holds { String::new() } else { format!("{}\n", shown.end()) };
        let (from, to) = (range.start, range.end - 1);
        format!("{warning}block {}: positions {from} to {to}, carry {carry}", self.block.index)
    }

    pub fn steps(&self, shown: &Shown<'_>, as_json: bool) -> Result<String> {
        let carried = self.program.carried();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["step", "", "parts", "commitment", ""]);
        let mut all = Vec::new();
        for step in 0..ValueId::try_from(self.block.steps()).unwrap_or(ValueId::MAX) {
            let (specs, parts) = self.step(step)?;
            let carried = carried.contains(&step);
            if as_json {
                let mut json = self.described(step)?;
                json["carried"] = carried.into();
                all.push(json);
                continue;
            }
            let sizes = specs.iter().zip(parts).map(|(spec, part)| {
                let s = part.shape();
                format!("{} {}×{}", spec.name, s.rows, s.columns)
            });
            table.add_row([
                step.to_string(),
                step_name(self.program, step),
                sizes.collect::<Vec<_>>().join(", "),
                commitment(parts).short(),
                if carried { "carried" } else { "" }.to_owned(),
            ]);
        }
        if as_json {
            return self.json(shown, "steps", Value::Array(all));
        }
        Ok(format!("{}\n\n{table}", self.head(shown)))
    }

    fn json(&self, shown: &Shown<'_>, key: &str, value: Value) -> Result<String> {
        let mut json = shown.json();
        let carry = shown.carries.get(self.block.index as usize);
        json["block"] = json!({
            "block": self.block.index,
            "positions": [self.block.positions.start, self.block.positions.end],
            "carry": carry,
        });
        json["block"][key] = value;
        Ok(serde_json::to_string_pretty(&json)?)
    }

    /// A step with its parts, as JSON.
    fn described(&self, step: ValueId) -> Result<Value> {
        let (specs, parts) = self.step(step)?;
        let all = specs.iter().zip(parts).enumerate().map(|(i, (spec, part))| {
            let s = part.shape();
            json!({
                "name": spec.name, "rows": s.rows, "columns": s.columns, "bytes": s.width.bytes(), "layout": layout(s.layout),
                "leaves": s.leaves(), "rule": self.rule(step, i, part), "root": part.root(),
            })
        });
        Ok(json!({
            "step": step, "name": step_name(self.program, step), "commitment": commitment(parts),
            "parts": all.collect::<Vec<_>>(),
        }))
    }

    /// How the last row's first number of a part follows.
    fn rule(&self, step: ValueId, part: usize, made: &Part) -> String {
        let rows = u32::try_from(made.shape().rows).unwrap_or(u32::MAX);
        if rows == 0 || made.shape().columns == 0 {
            return "no numbers".into();
        }
        let position = self.block.first(step).saturating_add(rows - 1);
        let cell = Cell { op: step, part: u8::try_from(part).unwrap_or(u8::MAX), position, column: 0 };
        rule(&mut self.source(), cell).map_or_else(|| "none".into(), rule_name)
    }

    pub fn parts(&self, shown: &Shown<'_>, step: ValueId, as_json: bool) -> Result<String> {
        if as_json {
            return self.json(shown, "step", self.described(step)?);
        }
        let (specs, parts) = self.step(step)?;
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["part", "", "rows", "columns", "bytes", "leaves by", "rule", "root"]);
        for (i, (spec, part)) in specs.iter().zip(parts).enumerate() {
            let s = part.shape();
            table.add_row([
                i.to_string(),
                spec.name.to_owned(),
                s.rows.to_string(),
                s.columns.to_string(),
                s.width.bytes().to_string(),
                format!("{}: {}", layout(s.layout), s.leaves()),
                self.rule(step, i, part),
                part.root().to_string(),
            ]);
        }
        let name = step_name(self.program, step);
        let made = commitment(parts);
        Ok(format!("{}\nstep {step}: {name}, commitment {made}\n\n{table}", self.head(shown)))
    }

    pub fn row(
        &self,
        shown: &Shown<'_>,
        step: ValueId,
        part: usize,
        row: usize,
        as_json: bool,
    ) -> Result<String> {
        let (specs, parts) = self.step(step)?;
        let (Some(made), Some(spec)) = (parts.get(part), specs.get(part)) else {
            bail!("there is no part {part}")
        };
        let shape = made.shape();
        if row >= shape.rows {
            // After the hidden vector, only positions whose logits choose a token have rows.
            let why = if shape.rows == 0 { "; no token of the answer is chosen in this block" } else { "" };
            bail!("there is no row {row}: the part has {} in this block{why}", shape.rows);
        }
        let numbers: Vec<i64> = (0..shape.columns).map(|c| made.get(row, c)).collect();
        let position = self.block.first(step) as usize + row;
        if as_json {
            let mut json = self.described(step)?;
            json["row"] = json!({"part": spec.name, "row": row, "position": position, "numbers": numbers});
            return self.json(shown, "step", json);
        }
        let name = step_name(self.program, step);
        let head = self.head(shown);
        let title =
            format!("step {step}: {name}, part {part}: {}, row {row}: position {position}", spec.name);
        Ok(format!("{head}\n{title}\n\n{}", lines(&numbers)))
    }
}

/// Numbers, `LINE` a line, the middle of many left out.
fn lines(numbers: &[i64]) -> String {
    let (first, last) = SHOWN;
    let width = numbers.iter().map(|n| n.to_string().len()).max().unwrap_or(0);
    let line = |(at, run): (usize, &[i64])| {
        let run: Vec<String> = run.iter().map(|n| format!("{n:>width$}")).collect();
        format!("{at:>7}  {}", run.join(" "))
    };
    let block = |from: usize, numbers: &[i64]| -> Vec<String> {
        numbers.chunks(LINE).enumerate().map(|(i, run)| line((from + i * LINE, run))).collect()
    };
    if numbers.len() <= first + last {
        return block(0, numbers).join("\n");
    }
    let end = numbers.len() - last;
    let mut all = block(0, &numbers[..first]);
    all.push(format!("      …  {} more, all of them with --json", end - first));
    all.extend(block(end, &numbers[end..]));
    all.join("\n")
}

fn layout(l: Layout) -> &'static str {
    match l {
        Layout::Rows => "rows",
        Layout::Columns => "columns",
    }
}
