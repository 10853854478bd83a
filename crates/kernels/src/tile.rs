//! The inner loop of matrix products: a tile of the result stays in registers while the summed dimension
//! streams by.
//!
//! Every element is summed in the order of that dimension, whatever the tile: results depend neither on
//! the number of threads nor on the rows around.

/// A stretch of the summed dimension: rows of `a` and a panel of `b`.
#[derive(Clone, Copy)]
pub(crate) struct Stretch {
    pub a: *const f32,
    /// Elements from one row of `a` to the next, and from one column to the next.
    pub a_row: usize,
    pub a_column: usize,
    pub b: *const f32,
    /// Elements from one row of the panel to the next.
    pub b_row: usize,
    pub len: usize,
}

/// Where a tile goes: `c = scale · sums`, or `c += scale · sums`.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub c: *mut f32,
    pub c_row: usize,
    pub scale: f32,
    pub add: bool,
}

/// Computes one tile of the rows of `a` from the given one on.
///
/// # Safety
/// All elements that the tile's rows and columns name exist; the tile is nobody else's.
pub(crate) type Tile = unsafe fn(stretches: &[Stretch], row: usize, target: Target);

/// What a processor multiplies with.
pub(crate) struct Tiles {
    /// Columns of a narrow tile; the others are twice as wide.
    pub lanes: usize,
    /// Narrow ones and wide ones, for 1, 2, … rows.
    pub narrow: &'static [Tile],
    pub wide: &'static [Tile],
}

impl Tiles {
    /// The largest tile's rows.
    pub fn rows(&self) -> usize {
        self.wide.len()
    }

    /// The best of this processor; none where only libtorch's own product would do.
    pub fn of_this_processor() -> Option<&'static Self> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx2") {
                return Some(&avx512::TILES);
            }
            if has!("avx2") && has!("fma") {
                return Some(&avx2::TILES);
            }
        }
        None
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! tiles {
    (
        $name:ident, $features:literal, $lanes:literal, [$($rows:literal)*],
        $zero:ident, $load:ident, $spread:ident, $fma:ident, $mul:ident, $store:ident
    ) => {
        mod $name {
            use std::arch::x86_64::*;

            use super::{Stretch, Target, Tile, Tiles};

            pub static TILES: Tiles = Tiles {
                lanes: $lanes,
                narrow: &[$(tile::<$rows, 1> as Tile),*],
                wide: &[$(tile::<$rows, 2> as Tile),*],
            };

            #[target_feature(enable = $features)]
            unsafe fn tile<const M: usize, const V: usize>(
                stretches: &[Stretch],
                row: usize,
                target: Target,
            ) {
                let mut sums = [[$zero(); V]; M];
                for stretch in stretches {
                    let a_row = stretch.a_row;
                    // SAFETY: the caller vouches for all elements of these rows and columns; pointers
                    // one step behind the last are not read.
                    unsafe {
                        let (mut a, mut b) = (stretch.a.add(row * a_row), stretch.b);
                        for _ in 0..stretch.len {
                            let mut columns = [$zero(); V];
                            for (v, column) in columns.iter_mut().enumerate() {
                                *column = $load(b.add(v * $lanes));
                            }
                            for (i, sums) in sums.iter_mut().enumerate() {
                                let x = $spread(*a.add(i * a_row));
                                for (sum, column) in sums.iter_mut().zip(&columns) {
                                    *sum = $fma(x, *column, *sum);
                                }
                            }
                            a = a.wrapping_add(stretch.a_column);
                            b = b.wrapping_add(stretch.b_row);
                        }
                    }
                }
                let scale = $spread(target.scale);
                for (i, sums) in sums.iter().enumerate() {
                    for (v, sum) in sums.iter().enumerate() {
                        // SAFETY: inside the tile, which is the caller's to write.
                        unsafe {
                            let c = target.c.add(i * target.c_row + v * $lanes);
                            let value =
                                if target.add { $fma(*sum, scale, $load(c)) } else { $mul(*sum, scale) };
                            $store(c, value);
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
tiles! {
    avx512, "avx512f", 16, [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    _mm512_setzero_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_mul_ps, _mm512_storeu_ps
}

#[cfg(target_arch = "x86_64")]
tiles! {
    avx2, "avx2,fma", 8, [1 2 3 4 5 6],
    _mm256_setzero_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_mul_ps, _mm256_storeu_ps
}
