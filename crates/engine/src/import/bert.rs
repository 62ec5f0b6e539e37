//! Encoders of the BERT family as programs: this file is the whole of what the engine knows of their architecture.
//!
//! Their vectors have outliers that int8 numbers do not hold, in a few places that are always the same. A Hadamard transform
//! before each matrix spreads them; its inverse is folded into the matrix. Token and position embeddings are kept to 16
//! bits, as the sum of two int8 matrices.

use super::llama::attention_scale;
use super::lower::{
    Builder, Columns, Constant, INNER_FRAC, PartPlan, RESIDUAL_FRAC, epsilon, normal, normal_by_tanh,
    text_model, write,
};
use super::rotate::Turn;
use super::source::{Activation, EncoderConfig, Source};
use super::{ImportError, ImportOptions, ImportReport, Progress};
use crate::program::check::HADAMARD_MAX;
use crate::program::{Head, Op, Program, Reach, TensorId, ValueId};

/// Fraction bits of gains: numbers up to 1024.
const GAIN_FRAC: u8 = 20;
/// Longest run that a transform mixes: of 32 to 512, which were measured, none above 128 did better.
const BLOCK_MAX: u32 = 512;

/// Writes `source` as an artifact.
pub(super) fn lower(
    source: &dyn Source,
    config: &EncoderConfig,
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
    let tokenizer = source.tokenizer(options.tokenizer.as_deref())?;
    let text = text_model(source, (None, &[]), config.vocabulary, &tokenizer)?;
    write(source, program(&config), (text, tokenizer), (name, options), out, progress)
}

/// The program and where its constants come from.
fn program(c: &EncoderConfig) -> (Program, Vec<Constant>) {
    let mut b = Builder::default();
    let act = match c.activation {
        Activation::GeluTanh => b.table("normal", normal_by_tanh),
        _ => b.table("normal", normal),
    };
    let embed = embedding(&mut b, "embed", c.vocabulary, c.dim);
    let positions = embedding(&mut b, "positions", c.positions, c.dim);
    let types = (c.token_types > 0).then(|| {
        // Every token is of the first type: the first row is a bias.
        b.first_row("types".into(), "types", c.token_types, c.dim, RESIDUAL_FRAC)
    });
    let mut x = b.push(Op::Embed { table: embed[0] });
    let rest = b.push(Op::Embed { table: embed[1] });
    x = b.push(Op::Add { x, y: rest });
    for table in positions {
        let y = b.push(Op::Position { table });
        x = b.push(Op::Add { x, y });
    }
    if let Some(bias) = types {
        x = b.push(Op::Bias { x, bias });
    }
    x = norm(&mut b, c, None, ["embed_norm", "embed_norm_bias"], x);
    for l in 0..c.layers {
        let y = attention(&mut b, c, l, x);
        x = b.push(Op::Add { x, y });
        x = norm(&mut b, c, Some(l), ["attention_norm", "attention_norm_bias"], x);
        let y = inner(&mut b, c, l, x, act);
        x = b.push(Op::Add { x, y });
        x = norm(&mut b, c, Some(l), ["mlp_norm", "mlp_norm_bias"], x);
    }
    let pooled = b.push(Op::Pool { x, pooling: c.pooling });
    b.program(c.context, c.vocabulary, Head::Vector { pooled })
}

/// A matrix whose rows are looked up, and what rounding it left over.
fn embedding(b: &mut Builder, name: &'static str, rows: u32, dim: u32) -> [TensorId; 2] {
    let part = PartPlan { name, rows, turn: None };
    let first = b.matrix(name.into(), None, vec![part], dim, Columns::default());
    [first, b.remainder(format!("{name}.rest"))]
}

fn label(layer: Option<u32>, name: &str) -> String {
    layer.map_or(name.to_owned(), |l| format!("layers.{l}.{name}"))
}

