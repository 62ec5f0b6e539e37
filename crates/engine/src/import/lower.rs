//! A program and its constants, put together operation by operation; what turns float tensors into integers is shared by
//! all architectures.

use super::quantise::{Part, Stack, Storage, exp2};
use super::rotate::Turn;
use super::source::Source;
use super::{ImportError, ImportOptions, ImportReport, Progress};
use crate::artifact::writer::Writer;
use crate::artifact::{END_TOKENS_MAX, Manifest, Provenance, TEMPLATE_BYTES_MAX, TextModel};
use crate::program::{
    Head, Op, Program, ROTARY_FRAC, Shape, TABLE_LEN, Tensor, TensorId, VECTOR_MAX, ValueId,
};
use crate::text::Tokenizer;
use crate::text::template::JOIN_MESSAGES;

/// Fraction bits of the residual stream: numbers up to 32 768 in steps of 0.000015.
pub(super) const RESIDUAL_FRAC: u8 = 16;
/// Fraction bits of what attention computes and of biased products: numbers up to 2048 in steps of a millionth.
pub(super) const INNER_FRAC: u8 = 20;

/// A checkpoint tensor in a matrix of the program.
#[derive(Clone, Debug)]
pub(super) struct PartPlan {
    /// Its canonical name.
    pub(super) name: &'static str,
    pub(super) rows: u32,
    /// Rotation of its outputs.
    pub(super) turn: Option<Turn>,
}

/// What the inputs of a matrix went through, and what is therefore folded into its columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    /// The norm before: its gain, and what is added to the gain (1 for Gemma).
    pub(super) gain: Option<(&'static str, f64)>,
    /// A factor for all.
    pub(super) factor: Option<f64>,
    /// A rotation.
    pub(super) turn: Option<Turn>,
}

