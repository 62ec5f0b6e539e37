//! Steps and rules of a trace, as people read and type them.

use anyhow::{Context as _, Result};
use assay_engine::program::{Checked, Head, Op, Program, ValueId};
use assay_verify::microstep::{Choice, LOWEST, PartSpec, Rule, adjust, choice_parts, choose, parts};

/// How a number follows, for people.
pub fn rule_name(rule: Rule) -> String {
    match rule {
        Rule::Given => "taken as it is".into(),
        Rule::Map => "map".into(),
        Rule::Fold { runs, from: LOWEST } => {
            format!("fold of {} from the lowest number", plural(runs as usize, "run"))
        }
        Rule::Fold { runs, from } => format!("fold of {} from {from}", plural(runs as usize, "run")),
    }
}

/// A step, for people: its operation, and the constant that it is about.
pub fn step_name(program: &Program, step: ValueId) -> String {
    let Some(op) = program.ops.get(usize::from(step)) else {
        return if step == adjust(program.ops.len()) { "adjust" } else { "choose" }.into();
    };
    let tensor = match *op {
        Op::Embed { table } | Op::Position { table } => Some(table),
        Op::MatMul { weights, .. } => Some(weights),
        Op::Bias { bias, .. } => Some(bias),
        Op::Normalise { gain, .. } => Some(gain),
        _ => None,
    };
    let tensor = tensor.and_then(|t| program.tensors.get(usize::from(t)));
    match (tensor, op) {
        (Some(t), _) if t.name == op.name() => t.name.clone(),
        (Some(t), _) => format!("{} {}", op.name(), t.name),
        (None, Op::Attend { layer, .. }) => format!("attend (layer {layer})"),
        (None, _) => op.name().into(),
    }
}

/// The step that a command line means.
pub fn step_named(program: &Program, name: &str) -> Result<ValueId> {
    let ops = program.ops.len();
    let named = match (name, program.head) {
        ("adjust", _) => Some(adjust(ops)),
        ("choose", _) => Some(choose(ops)),
        ("hidden", Head::Tokens { hidden, .. }) => Some(hidden),
        ("logits", Head::Tokens { logits, .. }) => Some(logits),
        _ => name.parse().ok().filter(|s| *s <= choose(ops)),
    };
    named.with_context(|| {
        format!(
            "there is no step `{name}`: steps are 0 to {}, hidden, logits, adjust and choose",
            choose(ops)
        )
    })
}

/// The parts of a step of an answer whose tokens are chosen by `choice`.
pub fn step_parts(checked: &Checked, choice: &Choice, step: ValueId) -> Vec<PartSpec> {
    let program = checked.program();
    if let Some(op) = program.ops.get(usize::from(step)) {
        return parts(op, checked.value_type(step), program.is_attended(step));
    }
    let [adjusting, choosing] = choice_parts(choice, program.vocabulary);
    if step == adjust(program.ops.len()) { adjusting } else { choosing }
}

/// So many of a thing.
pub fn plural(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}
