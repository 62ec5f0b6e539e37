//! Portable functions: no processor feature beyond the target's own.

use super::Dot;

pub(super) use functions::FUNCTIONS;

mod functions {
    crate::kernel::body::instantiate!(super::dot, crate::kernel::keccak::scalar, None);
}

/// # Safety
/// The pointers are as [`Dot`] describes.
unsafe fn dot(d: Dot) {
    for r in 0..d.m {
        for row in 0..d.rows_16 * 16 {
            let mut sum = 0i32;
            for g in 0..d.groups {
                for i in 0..4 {
                    // SAFETY: within the group and vector that `Dot` describes.
                    let (w, x) = unsafe {
                        (*d.w.add(g * d.stride + row * 4 + i), *d.x.add(r * d.x_stride + g * 4 + i))
                    };
                    sum = sum.wrapping_add(i32::from(w) * i32::from(x));
                }
            }
            // SAFETY: within the output that `Dot` describes.
            unsafe {
                let out = d.out.add(r * d.out_stride + row);
                *out = if d.accumulate { (*out).wrapping_add(sum) } else { sum };
            }
        }
    }
}
