//! The shapes that are measured: proportions of models that exist, with random weights.

use std::sync::Arc;

use anyhow::{Result, bail};
use assay_engine::import::synthetic::Size;
use assay_engine::import::synthetic::memory::InMemory;

/// In order of width.
pub const SHAPES: [Size; 9] = [
    size("stories260K", [64, 5, 8, 4, 172, 512]),
    size("assay-stories", [128, 8, 4, 2, 384, 1024]),
    size("stories15M", [288, 6, 6, 6, 768, 32_000]),
    size("SmolLM2-135M", [576, 30, 9, 3, 1536, 49_152]),
    size("SmolLM2-360M", [960, 32, 15, 5, 2560, 49_152]),
    size("Llama-3.2-1B", [2048, 16, 32, 8, 8192, 128_256]),
    size("Llama-3.2-3B", [3072, 28, 24, 8, 8192, 128_256]),
    size("Llama-3.1-8B", [4096, 32, 32, 8, 14_336, 128_256]),
    size("Llama-3.1-70B", [8192, 80, 64, 8, 28_672, 128_256]),
];

const fn size(name: &'static str, [dim, layers, heads, kv_heads, hidden, vocabulary]: [u32; 6]) -> Size {
    Size { name, dim, layers, heads, kv_heads, hidden, vocabulary }
}

/// The shape of a width.
pub fn of_width(dim: u32) -> Result<&'static Size> {
    let widths = || SHAPES.iter().map(|s| s.dim.to_string()).collect::<Vec<_>>().join(", ");
    match SHAPES.iter().find(|s| s.dim == dim) {
        Some(size) => Ok(size),
        None => bail!("no shape of width {dim}; there are {}", widths()),
    }
}

/// Models up to so many bytes of weights are made whole.
const WHOLE_BYTES: u64 = 1_400_000_000;
/// Of larger ones, so many layers that their weights do not stay in a cache between two tokens.
const PART_BYTES: u64 = 200_000_000;

/// How many layers stand for all of them.
pub fn layers_made(size: &Size) -> u32 {
    let whole = size.layer_weights() * u64::from(size.layers) + size.head_weights();
    if whole <= WHOLE_BYTES {
        return size.layers;
    }
    let enough = PART_BYTES.div_ceil(size.layer_weights());
    u32::try_from(enough).map_or(size.layers, |n| n.min(size.layers))
}

/// A shape's model, as far as it is made; without layers; and with one alone, where there are more.
pub struct Model {
    pub size: &'static Size,
    pub made: Arc<InMemory>,
    pub none: Arc<InMemory>,
    pub one: Option<Arc<InMemory>>,
}

impl Model {
    /// With `context` positions.
    pub fn new(size: &'static Size, context: u32) -> Model {
        let made = InMemory::new(size, layers_made(size), context, u64::from(size.dim));
        let one = (made.layers() > 1).then(|| Arc::new(made.with_layers(1)));
        Model { size, none: Arc::new(made.with_layers(0)), one, made: Arc::new(made) }
    }

    /// Whether no layer is left out.
    pub fn is_whole(&self) -> bool {
        self.made.layers() == self.size.layers
    }

    /// The model with a single layer.
    pub fn single(&self) -> &Arc<InMemory> {
        self.one.as_ref().unwrap_or(&self.made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_models_are_whole_and_large_ones_fit_into_memory() {
        for size in &SHAPES {
            let made = layers_made(size);
            let bytes = size.layer_weights() * u64::from(made) + size.head_weights();
            assert!(made >= 1 && made <= size.layers && bytes < 2_100_000_000, "{}: {bytes}", size.name);
            assert_eq!(made == size.layers, size.dim <= 2048, "{}", size.name);
        }
        assert!(of_width(576).is_ok() && of_width(577).is_err());
    }
}
