//! Choice of the next token.

use std::collections::HashMap;

/// How to choose, as the chat API names it.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// 0 takes the most probable token.
    pub temperature: f64,
    /// The smallest set of tokens with this much probability is kept; 1 keeps all.
    pub top_p: f64,
    pub seed: u64,
    /// Subtracted per earlier occurrence of a generated token.
    pub frequency_penalty: f64,
    /// Subtracted once for a token that was generated before.
    pub presence_penalty: f64,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

/// Draws tokens; the same seed and logits give the same tokens.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    state: u64,
    counts: HashMap<u32, u32>,
}

impl Sampler {
    pub fn new(options: SamplerOptions) -> Self {
        let state = options.seed;
        Self { options, state, counts: HashMap::new() }
    }

    /// The next token after these logits (one per token of the vocabulary): one of the `allowed` ones, a bit
    /// per token, if there is such a set. None when that is empty.
    pub fn sample(&mut self, logits: &[f32], allowed: Option<&[u64]>) -> Option<u32> {
        let adjusted;
        let logits = if allowed.is_none() && !self.adjusts() {
            logits
        } else {
            adjusted = self.adjust(logits, allowed);
            &adjusted
        };
        let token =
            if self.options.temperature <= 0.0 { argmax(logits) } else { self.draw(logits) };
        if logits[token as usize] == f32::NEG_INFINITY {
            return None;
        }
        *self.counts.entry(token).or_default() += 1;
        Some(token)
    }

    fn adjusts(&self) -> bool {
        let SamplerOptions { frequency_penalty, presence_penalty, logit_bias, .. } = &self.options;
        let penalises = *frequency_penalty != 0.0 || *presence_penalty != 0.0;
        !logit_bias.is_empty() || (penalises && !self.counts.is_empty())
    }

    fn adjust(&self, logits: &[f32], allowed: Option<&[u64]>) -> Vec<f32> {
        let mut logits = logits.to_vec();
        for (&token, &count) in &self.counts {
            let penalty =
                self.options.frequency_penalty * f64::from(count) + self.options.presence_penalty;
            logits[token as usize] -= penalty as f32;
        }
        for &(token, bias) in &self.options.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if let Some(allowed) = allowed {
            let words = allowed.iter().copied().chain(std::iter::repeat(0));
            for (logits, word) in logits.chunks_mut(64).zip(words) {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word & (1 << bit) == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        logits
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        if top == f64::NEG_INFINITY {
            return 0;
        }
        let weight = |x: f32| ((f64::from(x) - top) / self.options.temperature).exp();
        // Below e^-30 of the best token's probability nothing is ever drawn.
        let mut candidates: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(token, &x)| (token as u32, weight(x)))
            .filter(|(_, w)| *w > 1e-13)
            .collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = candidates.iter().map(|(_, w)| w).sum();
        let mut kept = 0.0;
        let wanted = self.options.top_p.clamp(0.0, 1.0) * total;
        let mut len = 0;
        while len < candidates.len() && (len == 0 || kept < wanted) {
            kept += candidates[len].1;
            len += 1;
        }
        let mut point = self.uniform() * kept;
        for (token, weight) in &candidates[..len] {
            point -= weight;
            if point < 0.0 {
                return *token;
            }
        }
        candidates[..len].last().map_or_else(|| argmax(logits), |(token, _)| *token)
    }

    /// SplitMix64, in [0, 1).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = token;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_p: f64, seed: u64) -> Sampler {
        let (frequency_penalty, presence_penalty) = (0.0, 0.0);
        let logit_bias = Vec::new();
        Sampler::new(SamplerOptions {
            temperature,
            top_p,
            seed,
            frequency_penalty,
            presence_penalty,
            logit_bias,
        })
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sampler(0.0, 1.0, 1).sample(&[0.5, 2.0, 2.0, -1.0], None), Some(1));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [1.0f32, 0.0, -1.0];
        let mut counts = [0u32; 3];
        let mut sampler = sampler(1.0, 1.0, 3);
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, None).unwrap() as usize] += 1;
        }
        let total: f32 = logits.iter().map(|x| x.exp()).sum();
        for (count, x) in counts.iter().zip(logits) {
            let (seen, expected) = (*count as f32 / 20_000.0, x.exp() / total);
            assert!((seen - expected).abs() < 0.02, "{seen} against {expected}");
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_sufficient_set() {
        let logits = [3.0f32, 2.9, 0.0, -1.0];
        let mut sampler = sampler(1.0, 0.5, 9);
        assert!((0..2_000).all(|_| sampler.sample(&logits, None) <= Some(1)));
    }

    #[test]
    fn the_seed_decides() {
        let logits = [0.0f32; 50];
        let run = |seed| -> Vec<u32> {
            let mut sampler = sampler(1.0, 1.0, seed);
            (0..20).map(|_| sampler.sample(&logits, None).unwrap()).collect()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn penalties_lower_what_was_said() {
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            frequency_penalty: 0.0,
            presence_penalty: 1.0,
            logit_bias: Vec::new(),
        });
        let logits = [1.0f32, 0.5];
        let two = [(); 2].map(|()| sampler.sample(&logits, None).unwrap());
        assert_eq!(two, [0, 1]);
    }

    #[test]
    fn bias_moves_a_token_up_or_out() {
        let biased = |logit_bias: Vec<(u32, f32)>, seed| {
            let options = SamplerOptions { logit_bias, ..sampler(1.0, 1.0, seed).options };
            Sampler::new(options).sample(&[1.0, 1.0, 1.0], None)
        };
        assert!((0..200).all(|seed| biased(vec![(2, 100.0), (9, 5.0)], seed) == Some(2)));
        assert!((0..200).all(|seed| biased(vec![(2, -100.0)], seed) != Some(2)));
    }

    #[test]
    fn only_allowed_tokens_are_drawn_in_their_own_proportions() {
        let logits: Vec<f32> = (0..70).map(|i| i as f32 / 35.0).collect();
        let allowed = [1 << 3 | 1 << 40, 1 << 5];
        let (mut sampler, mut counts) = (sampler(1.0, 1.0, 4), [0u32; 70]);
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, Some(&allowed)).unwrap() as usize] += 1;
        }
        let total: f32 = [3, 40, 69].map(|i| logits[i].exp()).iter().sum();
        for token in [3, 40, 69] {
            let expected = logits[token].exp() / total;
            assert!((counts[token] as f32 / 20_000.0 - expected).abs() < 0.02, "{counts:?}");
        }
        assert_eq!(counts.iter().sum::<u32>(), counts[3] + counts[40] + counts[69]);
        assert_eq!(sampler.sample(&logits, Some(&[])), None);
    }
}
