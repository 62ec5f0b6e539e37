//! The check of one layer.

use assay_core::answer::AnswerRecord;
use assay_core::id::{DigestRoot, Hash, ModelRoot, RequestHash, TranscriptRoot};
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::artifact::layer::LayerModel;
use assay_engine::constants::Constants as _;
use assay_engine::program::layers::{Layer, Layers};
use assay_engine::program::{Checked, Op, ValueId};
use assay_engine::replay::{LayerExecution, LayerRow, LayerRun};
use serde::{Deserialize, Serialize};

use super::Boundary;
use crate::report::{Report, first_difference};
use crate::subject::Subject;
use crate::tokens::{Form, TokenCheck, fed, logits_from};

/// The layer that an auditor checks, of a model that it vouches for.
#[derive(Clone, Copy)]
pub struct Shard<'a> {
    /// Root of the model.
    pub model: ModelRoot,
    /// Its program.
    pub program: &'a Checked,
    /// The program's layers.
    pub layers: &'a Layers,
    /// Which of them.
    pub layer: usize,
}

impl<'a> Shard<'a> {
    /// Of an auditor who holds this layer and no more.
    pub fn of(model: &'a LayerModel) -> Shard<'a> {
        Shard { model: model.root(), program: model.program(), layers: model.layers(), layer: model.layer() }
    }
}

/// What a layer is checked against. Which of it a layer needs follows from the program: those with a layer before them the
/// state there, those with one after them the state there; those that embed ids, and the last one, the record.
#[derive(Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// The state before the layer.
    pub input: Option<&'a Boundary>,
    /// The state after it.
    pub output: Option<&'a Boundary>,
    /// The answer.
    pub record: Option<&'a AnswerRecord>,
    /// What turns text into ids. The last layer needs it where the request has a guide, and says that ids are not checked when
    /// it is not there.
    pub subject: Option<&'a Subject<'a>>,
}

/// Why there is no verdict: the auditor's own doing, and no mark against anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The program has no such layer.
    #[error("layer {layer} of a program with {layers}")]
    NoLayer {
        /// The index given.
        layer: usize,
        /// How many layers there are.
        layers: usize,
    },
    /// Something was not given that the layer is checked against.
    #[error("layer {layer} is checked against {what}, which was not given")]
    Missing {
        /// The layer.
        layer: usize,
        /// What.
        what: &'static str,
    },
}

/// The record that a layer was checked against, by its hashes as they were computed from its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerHashes {
    /// Of the request.
    pub request: RequestHash,
    /// Of the transcript.
    pub transcript: TranscriptRoot,
    /// Of the digests.
    pub digests: DigestRoot,
}

impl AnswerHashes {
    /// Of a record.
    pub fn of(record: &AnswerRecord) -> AnswerHashes {
        AnswerHashes {
            request: record.request.hash(),
            transcript: record.transcript.root(),
            digests: record.digests.root(),
        }
    }
}

/// The first number of a state that the layer makes otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Its position.
    pub position: u32,
    /// Its index in the value.
    pub element: u32,
    /// What the layer makes.
    pub made: i32,
    /// What the state has.
    pub told: i32,
}

/// The outcome of checking one layer, and what it is about: two verdicts are about one execution where their commitments meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardVerdict {
    /// Root of the model.
    pub model: ModelRoot,
    /// Index of the layer.
    pub layer: u32,
    /// How many layers the program has.
    pub layers: u32,
    /// How many positions were executed.
    pub positions: u32,
    /// The answer, where the layer reads or makes ids.
    pub answer: Option<AnswerHashes>,
    /// Commitment of the state before the layer; none for the first.
    pub input: Option<Hash>,
    /// Commitment of the state after it; none for the last.
    pub output: Option<Hash>,
    /// Where the state after it is another.
    pub difference: Option<Difference>,
    /// What was checked, what not, and what came out.
    pub verdict: Verdict,
}

/// Whether a layer's operations embed ids, which then have to be the answer's.
pub(super) fn embeds(program: &Checked, layers: &Layers, layer: usize) -> bool {
    layers.operations(program, layer).any(|op| matches!(op, Op::Embed { .. }))
}