fn norm(
    b: &mut Builder,
    c: &EncoderConfig,
    layer: Option<u32>,
    names: [&'static str; 2],
    x: ValueId,
) -> ValueId {
    let [gain, bias] = names;
    let gain = b.vector(label(layer, gain), layer, vec![(gain, c.dim)], 0.0, GAIN_FRAC);
    let bias = b.vector(label(layer, bias), layer, vec![(bias, c.dim)], 0.0, RESIDUAL_FRAC);
    let epsilon = epsilon(c.epsilon, RESIDUAL_FRAC);
    let frac = RESIDUAL_FRAC;
    b.push(Op::Normalise { x, groups: 1, center: true, epsilon, gain, bias: Some(bias), frac })
}

/// Numbers spread by a Hadamard transform, as int8 numbers with one scale; and the transform, for matrices to undo.
fn spread(b: &mut Builder, x: ValueId, len: u32) -> (ValueId, Option<Turn>) {
    let block = (1 << len.trailing_zeros()).min(BLOCK_MAX).min(HADAMARD_MAX);
    let (x, turn) = match block {
        4.. => (b.push(Op::Hadamard { x, block }), Some(Turn::plain(len, block))),
        _ => (x, None),
    };
    (b.push(Op::Quantise { x, offset: 0, len, groups: 1 }), turn)
}

/// A matrix and its bias: checkpoint names and rows.
struct Linear<'a> {
    name: &'a str,
    parts: &'a [(&'static str, &'static str, u32)],
    /// Whether weights are kept to 16 bits, as the sum of two matrices.
    fine: bool,
}

/// `weights · x + bias` for a vector from [`spread`].
fn linear(b: &mut Builder, layer: u32, m: &Linear<'_>, x: (ValueId, &Option<Turn>), cols: u32) -> ValueId {
    let (x, turn) = x;
    let name = |ending: &str| label(Some(layer), &format!("{}{ending}", m.name));
    let rows = m.parts.iter().map(|(name, _, rows)| PartPlan { name, rows: *rows, turn: None }).collect();
    let columns = Columns { gain: None, factor: None, turn: turn.clone() };
    let weights = b.matrix(name(""), Some(layer), rows, cols, columns);
    let rest = m.fine.then(|| b.remainder(name(".rest")));
    let biases = m.parts.iter().map(|(_, bias, rows)| (*bias, *rows)).collect();
    let bias = b.vector(name(".bias"), Some(layer), biases, 0.0, INNER_FRAC);
    let y = b.push(Op::MatMul { weights, x });
    let y = b.push(Op::Bias { x: y, bias });
    match rest {
        None => y,
        Some(weights) => {
            let rest = b.push(Op::MatMul { weights, x });
            b.push(Op::Add { x: y, y: rest })
        }
    }
}

fn attention(b: &mut Builder, c: &EncoderConfig, layer: u32, x: ValueId) -> ValueId {
    let (heads, dim) = (c.heads, c.dim);
    let head_dim = dim / heads;
    let (x, turn) = spread(b, x, dim);
    let parts = [("q", "q_bias", dim), ("k", "k_bias", dim)];
    let qk = linear(b, layer, &Linear { name: "attention.qk", parts: &parts, fine: false }, (x, &turn), dim);
    // Values' weights in 16 bits take two fifths off the distance of the worst text: its cosine is 0.99919 instead of 0.99861.
    let parts = [("v", "v_bias", dim)];
    let v = linear(b, layer, &Linear { name: "attention.v", parts: &parts, fine: true }, (x, &turn), dim);
    let mut heads_of = |x, offset| b.push(Op::Quantise { x, offset, len: dim, groups: heads });
    let (q, k, v) = (heads_of(qk, 0), heads_of(qk, dim), heads_of(v, 0));
    let a = b.push(Op::Attend {
        q,
        k,
        v,
        layer: layer as u16,
        reach: Reach::All,
        heads,
        kv_heads: heads,
        head_dim,
        scale: attention_scale(f64::from(head_dim)),
        cap: None,
        frac: INNER_FRAC,
    });
    let (x, turn) = spread(b, a, dim);
    let parts = [("out", "out_bias", dim)];
    linear(b, layer, &Linear { name: "attention.out", parts: &parts, fine: false }, (x, &turn), dim)
}

fn inner(b: &mut Builder, c: &EncoderConfig, layer: u32, x: ValueId, table: TensorId) -> ValueId {
    let (x, turn) = spread(b, x, c.dim);
    let parts = [("up", "up_bias", c.hidden)];
    let up = linear(b, layer, &Linear { name: "mlp.up", parts: &parts, fine: false }, (x, &turn), c.dim);
    let a = b.push(Op::Activate { x: up, table });
    let (x, turn) = spread(b, a, c.hidden);
    let parts = [("down", "down_bias", c.dim)];
    linear(b, layer, &Linear { name: "mlp.down", parts: &parts, fine: false }, (x, &turn), c.hidden)
}
