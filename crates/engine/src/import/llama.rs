//! The Llama family as a program: this file is the whole of what the engine knows of the architecture.

use std::path::Path;

use super::quantise::{Part, Stack, exp2};
use super::rotate::{Rotation, Turn};
use super::source::{Config, Source};
use super::{ImportError, ImportOptions, ImportReport, Progress};
use crate::artifact::writer::Writer;
use crate::artifact::{END_TOKENS_MAX, Manifest, Provenance, TEMPLATE_BYTES_MAX, TextModel};
use crate::program::{Op, Program, ROTARY_FRAC, Shape, TABLE_LEN, Tensor, TensorId, ValueId};
use crate::semantics::scale::Scale;
use crate::text::Tokenizer;
use crate::text::template::JOIN_MESSAGES;

/// Fraction bits of the residual stream: numbers up to 32 768 in steps of 0.000015.
pub(super) const RESIDUAL_FRAC: u8 = 16;
/// Fraction bits of attention's result: numbers up to 2048 in steps of a millionth.
const ATTENTION_FRAC: u8 = 20;

/// Writes `source` as an artifact.
pub(super) fn lower(
    source: &dyn Source,
    name: String,
    options: &ImportOptions,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImportReport, ImportError> {
    let mut config = source.config().clone();
    if let Some(context) = options.context {
        config.context = config.context.min(context);
    }
    config.check(source.path())?;
    let turns = Turns::new(&config, options.rotation);
    let tokenizer = source.tokenizer(options.tokenizer.as_deref())?;
    let text = text_model(source, &config, &tokenizer)?;
    let mut program = program(&config);
    // The program names every matrix's shift: one pass over the weights finds them, a second writes the numbers.
    let matrices = matrices(&config);
    for (i, m) in matrices.iter().enumerate() {
        let shift = m.stack(source, &turns)?.shift()?;
        program.tensors[i].shape = Shape::Matrix { rows: m.rows(), cols: m.cols, shift };
    }
    program.clone().check().map_err(|e| ImportError::Unsupported {
        path: source.path().to_owned(),
        field: "shape".into(),
        got: e.to_string(),
        reason: "the model is beyond the engine's limits".into(),
    })?;
    let total = program.tensors.len();
    let names: Vec<String> = program.tensors.iter().map(|t| t.name.clone()).collect();
    let provenance = Provenance {
        name: name.clone(),
        licence: options.licence.clone().unwrap_or_default(),
        sources: source.digests(),
    };
    let manifest = Manifest { program: program.clone(), text, provenance, tokenizer_len: 0 };
    let mut writer = Writer::create(out, manifest, tokenizer)?;
    let mut parameters = 0;
    for (i, m) in matrices.iter().enumerate() {
        progress(Progress { done: i, total, tensor: names[i].clone() });
        let Shape::Matrix { shift, .. } = program.tensors[i].shape else { continue };
        let q = m.stack(source, &turns)?.quantise(shift)?;
        debug_assert_eq!(q.shift, shift);
        writer.matrix(&q.stored, &q.scales)?;
        parameters += u64::from(m.rows()) * u64::from(m.cols);
    }
    writer.rotary(&rotary(&config))?;
    writer.table(&logistic())?;
    let root = writer.finish()?;
    progress(Progress { done: total, total, tensor: String::new() });
    Ok(ImportReport { root, name, parameters })
}

fn text_model(source: &dyn Source, config: &Config, tokenizer: &[u8]) -> Result<TextModel, ImportError> {
    let hints = source.text_hints();
    let mut text = TextModel {
        bos: config.bos,
        add_bos: hints.add_bos.unwrap_or(true) && config.bos.is_some(),
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
    if loaded.id_limit() > config.vocabulary {
        return Err(fail(format!(
            "the tokenizer has ids up to {}, but the model only {} ids: it belongs to another model",
            loaded.id_limit() - 1,
            config.vocabulary
        )));
    }
    // The first one is what templates know as `eos_token`. The beginning of another sequence never continues an answer.
    let named = hints.eos_token.as_deref().and_then(|name| loaded.id(name));
    for id in named.into_iter().chain(config.eos.iter().copied()).chain(config.bos) {
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

/// The rotations of an import.
struct Turns {
    residual: Option<Turn>,
    head: Option<Turn>,
}

impl Turns {
    fn new(c: &Config, rotation: Rotation) -> Turns {
        match rotation {
            Rotation::None => Turns { residual: None, head: None },
            Rotation::Hadamard => {
                Turns { residual: Some(Turn::new(c.dim)), head: Some(Turn::new(c.head_dim)) }
            }
        }
    }

    fn of(&self, side: Side) -> Option<&Turn> {
        match side {
            Side::Residual => self.residual.as_ref(),
            Side::Values => self.head.as_ref(),
            Side::Inner => None,
        }
    }
}

/// What a matrix reads or writes, as far as rotations care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// The residual stream.
    Residual,
    /// Values of heads, before or after attention averaged them.
    Values,
    /// What only makes sense as it is: queries, keys, gates, logits.
    Inner,
}

/// A checkpoint tensor in a matrix of the program.
#[derive(Clone, Copy, Debug)]
struct PartPlan {
    name: &'static str,
    rows: u32,
    writes: Side,
}

/// A matrix of the program: checkpoint tensors stacked, with the gain of the norm before folded in.
struct MatrixPlan {
    layer: Option<u32>,
    parts: Vec<PartPlan>,
    cols: u32,
    reads: Side,
    gain: Option<&'static str>,
}

impl MatrixPlan {
    fn rows(&self) -> u32 {
        self.parts.iter().map(|p| p.rows).sum()
    }

    fn stack<'a>(&self, source: &'a dyn Source, turns: &'a Turns) -> Result<Stack<'a>, ImportError> {
        let gain = match self.gain {
            None => None,
            Some(name) => {
                // The final norm is outside the layers, like the head that it is folded into.
                let vector = source.weights(self.layer, name, 1, self.cols)?;
                let mut row = Vec::new();
                vector.row(0, &mut row)?;
                Some(row)
            }
        };
        let part = |p: &PartPlan| -> Result<Part<'a>, ImportError> {
            let weights = source.weights(self.layer, p.name, p.rows, self.cols)?;
            Ok(Part { weights, turn: turns.of(p.writes) })
        };
        let parts = self.parts.iter().map(part).collect::<Result<_, _>>()?;
        Ok(Stack { parts, gain, turn: turns.of(self.reads), cols: self.cols as usize })
    }
}

/// Matrices in the order of the program's tensors: the embedding, four for each layer, the head.
fn matrices(c: &Config) -> Vec<MatrixPlan> {
    use Side::{Inner, Residual, Values};
    let part = |name, rows, writes| PartPlan { name, rows, writes };
    let plan = |layer, parts, cols, reads, gain| MatrixPlan { layer, parts, cols, reads, gain };
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    // A row of the embedding is a residual vector: rotating what it "reads" rotates that.
    let mut all = vec![plan(None, vec![part("embed", c.vocabulary, Inner)], c.dim, Residual, None)];
    for l in 0..c.layers {
        let layer = Some(l);
        let qkv = vec![part("q", q, Inner), part("k", kv, Inner), part("v", kv, Values)];
        all.push(plan(layer, qkv, c.dim, Residual, Some("attention_norm")));
        all.push(plan(layer, vec![part("out", c.dim, Residual)], q, Values, None));
        let gate_up = vec![part("gate", c.hidden, Inner), part("up", c.hidden, Inner)];
        all.push(plan(layer, gate_up, c.dim, Residual, Some("mlp_norm")));
        all.push(plan(layer, vec![part("down", c.dim, Residual)], c.hidden, Inner, None));
    }
    // A tied head is a matrix of its own, since the final norm's gain is folded into it.
    let head = if c.tied { "embed" } else { "head" };
    all.push(plan(None, vec![part(head, c.vocabulary, Inner)], c.dim, Residual, Some("norm")));
    all
}

/// The program, with shifts still to be filled in.
pub(super) fn program(c: &Config) -> Program {
    let (q_len, kv_len) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let epsilon = (c.epsilon * exp2(2 * i32::from(RESIDUAL_FRAC)) + 0.5) as u64;
    let mut tensors = Vec::new();
    for (i, m) in matrices(c).iter().enumerate() {
        let name = match (m.layer, (i + 3) % 4) {
            (None, _) if i == 0 => "embed".to_owned(),
            (None, _) => "head".to_owned(),
            (Some(l), 0) => format!("layers.{l}.attention.qkv"),
            (Some(l), 1) => format!("layers.{l}.attention.out"),
            (Some(l), 2) => format!("layers.{l}.mlp.gate_up"),
            (Some(l), _) => format!("layers.{l}.mlp.down"),
        };
        tensors.push(Tensor { name, shape: Shape::Matrix { rows: m.rows(), cols: m.cols, shift: 0 } });
    }
    let head = tensors.len() as TensorId - 1;
    let rotary = head + 1;
    let silu = head + 2;
    tensors.push(Tensor {
        name: "rotary".into(),
        shape: Shape::Rotary { positions: c.context, pairs: c.head_dim / 2 },
    });
    tensors.push(Tensor { name: "logistic".into(), shape: Shape::Table });

    let mut ops = vec![Op::Embed { table: 0 }];
    let mut push = |op: Op| -> ValueId {
        ops.push(op);
        (ops.len() - 1) as ValueId
    };
    let (heads, kv_heads, head_dim) = (c.heads, c.kv_heads, c.head_dim);
    let scale = attention_scale(head_dim);
    let mut x: ValueId = 0;
    for l in 0..c.layers {
        let weights = (1 + 4 * l) as TensorId;
        let n = push(Op::RmsNorm { x, epsilon });
        let a = push(Op::Quantise { x: n, offset: 0, len: c.dim, groups: 1 });
        let qkv = push(Op::MatMul { weights, x: a });
        let q = push(Op::Rotary { x: qkv, offset: 0, heads, head_dim, table: rotary });
        let k = push(Op::Rotary { x: qkv, offset: q_len, heads: kv_heads, head_dim, table: rotary });
        let q = push(Op::Quantise { x: q, offset: 0, len: q_len, groups: heads });
        let k = push(Op::Quantise { x: k, offset: 0, len: kv_len, groups: kv_heads });
        let v = push(Op::Quantise { x: qkv, offset: q_len + kv_len, len: kv_len, groups: kv_heads });
        let layer = l as u16;
        let a = push(Op::Attend { q, k, v, layer, heads, kv_heads, head_dim, scale, frac: ATTENTION_FRAC });
        let a = push(Op::Quantise { x: a, offset: 0, len: q_len, groups: 1 });
        let a = push(Op::MatMul { weights: weights + 1, x: a });
        x = push(Op::Add { x, y: a });
        let n = push(Op::RmsNorm { x, epsilon });
        let a = push(Op::Quantise { x: n, offset: 0, len: c.dim, groups: 1 });
        let m = push(Op::MatMul { weights: weights + 2, x: a });
        let g = push(Op::Gate { x: m, gate: 0, up: c.hidden, len: c.hidden, table: silu });
        let a = push(Op::Quantise { x: g, offset: 0, len: c.hidden, groups: 1 });
        let a = push(Op::MatMul { weights: weights + 3, x: a });
        x = push(Op::Add { x, y: a });
    }
    let n = push(Op::RmsNorm { x, epsilon });
    let hidden = push(Op::Quantise { x: n, offset: 0, len: c.dim, groups: 1 });
    let m = push(Op::MatMul { weights: head, x: hidden });
    let logits = push(Op::Logits { x: m });
    Program {
        context: c.context,
        vocabulary: c.vocabulary,
        residual_frac: RESIDUAL_FRAC,
        tensors,
        ops,
        hidden,
        logits,
    }
}

/// log2(e) / sqrt(head_dim).
fn attention_scale(head_dim: u32) -> Scale {
    let v = std::f64::consts::LOG2_E / libm::sqrt(f64::from(head_dim));
    Scale::from_u64((v * exp2(40) + 0.5) as u64, -40)
}

/// Cosine and sine of `position · theta^(-2 i / head_dim)`.
pub(super) fn rotary(c: &Config) -> Vec<i16> {
    let one = f64::from(1u32 << ROTARY_FRAC);
    let pairs = c.head_dim / 2;
    let speeds: Vec<f64> =
        (0..pairs).map(|i| libm::pow(c.rope_theta, -f64::from(2 * i) / f64::from(c.head_dim))).collect();
    let round = |v: f64| (v * one + 0.5).floor() as i16;
    (0..c.context)
        .flat_map(|p| speeds.iter().map(move |s| f64::from(p) * s))
        .flat_map(|angle| [round(libm::cos(angle)), round(libm::sin(angle))])
        .collect()
}

/// 1 / (1 + e^-x) at 0, 1/64, …, 16.
pub(super) fn logistic() -> Vec<i32> {
    (0..TABLE_LEN).map(|i| (65_536.0 / (1.0 + libm::exp(-(i as f64) / 64.0)) + 0.5).floor() as i32).collect()
}
