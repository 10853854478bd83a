//! Rotary frequencies of a spec.

use crate::spec::{DecoderSpec, RopeScaling};

/// The inverse frequencies of one head, `head_dim / 2` of them, in radians per position.
pub(crate) fn inverse_frequencies(spec: &DecoderSpec) -> Vec<f64> {
    let dim = spec.head_dim as f64;
    // f32 as in transformers, whose frequencies are rounded before they meet positions.
    (0..spec.head_dim / 2)
        .map(|i| (1.0 / spec.rope_theta.powf(2.0 * i as f64 / dim)) as f32 as f64)
        .map(|frequency| scaled(frequency, spec.rope_scaling))
        .collect()
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength > original / low_freq_factor {
                frequency / factor
            } else if wavelength < original / high_freq_factor {
                frequency
            } else {
                let smooth = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}
