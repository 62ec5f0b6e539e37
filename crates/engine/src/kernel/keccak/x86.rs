//! Keccak-256 with a message in every 64-bit lane of a register (FIPS 202, with the padding of Keccak as Ethereum has it).
//!
//! The permutation is written once (`instantiate!`) over the few operations that instruction sets have in different forms.

use std::arch::x86_64::*;

use super::Digest;

pub(in crate::kernel) use avx2::keccak as keccak_avx2;
pub(in crate::kernel) use avx512::keccak as keccak_avx512;

/// Bytes that one permutation takes in.
const RATE: usize = 136;

/// Constants of the rounds (step ι).
const ROUNDS: [u64; 24] = [
    0x0000_0000_0000_0001,
    0x0000_0000_0000_8082,
    0x8000_0000_0000_808a,
    0x8000_0000_8000_8000,
    0x0000_0000_0000_808b,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8009,
    0x0000_0000_0000_008a,
    0x0000_0000_0000_0088,
    0x0000_0000_8000_8009,
    0x0000_0000_8000_000a,
    0x0000_0000_8000_808b,
    0x8000_0000_0000_008b,
    0x8000_0000_0000_8089,
    0x8000_0000_0000_8003,
    0x8000_0000_0000_8002,
    0x8000_0000_0000_0080,
    0x0000_0000_0000_800a,
    0x8000_0000_8000_000a,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8080,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8008,
];

/// One message in each of `$lanes` lanes of a `$Lanes`.
///
/// Where it stands, there are `xor3(a, b, c)`: `a ^ b ^ c`; `chi(a, b, c)`: `a ^ (!b & c)`; and `rotate::<N>(a)`: to the
/// left.
macro_rules! instantiate {
    (#[$feature:meta] $lanes:literal $Lanes:ident) => {
        #[$feature]
        #[inline]
        fn splat(a: u64) -> $Lanes {
            // SAFETY: as many plain numbers of as many bytes.
            unsafe { std::mem::transmute([a; $lanes]) }
        }

        /// Keccak-f\[1600\]: the word at (x, y) is number `x + 5 y`.
        #[$feature]
        #[inline]
        fn permute(state: &mut [$Lanes; 25]) {
            // θ, ρ: the word, turned by so many bits after the parities of the columns beside it went into it.
            macro_rules! turned {
                ($s:ident $c:ident $r:ident $i:literal $n:literal) => {
                    rotate::<$n>(xor3($s[$i], $c[($i + 4) % 5], $r[($i + 1) % 5]))
                };
            }
            let zero = splat(0);
            let mut s = *state;
            for round in ROUNDS {
                let mut c = [zero; 5];
                let mut r = [zero; 5];
                for x in 0..5 {
                    c[x] = xor3(xor3(s[x], s[x + 5], s[x + 10]), s[x + 15], s[x + 20]);
                    r[x] = rotate::<1>(c[x]);
                }
                // π: in the order in which χ reads them.
                #[rustfmt::skip]
                let b = [
                    xor3(s[0], c[4], r[1]), turned!(s c r 6 44), turned!(s c r 12 43), turned!(s c r 18 21), turned!(s c r 24 14),
                    turned!(s c r 3 28), turned!(s c r 9 20), turned!(s c r 10 3), turned!(s c r 16 45), turned!(s c r 22 61),
                    turned!(s c r 1 1), turned!(s c r 7 6), turned!(s c r 13 25), turned!(s c r 19 8), turned!(s c r 20 18),
                    turned!(s c r 4 27), turned!(s c r 5 36), turned!(s c r 11 10), turned!(s c r 17 15), turned!(s c r 23 56),
                    turned!(s c r 2 62), turned!(s c r 8 55), turned!(s c r 14 39), turned!(s c r 15 41), turned!(s c r 21 2),
                ];
                for (y, b) in b.chunks_exact(5).enumerate() {
                    for x in 0..5 {
                        s[5 * y + x] = chi(b[x], b[(x + 1) % 5], b[(x + 2) % 5]);
                    }
                }
                s[0] = xor3(s[0], splat(round), zero);
            }
            *state = s;
        }

        /// See [`super::super::Keccak`].
        #[$feature]
        pub(in crate::kernel) fn keccak(prefix: &[u8], bytes: &[u8], len: usize, out: &mut [Digest]) {
            let end = prefix.len() + len;
            let size = end / RATE * RATE + RATE;
            // Padded messages: all but the run stays the same from one to the next. Lanes without a message hash an old one.
            let mut messages = vec![0u8; $lanes * size];
            for message in messages.chunks_exact_mut(size) {
                message[..prefix.len()].copy_from_slice(prefix);
                message[end] = 0x01;
                message[size - 1] |= 0x80;
            }
            for (out, runs) in out.chunks_mut($lanes).zip(bytes.chunks($lanes * len)) {
                for (message, run) in messages.chunks_exact_mut(size).zip(runs.chunks_exact(len)) {
                    message[prefix.len()..end].copy_from_slice(run);
                }
                let mut state = [splat(0); 25];
                for block in (0..size).step_by(RATE) {
                    for (w, word) in state.iter_mut().take(RATE / 8).enumerate() {
                        let lanes: [u64; $lanes] = std::array::from_fn(|lane| {
                            let at = lane * size + block + 8 * w;
                            u64::from_le_bytes(messages[at..at + 8].try_into().expect("8 bytes"))
                        });
                        // SAFETY: as many plain numbers of as many bytes.
                        *word = xor3(*word, unsafe { std::mem::transmute::<[u64; $lanes], $Lanes>(lanes) }, splat(0));
                    }
                    permute(&mut state);
                }
                for (w, word) in state.into_iter().take(4).enumerate() {
                    // SAFETY: as many plain numbers of as many bytes.
                    let lanes = unsafe { std::mem::transmute::<$Lanes, [u64; $lanes]>(word) };
                    for (out, lane) in out.iter_mut().zip(lanes) {
                        out[8 * w..8 * w + 8].copy_from_slice(&lane.to_le_bytes());
                    }
                }
            }
        }
    };
}

mod avx512 {
    use super::*;

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<0x96>(a, b, c)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn chi(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<0xd2>(a, b, c)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn rotate<const N: i32>(a: __m512i) -> __m512i {
        _mm512_rol_epi64::<N>(a)
    }

    instantiate!(#[target_feature(enable = "avx512f")] 8 __m512i);
}

mod avx2 {
    use super::*;

    #[target_feature(enable = "avx2")]
    #[inline]
    fn xor3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        _mm256_xor_si256(a, _mm256_xor_si256(b, c))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn chi(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        _mm256_xor_si256(a, _mm256_andnot_si256(b, c))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate<const N: i32>(a: __m256i) -> __m256i {
        let (left, right) = (_mm256_set1_epi64x(i64::from(N)), _mm256_set1_epi64x(i64::from(64 - N)));
        _mm256_or_si256(_mm256_sllv_epi64(a, left), _mm256_srlv_epi64(a, right))
    }

    instantiate!(#[target_feature(enable = "avx2")] 4 __m256i);
}
