//! Openings: what a provider sends of the positions that were drawn.
//!
//! Decoding allocates no more than a few times the bytes it reads; nothing here is trusted until a [`super::Checker`] has compared every
//! length with its program.

use std::io;

use assay_core::canonical::Canonical;
use assay_core::id::Hash;
use assay_core::limits::LIGHT_OPENING_BYTES_MAX;
use assay_core::merkle::Proof;
use assay_engine::kernel::Kernel;
use assay_engine::kernel::wide::bytes_of;
use assay_engine::semantics::scale::Scale;
use borsh::{BorshDeserialize, BorshSerialize};

use super::form::Roots;

/// An opening of some positions of a trace.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Opening {
    /// The blocks up to that of the last opened position.
    pub blocks: Vec<Block>,
    /// The carries of the blocks after them.
    pub rest: Vec<Hash>,
    /// The opened positions, rising.
    pub tokens: Vec<Token>,
}

impl Canonical for Opening {
    const TAG: &'static str = "assay/light-opening/1";
    const BYTES_MAX: usize = LIGHT_OPENING_BYTES_MAX;
}

/// One block: its carried operations in rising order.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Block {
    /// Keys and values as a whole; the hidden vectors as a whole where a position of the block is opened.
    pub kept: Vec<Kept>,
}

/// A carried operation in one block.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Kept {
    /// All scales and numbers, position by position.
    Whole {
        /// Root of the largest absolute values.
        largest: Hash,
        /// The scale of each group.
        scales: Vec<Scale>,
        /// The int8 numbers.
        numbers: Int8s,
    },
    /// The roots alone.
    Roots(Roots),
}

/// One opened position.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Token {
    /// The position.
    pub position: u32,
    /// The rows that token and position are embedded by, in order of operations.
    pub rows: Vec<Row>,
    /// The accumulators of each matrix product, in order of operations; those after the hidden vector only where the position's
    /// logits choose a token.
    pub products: Vec<Packed>,
}

/// A row of an embedding table.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Row {
    /// Its scale.
    pub scale: u16,
    /// Its weights.
    pub weights: Int8s,
    /// That they stand in the table.
    pub proof: Proof,
}

/// int8 numbers: in borsh a list of bytes, in two's complement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Int8s(pub Vec<i8>);

impl BorshSerialize for Int8s {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let bytes: Vec<u8> = self.0.iter().map(|v| v.cast_unsigned()).collect();
        bytes.serialize(writer)
    }
}

impl BorshDeserialize for Int8s {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let bytes = Vec::<u8>::deserialize_reader(reader)?;
        Ok(Int8s(bytes.into_iter().map(u8::cast_signed).collect()))
    }
}

/// Accumulators in the fewest bytes, 2, 3 or 4, that hold all of them: first the low two bytes of each, then the higher bytes of
/// each, little-endian in two's complement.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Packed {
    /// Bytes of a number.
    pub width: u8,
    /// The numbers.
    pub bytes: Vec<u8>,
}

impl Packed {
    /// Packs numbers.
    pub fn new(numbers: &[i32]) -> Packed {
        let width = bytes_of(numbers);
        let mut bytes = Vec::with_capacity(numbers.len().saturating_mul(width.into()));
        for v in numbers {
            let [a, b, _, _] = v.to_le_bytes();
            bytes.extend([a, b]);
        }
        for v in numbers {
            let [_, _, c, d] = v.to_le_bytes();
            match width {
                2 => {}
                3 => bytes.push(c),
                _ => bytes.extend([c, d]),
            }
        }
        Packed { width, bytes }
    }

    /// Unpacks exactly `out.len()` numbers; `false`, and any numbers, when these are not the bytes of so many or not the fewest.
    pub fn unpack(&self, kernel: Kernel, out: &mut [i32]) -> bool {
        kernel.unpack(&self.bytes, self.width, out) == Some(self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_packed_in_the_fewest_bytes() {
        let cases: [(&[i32], u8); 7] = [
            (&[], 2),
            (&[0, -1, 32_767, -32_768], 2),
            (&[32_768], 3),
            (&[-32_769, 5], 3),
            (&[8_388_607, -8_388_608], 3),
            (&[8_388_608], 4),
            (&[i32::MIN, i32::MAX, 0, -1], 4),
        ];
        for (numbers, width) in cases {
            let packed = Packed::new(numbers);
            assert_eq!(packed.width, width, "{numbers:?}");
            for kernel in Kernel::available() {
                let mut out = vec![7; numbers.len()];
                assert!(packed.unpack(kernel, &mut out));
                assert_eq!(out, numbers);
                assert!(!packed.unpack(kernel, &mut vec![0; numbers.len() + 1]));
                assert!(!Packed { width: 5, ..packed.clone() }.unpack(kernel, &mut out));
                // The same numbers in more bytes are other bytes, and refused.
                let wide = Packed { width: 3, bytes: vec![1, 0, 0] };
                assert!(!wide.unpack(kernel, &mut [0]));
            }
        }
    }
}