/// Checks a layer by executing it again with `execution`, which must execute the shard's program; its constants need no more
/// than the layer's tensors.
pub fn check_shard(
    shard: &Shard<'_>,
    evidence: &Evidence<'_>,
    execution: &mut dyn LayerExecution,
) -> Result<ShardVerdict, ShardError> {
    let all = shard.layers.all();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let layer = all.get(shard.layer).ok_or(ShardError::NoLayer { layer: shard.layer, layers: all.len() })?;
    let last = shard.layer.saturating_add(1) == all.len();
    let missing = |what| ShardError::Missing { layer: shard.layer, what };
    let input = match layer.input {
        Some(_) => Some(evidence.input.ok_or(missing("the state before it"))?),
        None => None,
    };
    let output = match last {
        false => Some(evidence.output.ok_or(missing("the state after it"))?),
        true => None,
    };
    let record = match last || embeds(shard.program, shard.layers, shard.layer) {
        true => Some(evidence.record.ok_or(missing("the answer"))?),
        false => None,
    };

    let mut report = Report::default();
    let mut difference = None;
    let mut positions = input.or(output).map_or(0, Boundary::positions);
    if record.is_none_or(|record| report.runnable(record, shard.program.program())) {
        let tokens = record.map_or_else(|| vec![0; positions], fed);
        positions = tokens.len();
        if shapes(&mut report, shard.program, layer, [input, output], positions) {
            let run = LayerRun {
                layer,
                tokens: &tokens,
                state: input.map_or(&[], Boundary::numbers),
                logits_from: record.map_or(positions, logits_from),
            };
            if let Some(output) = output {
                difference = state(&mut report, &run, output, execution);
            } else if let Some(record) = record {
                ids(&mut report, shard, &run, (record, evidence.subject), execution);
            }
        }
    }
    for (i, _) in all.iter().enumerate().filter(|(i, _)| *i != shard.layer) {
        report.unseen(format!("layer {i}"));
    }
    let commitment = |b: Option<&Boundary>| b.map(|b| b.commitment(shard.program.program()));
    Ok(ShardVerdict {
        model: shard.model,
        layer: count(shard.layer),
        layers: count(all.len()),
        positions: count(positions),
        answer: record.map(AnswerHashes::of),
        input: commitment(input),
        output: commitment(output),
        difference,
        verdict: report.part(),
    })
}

/// Whether the states have the value's length and the answer's positions; says why not.
fn shapes(
    report: &mut Report,
    program: &Checked,
    layer: &Layer,
    [input, output]: [Option<&Boundary>; 2],
    positions: usize,
) -> bool {
    let context = program.program().context as usize;
    let sides = [("before", layer.input, input), ("after", Some(layer.output), output)];
    for (side, value, state) in sides {
        let (Some(value), Some(state)) = (value, state) else { continue };
        let width = length(program, value);
        if (state.positions(), state.width()) != (positions, width) || positions > context {
            let message = format!(
                "the state {side} the layer has {} positions of {} numbers instead of {positions} of {width}, of at most {context}",
                state.positions(),
                state.width(),
            );
            report.fail("state", FailureCode::Boundary, None, message);
            return false;
        }
    }
    true
}

/// Numbers of a value at a boundary.
fn length(program: &Checked, value: ValueId) -> usize {
    program.value_type(value).integers().unwrap_or(0) as usize
}

/// Compares what the layer makes with the state after it.
fn state(
    report: &mut Report,
    run: &LayerRun<'_>,
    told: &Boundary,
    execution: &mut dyn LayerExecution,
) -> Option<Difference> {
    let mut difference = None;
    let mut positions = 0;
    execution.execute_layer(run, &mut |row| {
        let LayerRow::State { position, numbers } = row else { return };
        positions = position.saturating_add(1);
        let told = told.row(position);
        if difference.is_none()
            && let Some(element) = first_difference(numbers, told)
        {
            let at = |numbers: &[i32]| numbers.get(element).copied().unwrap_or(0);
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            difference = Some(Difference {
                position: count(position),
                element: count(element),
                made: at(numbers),
                told: at(told),
            });
        }
    });
    match difference {
        None => {
            let message = format!(
                "all {} numbers of {positions} positions equal, attention included",
                told.numbers().len()
            );
            report.pass("state", message);
        }
        Some(Difference { position, element, made, told }) => {
            let message = format!(
                "position {position}: the layer makes {made} as number {element}, the state has {told}"
            );
            report.fail("state", FailureCode::Boundary, Some(position as usize), message);
        }
    }
    difference
}

/// Compares what the last layer makes with the answer.
fn ids(
    report: &mut Report,
    shard: &Shard<'_>,
    run: &LayerRun<'_>,
    (record, subject): (&AnswerRecord, Option<&Subject<'_>>),
    execution: &mut dyn LayerExecution,
) {
    let form = match Form::of(record, subject) {
        Ok(form) => form,
        Err(message) => {
            report.fail("tokens", FailureCode::Limits, None, message);
            return;
        }
    };
    let mut check = TokenCheck::new(record, shard.model, form);
    execution.execute_layer(run, &mut |row| {
        if let LayerRow::Token(row) = row {
            check.row(&row);
        }
    });
    check.report(report);
}
