//! Decoders of the Llama family — Llama, Mistral, Qwen 2 and 3, SmolLM, Gemma 1 to 3 — as programs: this file is the whole
//! of what the engine knows of their architectures.

use std::f64::consts::LOG2_E;

use super::lower::{
    Builder, Columns, Constant, INNER_FRAC, PartPlan, RESIDUAL_FRAC, Rotary, epsilon, logistic, normal,
    normal_by_tanh, text_model, write,
};
use super::quantise::exp2;
use super::rotate::{Rotation, Turn};
use super::source::{Activation, Config, RopeScaling, Source};
use super::{ImportError, ImportOptions, ImportReport, Progress};
use crate::program::{Head, LOGIT_FRAC, Op, Program, Reach, SoftCap, TensorId, ValueId};
use crate::semantics::scale::Scale;

/// Fraction bits of gains: numbers up to 65 536.
const GAIN_FRAC: u8 = 14;

/// Writes `source` as an artifact.
pub(super) fn lower(
    source: &dyn Source,
    config: &Config,
    name: String,
    options: &ImportOptions,
    out: &std::path::Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImportReport, ImportError> {
    let mut config = config.clone();
    if let Some(context) = options.context {
        config.context = config.context.min(context);
    }
    config.check(source.path())?;
    check_rotation(&config, options.rotation, source.path())?;
    let tokenizer = source.tokenizer(options.tokenizer.as_deref())?;
    let text = text_model(source, (config.bos, &config.eos), config.vocabulary, &tokenizer)?;
    let made = program(&config, options.rotation);
    write(source, made, (text, tokenizer), (name, options), out, progress)
}

/// Refuses a rotation that would change the function: vectors that are added or multiplied number by number are not rotated.
fn check_rotation(c: &Config, rotation: Rotation, path: &std::path::Path) -> Result<(), ImportError> {
    let reason = match rotation {
        Rotation::None => return Ok(()),
        Rotation::Hadamard if c.qkv_bias => "models with biases of queries, keys and values",
        Rotation::Hadamard if c.post_norms => "models that normalise what a layer adds",
        Rotation::Hadamard => return Ok(()),
    };
    Err(ImportError::Unsupported {
        path: path.to_owned(),
        field: "rotation".into(),
        got: "Hadamard".into(),
        reason: format!("{reason} are imported without"),
    })
}

/// The constants that all layers share.
struct Shared {
    /// Angles of layers that see everything, and of those with a window.
    rotary: [TensorId; 2],
    activation: TensorId,
    /// The logistic table, where something is bent.
    bend: Option<TensorId>,
    turns: Turns,
}

/// The rotations of an import.
struct Turns {
    residual: Option<Turn>,
    head: Option<Turn>,
}

/// The program and where its constants come from; shifts are still to be filled in.
pub(super) fn program(c: &Config, rotation: Rotation) -> (Program, Vec<Constant>) {
    let mut b = Builder::default();
    let turns = match rotation {
        Rotation::None => Turns { residual: None, head: None },
        Rotation::Hadamard => Turns { residual: Some(Turn::new(c.dim)), head: Some(Turn::new(c.head_dim)) },
    };
    // A row of the embedding is a residual vector: rotating what it "reads" rotates that.
    let columns = Columns { gain: None, factor: c.embedding_factor, turn: turns.residual.clone() };
    let rows = vec![PartPlan { name: "embed", rows: c.vocabulary, turn: None }];
    let embed = b.matrix("embed".into(), None, rows, c.dim, columns);
    let rotary = b.rotary("rotary", angles(c, c.rope_theta, &c.rope_scaling));
    let local = match c.local.as_ref().and_then(|l| l.rope_theta) {
        Some(theta) => b.rotary("rotary.local", angles(c, theta, &RopeScaling::None)),
        None => rotary,
    };
    let activation = match c.activation {
        Activation::Silu => b.table("logistic", logistic),
        Activation::Gelu => b.table("normal", normal),
        Activation::GeluTanh => b.table("normal", normal_by_tanh),
    };
    let bends = c.attention_cap.is_some() || c.logit_cap.is_some();
    let bend = match c.activation {
        Activation::Silu => bends.then_some(activation),
        _ => bends.then(|| b.table("logistic", logistic)),
    };
    let shared = Shared { rotary: [rotary, local], activation, bend, turns };
    let mut x = b.push(Op::Embed { table: embed });
    for layer in 0..c.layers {
        x = attention(&mut b, c, &shared, layer, x);
        x = mlp(&mut b, c, &shared, layer, x);
    }
    // A tied head is a matrix of its own, since the final norm's gain is folded into it.
    let name = if c.tied { "embed" } else { "head" };
    let columns =
        Columns { gain: Some(("norm", c.gain_plus)), factor: None, turn: shared.turns.residual.clone() };
    let rows = vec![PartPlan { name, rows: c.vocabulary, turn: None }];
    let head = b.matrix("head".into(), None, rows, c.dim, columns);
    let n = b.push(Op::RmsNorm { x, epsilon: epsilon(c.epsilon, RESIDUAL_FRAC) });
    let hidden = b.push(Op::Quantise { x: n, offset: 0, len: c.dim, groups: 1 });
    let m = b.push(Op::MatMul { weights: head, x: hidden });
    let mut logits = b.push(Op::Fix { x: m, offset: 0, len: c.vocabulary, frac: LOGIT_FRAC });
    if let (Some(cap), Some(table)) = (c.logit_cap, shared.bend) {
        let cap = SoftCap { limit: sixteen(cap), table };
        logits = b.push(Op::Bend { x: logits, cap });
    }
    b.program(c.context, c.vocabulary, Head::Tokens { hidden, logits })
}

/// A real number as fixed point with 16 fraction bits.
fn sixteen(v: f64) -> u32 {
    (v * 65_536.0 + 0.5) as u32
}

/// A norm whose result is a fixed-point vector, where its gain cannot be folded into a matrix.
fn norm_after(b: &mut Builder, c: &Config, layer: u32, name: &'static str, y: ValueId) -> ValueId {
    let gain =
        b.vector(format!("layers.{layer}.{name}"), Some(layer), vec![(name, c.dim)], c.gain_plus, GAIN_FRAC);
    let y = b.push(Op::Fix { x: y, offset: 0, len: c.dim, frac: RESIDUAL_FRAC });
    let epsilon = epsilon(c.epsilon, RESIDUAL_FRAC);
    let norm =
        Op::Normalise { x: y, groups: 1, center: false, epsilon, gain, bias: None, frac: RESIDUAL_FRAC };
    b.push(norm)
}

fn attention(b: &mut Builder, c: &Config, s: &Shared, layer: u32, x: ValueId) -> ValueId {
    let (heads, kv_heads, head_dim) = (c.heads, c.kv_heads, c.head_dim);
    let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
    let part = |name, rows, turn: &Option<Turn>| PartPlan { name, rows, turn: turn.clone() };
    let columns =
        Columns { gain: Some(("attention_norm", c.gain_plus)), factor: None, turn: s.turns.residual.clone() };
    let rows = vec![part("q", q_len, &None), part("k", kv_len, &None), part("v", kv_len, &s.turns.head)];
    let weights = b.matrix(format!("layers.{layer}.attention.qkv"), Some(layer), rows, c.dim, columns);
    let n = b.push(Op::RmsNorm { x, epsilon: epsilon(c.epsilon, RESIDUAL_FRAC) });
    let mut qkv = b.product(n, c.dim, weights);
    if c.qkv_bias {
        let parts = vec![("q_bias", q_len), ("k_bias", kv_len), ("v_bias", kv_len)];
        let name = format!("layers.{layer}.attention.qkv.bias");
        let bias = b.vector(name, Some(layer), parts, 0.0, INNER_FRAC);
        qkv = b.push(Op::Bias { x: qkv, bias });
    }
    let local = c.local.as_ref().filter(|l| l.layers[layer as usize]);
    let table = s.rotary[usize::from(local.is_some())];
    let mut turned = |name: &'static str, offset: u32, heads: u32| {
        let (mut x, mut offset) = (qkv, offset);
        let len = heads * head_dim;
        if c.qk_norm {
            let label = format!("layers.{layer}.attention.{name}");
            let gain = b.vector(label, Some(layer), vec![(name, head_dim)], c.gain_plus, GAIN_FRAC);
            let fixed = b.push(Op::Fix { x, offset, len, frac: INNER_FRAC });
            let epsilon = epsilon(c.epsilon, INNER_FRAC);
            let norm = Op::Normalise {
                x: fixed,
                groups: heads,
                center: false,
                epsilon,
                gain,
                bias: None,
                frac: INNER_FRAC,
            };
            (x, offset) = (b.push(norm), 0);
        }
        let r = b.push(Op::Rotary { x, offset, heads, head_dim, table });
        b.push(Op::Quantise { x: r, offset: 0, len, groups: heads })
    };
    let q = turned("q_norm", 0, heads);
    let k = turned("k_norm", q_len, kv_heads);
    let v = b.push(Op::Quantise { x: qkv, offset: q_len + kv_len, len: kv_len, groups: kv_heads });
    let scale = attention_scale(c.query_scale.unwrap_or(f64::from(head_dim)));
    let cap = match (c.attention_cap, s.bend) {
        // A score is bent as the exponent of two that it is.
        (Some(cap), Some(table)) => Some(SoftCap { limit: sixteen(cap * LOG2_E), table }),
        _ => None,
    };
    let a = b.push(Op::Attend {
        q,
        k,
        v,
        layer: layer as u16,
        reach: local.map_or(Reach::Past, |l| Reach::Window(l.window)),
        heads,
        kv_heads,
        head_dim,
        scale,
        cap,
        frac: INNER_FRAC,
    });
    let rows = vec![part("out", c.dim, &s.turns.residual)];
    let columns = Columns { gain: None, factor: None, turn: s.turns.head.clone() };
    let weights = b.matrix(format!("layers.{layer}.attention.out"), Some(layer), rows, q_len, columns);
    let mut y = b.product(a, q_len, weights);
    if c.post_norms {
        y = norm_after(b, c, layer, "post_attention_norm", y);
    }
    b.push(Op::Add { x, y })
}

