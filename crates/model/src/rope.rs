//! Rotary frequencies of a spec.

use std::f64::consts::PI;

use crate::spec::{RopeScaling, RotarySpec};

/// The inverse frequencies of one head, `dim / 2` of them, in radians per position: one set, or one for short
/// and one for long texts.
pub(crate) fn frequency_sets(rotary: &RotarySpec) -> Vec<Vec<f64>> {
    let set = |scaled: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
        (0..rotary.dim / 2)
            // f32 as in transformers, whose frequencies are rounded before they meet positions.
            .map(|i| (i, rotary.theta.powf(-2.0 * i as f64 / rotary.dim as f64) as f32 as f64))
            .map(|(i, frequency)| scaled(i, frequency))
            .collect()
    };
    match &rotary.scaling {
        RopeScaling::None => vec![set(&|_, frequency| frequency)],
        RopeScaling::Linear { factor } => vec![set(&|_, frequency| frequency / factor)],
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => vec![set(&|_, frequency| {
            let wavelength = 2.0 * PI / frequency;
            if wavelength > original / low_freq_factor {
                frequency / factor
            } else if wavelength < original / high_freq_factor {
                frequency
            } else {
                let smooth = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        })],
        RopeScaling::Yarn { factor, .. } => {
            let stretched = yarn_ramp(rotary);
            vec![set(&|i, frequency| {
                frequency / factor * stretched(i) + frequency * (1.0 - stretched(i))
            })]
        }
        RopeScaling::LongRope { short, long, .. } => {
            [short, long].map(|factors| set(&|i, frequency| frequency / factors[i])).to_vec()
        }
    }
}

/// How far the frequency of a number is stretched: from 0 for the fast ones to 1 for the slow ones.
fn yarn_ramp(rotary: &RotarySpec) -> impl Fn(usize) -> f64 {
    let RopeScaling::Yarn {
        beta_fast,
        beta_slow,
        original_max_position_embeddings: original,
        truncate,
        ..
    } = rotary.scaling
    else {
        unreachable!("called for this scaling only");
    };
    let dim = rotary.dim as f64;
    // The number whose frequency turns so many times in the original context.
    let number =
        |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * rotary.theta.ln());
    let (mut low, mut high) = (number(beta_fast), number(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    let width = if low == high { 0.001 } else { high - low };
    move |i| ((i as f64 - low) / width).clamp(0.0, 1.0)
}
