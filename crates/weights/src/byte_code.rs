//! bitsandbytes' dynamic 8-bit codes: of absmax values in 4-bit weights, and of AdamW's moments.
//!
//! Values are scaled into −1 … 1 first; how, and in blocks of what size, is the user's part.

/// A code of 256 levels.
#[derive(Debug)]
pub struct ByteCode {
    /// The levels by code, ascending.
    pub levels: [f32; 256],
    /// The code nearest to each of 65,536 steps from −1 to 1: how bitsandbytes looks codes up on the CPU.
    pub nearest: Vec<u8>,
}

impl ByteCode {
    /// Seven decades of levels, each with twice as many as the one below it, 0 and 1; of both signs, or
    /// twice as many of the positive one.
    pub fn dynamic(has_signs: bool) -> Self {
        let mut levels = vec![0.0f32, 1.0];
        let base = if has_signs { 1 } else { 2 };
        for decade in 0..7 {
            let count = (base << decade) + 1;
            let size = 10f64.powi(decade - 6) as f32;
            for pair in linspace(0.1, 1.0, count).windows(2) {
                let level = size * ((pair[0] + pair[1]) / 2.0);
                levels.push(level);
                if has_signs {
                    levels.push(-level);
                }
            }
        }
        levels.sort_by(f32::total_cmp);
        let levels = levels.try_into().expect("2 · (2^7 − 1) levels, 0 and 1 are 256");
        Self { nearest: nearest_codes(&levels), levels }
    }
}

/// From both ends to the middle with one rounding per value, as torch computes it.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    let value = |i: usize| {
        if i < count / 2 {
            step.mul_add(i as f32, start)
        } else {
            (-step).mul_add((count - 1 - i) as f32, end)
        }
    };
    (0..count).map(value).collect()
}

fn nearest_codes(levels: &[f32; 256]) -> Vec<u8> {
    let mut code = 0;
    let nearest = (0..65536).map(|step| {
        let value = f64::from(step) * 2.0 / 65535.0 - 1.0;
        while code < 255 && value > (f64::from(levels[code]) + f64::from(levels[code + 1])) / 2.0 {
            code += 1;
        }
        code as u8
    });
    nearest.collect()
}