fn mlp(b: &mut Builder, c: &Config, s: &Shared, layer: u32, x: ValueId) -> ValueId {
    let part = |name, rows, turn: &Option<Turn>| PartPlan { name, rows, turn: turn.clone() };
    let columns =
        Columns { gain: Some(("mlp_norm", c.gain_plus)), factor: None, turn: s.turns.residual.clone() };
    let rows = vec![part("gate", c.hidden, &None), part("up", c.hidden, &None)];
    let weights = b.matrix(format!("layers.{layer}.mlp.gate_up"), Some(layer), rows, c.dim, columns);
    let n = b.push(Op::RmsNorm { x, epsilon: epsilon(c.epsilon, RESIDUAL_FRAC) });
    let m = b.product(n, c.dim, weights);
    let g = b.push(Op::Gate { x: m, gate: 0, up: c.hidden, len: c.hidden, table: s.activation });
    let rows = vec![part("down", c.dim, &s.turns.residual)];
    let weights =
        b.matrix(format!("layers.{layer}.mlp.down"), Some(layer), rows, c.hidden, Columns::default());
    let mut y = b.product(g, c.hidden, weights);
    if c.post_norms {
        y = norm_after(b, c, layer, "post_mlp_norm", y);
    }
    b.push(Op::Add { x, y })
}

/// log2(e) / sqrt(size): times it, a score is an exponent of two.
pub(super) fn attention_scale(size: f64) -> Scale {
    Scale::from_u64((LOG2_E / libm::sqrt(size) * exp2(40) + 0.5) as u64, -40)
}

/// Angles of `position · theta^(-2 i / head_dim)`, slowed down as the model was extended.
fn angles(c: &Config, theta: f64, scaling: &RopeScaling) -> Rotary {
    let speed = |i: u32| libm::pow(theta, -f64::from(2 * i) / f64::from(c.head_dim));
    let speeds = (0..c.head_dim / 2).map(|i| scaling.apply(i, speed(i))).collect();
    Rotary { context: c.context, speeds }
}