/// Where a constant comes from.
#[derive(Clone, Debug)]
pub(super) enum Constant {
    /// Checkpoint tensors, one below the other.
    Matrix { layer: Option<u32>, parts: Vec<PartPlan>, cols: u32, columns: Columns },
    /// What rounding the matrix before to int8 left over, as another matrix.
    Remainder,
    /// Checkpoint vectors, one after the other, each number plus `plus`.
    Vector { layer: Option<u32>, parts: Vec<(&'static str, u32)>, plus: f64 },
    /// The first row of a checkpoint matrix outside the layers.
    FirstRow { name: &'static str, rows: u32, cols: u32 },
    /// Cosine and sine of each position and pair.
    Rotary(Rotary),
    /// A function at 0, 1/64, …, 16.
    Table(fn(f64) -> f64),
}

/// The angles of rotary embeddings: position times speed.
#[derive(Clone, Debug)]
pub(super) struct Rotary {
    /// Positions.
    pub(super) context: u32,
    /// Radians per position of each pair.
    pub(super) speeds: Vec<f64>,
}

impl Rotary {
    /// Angles with [`ROTARY_FRAC`] fraction bits.
    pub(super) fn numbers(&self) -> Vec<i16> {
        let one = f64::from(1u32 << ROTARY_FRAC);
        let round = |v: f64| (v * one + 0.5).floor() as i16;
        (0..self.context)
            .flat_map(|p| self.speeds.iter().map(move |s| f64::from(p) * s))
            .flat_map(|angle| [round(libm::cos(angle)), round(libm::sin(angle))])
            .collect()
    }
}

/// 1 / (1 + e^-x).
pub(super) fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// The normal distribution: GELU's gate.
pub(super) fn normal(x: f64) -> f64 {
    0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// GELU's gate by the hyperbolic tangent, as Gemma has it.
pub(super) fn normal_by_tanh(x: f64) -> f64 {
    let inner = libm::sqrt(2.0 / std::f64::consts::PI) * (x + 0.044_715 * x * x * x);
    0.5 * (1.0 + libm::tanh(inner))
}

/// A rising function with f(-x) = 1 - f(x) as a table.
pub(super) fn table(f: fn(f64) -> f64) -> Vec<i32> {
    (0..TABLE_LEN).map(|i| (65_536.0 * f(i as f64 / 64.0) + 0.5).floor() as i32).collect()
}

/// Epsilon of a norm, in units of the square of one unit of fixed point with `frac` bits.
pub(super) fn epsilon(value: f64, frac: u8) -> u64 {
    (value * exp2(2 * i32::from(frac)) + 0.5) as u64
}

/// A program being put together.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) tensors: Vec<Tensor>,
    pub(super) constants: Vec<Constant>,
    pub(super) ops: Vec<Op>,
}

impl Builder {
    /// Appends an operation.
    pub(super) fn push(&mut self, op: Op) -> ValueId {
        self.ops.push(op);
        (self.ops.len() - 1) as ValueId
    }

    fn constant(&mut self, name: String, shape: Shape, from: Constant) -> TensorId {
        self.tensors.push(Tensor { name, shape });
        self.constants.push(from);
        (self.tensors.len() - 1) as TensorId
    }

    /// A matrix; its shift is filled in when the weights are read.
    pub(super) fn matrix(
        &mut self,
        name: String,
        layer: Option<u32>,
        parts: Vec<PartPlan>,
        cols: u32,
        columns: Columns,
    ) -> TensorId {
        let rows = parts.iter().map(|p| p.rows).sum();
        let shape = Shape::Matrix { rows, cols, shift: 0 };
        self.constant(name, shape, Constant::Matrix { layer, parts, cols, columns })
    }

    /// The remainder of the matrix made last.
    pub(super) fn remainder(&mut self, name: String) -> TensorId {
        let shape = self.tensors[self.tensors.len() - 1].shape;
        self.constant(name, shape, Constant::Remainder)
    }

    /// A vector with `frac` fraction bits.
    pub(super) fn vector(
        &mut self,
        name: String,
        layer: Option<u32>,
        parts: Vec<(&'static str, u32)>,
        plus: f64,
        frac: u8,
    ) -> TensorId {
        let len = parts.iter().map(|(_, n)| n).sum();
        self.constant(name, Shape::Vector { len, frac }, Constant::Vector { layer, parts, plus })
    }

    /// The first row of a matrix as a vector.
    pub(super) fn first_row(
        &mut self,
        label: String,
        name: &'static str,
        rows: u32,
        cols: u32,
        frac: u8,
    ) -> TensorId {
        let shape = Shape::Vector { len: cols, frac };
        self.constant(label, shape, Constant::FirstRow { name, rows, cols })
    }

    /// A rotary table.
    pub(super) fn rotary(&mut self, name: &str, from: Rotary) -> TensorId {
        let shape = Shape::Rotary { positions: from.context, pairs: from.speeds.len() as u32 };
        self.constant(name.to_owned(), shape, Constant::Rotary(from))
    }

    /// A table.
    pub(super) fn table(&mut self, name: &str, f: fn(f64) -> f64) -> TensorId {
        self.constant(name.to_owned(), Shape::Table, Constant::Table(f))
    }

    /// int8 numbers with one scale, times a matrix.
    pub(super) fn product(&mut self, x: ValueId, len: u32, weights: TensorId) -> ValueId {
        let q = self.push(Op::Quantise { x, offset: 0, len, groups: 1 });
        self.push(Op::MatMul { weights, x: q })
    }

    /// The program; shifts of matrices are still to be filled in.
    pub(super) fn program(self, context: u32, vocabulary: u32, head: Head) -> (Program, Vec<Constant>) {
        let (tensors, ops) = (self.tensors, self.ops);
        (Program { context, vocabulary, residual_frac: RESIDUAL_FRAC, tensors, ops, head }, self.constants)
    }
}

fn stack<'a>(
    source: &'a dyn Source,
    layer: Option<u32>,
    parts: &'a [PartPlan],
    cols: u32,
    columns: &'a Columns,
) -> Result<Stack<'a>, ImportError> {
    let mut factors = match columns.gain {
        None => None,
        Some((name, plus)) => {
            // The final norm is outside the layers, like the head that it is folded into.
            let mut row = Vec::new();
            source.weights(layer, name, 1, cols)?.row(0, &mut row)?;
            row.iter_mut().for_each(|v| *v += plus);
            Some(row)
        }
    };
    if let Some(f) = columns.factor {
        factors.get_or_insert_with(|| vec![1.0; cols as usize]).iter_mut().for_each(|v| *v *= f);
    }
    let part = |p: &'a PartPlan| -> Result<Part<'a>, ImportError> {
        Ok(Part { weights: source.weights(layer, p.name, p.rows, cols)?, turn: p.turn.as_ref() })
    };
    let parts = parts.iter().map(part).collect::<Result<_, _>>()?;
    Ok(Stack { parts, gain: factors, turn: columns.turn.as_ref(), cols: cols as usize })
}

fn vector(
    source: &dyn Source,
    layer: Option<u32>,
    parts: &[(&'static str, u32)],
    plus: f64,
) -> Result<Vec<f64>, ImportError> {
    let (mut all, mut row) = (Vec::new(), Vec::new());
    for (name, len) in parts {
        source.weights(layer, name, 1, *len)?.row(0, &mut row)?;
        all.extend(row.iter().map(|v| v + plus));
    }
    Ok(all)
}

/// Numbers as fixed point.
fn fixed(source: &dyn Source, name: &str, numbers: &[f64], frac: u8) -> Result<Vec<i32>, ImportError> {
    let (one, most) = (exp2(i32::from(frac)), f64::from(VECTOR_MAX - 1));
    if let Some(v) = numbers.iter().find(|v| v.abs() * one > most) {
        return Err(ImportError::Unsupported {
            path: source.path().to_owned(),
            field: name.to_owned(),
            got: v.to_string(),
            reason: format!("numbers up to {} are", most / one),
        });
    }
    Ok(numbers.iter().map(|v| (v * one + 0.5).floor() as i32).collect())
}

/// Writes a program whose constants come from `source` as an artifact.
pub(super) fn write(
    source: &dyn Source,
    (mut program, constants): (Program, Vec<Constant>),
    text: (TextModel, Vec<u8>),
    (name, options): (String, &ImportOptions),
    out: &std::path::Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImportReport, ImportError> {
    // The program names every matrix's shift: one pass over the weights finds them, a second writes the numbers.
    let storages = options.profile.packed(&program);
    let storages = storages.into_iter().map(|packed| if packed { Storage::Packed } else { Storage::Plain });
    let storages: Vec<Storage> = storages.collect();
    let mut before = None;
    for ((constant, tensor), storage) in constants.iter().zip(&mut program.tensors).zip(&storages) {
        match (constant, before, &mut tensor.shape) {
            (Constant::Matrix { layer, parts, cols, columns }, _, Shape::Matrix { shift, .. }) => {
                *shift = stack(source, *layer, parts, *cols, columns)?.shift(*storage)?;
            }
            (Constant::Remainder, Some(Shape::Matrix { shift: first, .. }), Shape::Matrix { shift, .. }) => {
                *shift = first + storage.remainder_shift();
            }
            _ => {}
        }
        source.release();
        before = Some(tensor.shape);
    }
    program.clone().check().map_err(|e| ImportError::Unsupported {
        path: source.path().to_owned(),
        field: "shape".into(),
        got: e.to_string(),
        reason: "the model is beyond the engine's limits".into(),
    })?;
    let total = program.tensors.len();
    let tensors = program.tensors.clone();
    let provenance = Provenance {
        name: name.clone(),
        licence: options.licence.clone().unwrap_or_default(),
        sources: source.digests(),
    };
    let (text, tokenizer) = text;
    let manifest = Manifest { program, text, provenance, tokenizer_len: 0 };
    let mut writer = Writer::create(out, options.profile, manifest, tokenizer)?;
    let mut parameters = 0;
    for (i, (constant, tensor)) in constants.iter().zip(&tensors).enumerate() {
        progress(Progress { done: i, total, tensor: tensor.name.clone() });
        match (constant, tensor.shape) {
            (Constant::Matrix { layer, parts, cols, columns }, Shape::Matrix { shift, .. }) => {
                let q = stack(source, *layer, parts, *cols, columns)?.quantise(storages[i], shift)?;
                writer.matrix(&q.stored, &q.scales)?;
            }
            (Constant::Remainder, Shape::Matrix { shift, .. }) => {
                let (Constant::Matrix { layer, parts, cols, columns }, Shape::Matrix { shift: first, .. }) =
                    (&constants[i - 1], tensors[i - 1].shape)
                else {
                    unreachable!("a remainder follows its matrix")
                };
                // Both are multiplied with the same numbers, or both are tables.
                let stack = stack(source, *layer, parts, *cols, columns)?;
                let q = stack.remainder(storages[i], first, shift)?;
                writer.matrix(&q.stored, &q.scales)?;
            }
            (Constant::Vector { layer, parts, plus }, Shape::Vector { frac, .. }) => {
                let numbers = vector(source, *layer, parts, *plus)?;
                writer.vector(&fixed(source, &tensor.name, &numbers, frac)?)?;
            }
            (Constant::FirstRow { name, rows, cols }, Shape::Vector { frac, .. }) => {
                let mut row = Vec::new();
                source.weights(None, name, *rows, *cols)?.row(0, &mut row)?;
                writer.vector(&fixed(source, &tensor.name, &row, frac)?)?;
            }
            (Constant::Rotary(from), _) => writer.rotary(&from.numbers())?,
            (Constant::Table(f), _) => writer.table(&table(*f))?,
            _ => unreachable!("a constant has the shape of its kind"),
        }
        parameters += tensor.shape.parameters();
        source.release();
    }
    let root = writer.finish()?;
    progress(Progress { done: total, total, tensor: String::new() });
    Ok(ImportReport { root, name, parameters })
}

/// The text settings, checked against the tokenizer.
pub(super) fn text_model(
    source: &dyn Source,
    special: (Option<u32>, &[u32]),
    vocabulary: u32,
    tokenizer: &[u8],
) -> Result<TextModel, ImportError> {
    let (bos, eos) = special;
    let hints = source.text_hints();
    let mut text = TextModel {
        bos,
        add_bos: hints.add_bos.unwrap_or(true) && bos.is_some(),
        end_tokens: Vec::new(),
        chat_template: hints.chat_template.clone().unwrap_or_else(|| JOIN_MESSAGES.to_owned()),
        has_chat_template: hints.chat_template.is_some(),
    };
    let fail = |reason: String| ImportError::Tokenizer { path: source.path().to_owned(), reason };
    if text.chat_template.len() > TEMPLATE_BYTES_MAX {
        let got = text.chat_template.len();
        return Err(fail(format!(
            "the chat template has {got} bytes; at most {TEMPLATE_BYTES_MAX} are allowed"
        )));
    }
    let loaded = Tokenizer::new(&text, tokenizer).map_err(|e| fail(e.to_string()))?;
    if loaded.id_limit() > vocabulary {
        return Err(fail(format!(
            "the tokenizer has ids up to {}, but the model only {vocabulary} ids: it belongs to another model",
            loaded.id_limit() - 1,
        )));
    }
    // The first one is what templates know as `eos_token`. The beginning of another sequence never continues an answer.
    let named = hints.eos_token.as_deref().and_then(|name| loaded.id(name));
    for id in named.into_iter().chain(eos.iter().copied()).chain(bos) {
        if !text.end_tokens.contains(&id) {
            text.end_tokens.push(id);
        }
    }
    if text.end_tokens.len() > END_TOKENS_MAX {
        return Err(fail(format!(
            "{} end tokens; at most {END_TOKENS_MAX} are allowed",
            text.end_tokens.len()
        )));
    }
    Ok(text)
}
