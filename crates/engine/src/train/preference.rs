//! Losses over a pair of answers, in closed form: from the answers' log-probabilities, with and without
//! the adapter, to the loss and its derivative. Plain numbers; who computes the log-probabilities is
//! [`objective`](super::objective)'s part.
//!
//! Notation: w is the preferred answer, l the other one; lp the sum of an answer's log-probabilities, n
//! its tokens, ref the same sum without the adapter, σ the logistic function, ε the label smoothing.
//!
//! | loss | definition |
//! |---|---|
//! | `sigmoid` | −(1−ε)·ln σ(z) − ε·ln σ(−z), z = β·((lp_w − ref_w) − (lp_l − ref_l)) |
//! | `hinge` | max(0, 1 − z) |
//! | `ipo` | ((lp_w − ref_w)/n_w − (lp_l − ref_l)/n_l − 1/(2β))² |
//! | `orpo` | −a − β·ln σ(ln odds(a) − ln odds(b)), a = lp_w/n_w, b = lp_l/n_l, odds(x) = eˣ/(1 − eˣ) |
//! | `simpo` | −(1−ε)·ln σ(u) − ε·ln σ(−u), u = β·(a − b) − γ |

use domain::preference::{LossType, Preference};
use model::TargetLog;

/// What the model says about one answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Answer {
    /// Σ log p over its tokens, nats.
    pub log_p: f64,
    pub tokens: u64,
    /// The same sum without the adapter; 0 for losses that have no reference.
    pub reference: f64,
}

impl Answer {
    /// From the log-probabilities of its tokens; without a reference.
    pub fn of(logs: &[TargetLog]) -> Self {
        let log_p = logs.iter().map(|log| log.log_p).sum();
        Self { log_p, tokens: logs.len() as u64, reference: 0.0 }
    }

    fn gain(&self) -> f64 {
        self.log_p - self.reference
    }

    fn per_token(&self, sum: f64) -> f64 {
        sum / self.tokens as f64
    }
}

/// The loss of one pair; of arrays, the preferred answer's number is first.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairLoss {
    pub loss: f64,
    /// −∂loss/∂log p of every token of an answer.
    pub coefficients: [f64; 2],
    /// What the loss counts in an answer's favour.
    pub rewards: [f64; 2],
}

pub fn pair_loss(options: &Preference, [chosen, rejected]: [Answer; 2]) -> PairLoss {
    let beta = options.beta;
    let gains = [chosen.gain(), rejected.gain()];
    let rewards = gains.map(|gain| beta * gain);
    // Steepness of the loss in the difference of both answers, for the losses that know no more.
    let symmetric = |loss: f64, slope: f64, per: [f64; 2], rewards| PairLoss {
        loss,
        coefficients: [-slope / per[0], slope / per[1]],
        rewards,
    };
    let per_token = [chosen.tokens as f64, rejected.tokens as f64];
    match options.loss_type {
        LossType::Sigmoid => {
            let (loss, slope) = smoothed_log_sigmoid(rewards[0] - rewards[1], options);
            symmetric(loss, slope * beta, [1.0, 1.0], rewards)
        }
        LossType::Hinge => {
            let room = 1.0 - (rewards[0] - rewards[1]);
            let slope = if room > 0.0 { -beta } else { 0.0 };
            // Not `max`, which would hide a loss that is no number.
            let loss = if room <= 0.0 { 0.0 } else { room };
            symmetric(loss, slope, [1.0, 1.0], rewards)
        }
        LossType::Ipo => {
            let margin = chosen.per_token(gains[0]) - rejected.per_token(gains[1]);
            let off = margin - 1.0 / (2.0 * beta);
            symmetric(off * off, 2.0 * off, per_token, rewards)
        }
        LossType::Simpo => {
            let means = [chosen.per_token(chosen.log_p), rejected.per_token(rejected.log_p)];
            let rewards = means.map(|mean| beta * mean);
            let u = rewards[0] - rewards[1] - options.gamma;
            let (loss, slope) = smoothed_log_sigmoid(u, options);
            symmetric(loss, slope * beta, per_token, rewards)
        }
        LossType::Orpo => odds_ratio(beta, chosen, rejected),
        LossType::Kto | LossType::Reward => {
            unreachable!("the objectives of these losses are others")
        }
    }
}

/// A reward model's loss of one pair, −ln σ(r_w − r_l − γ) + c·(r_w + r_l)², from the scores r: the rewards
/// themselves. The coefficients are −∂loss/∂r.
pub fn reward_loss(options: &Preference, [chosen, rejected]: [f64; 2]) -> PairLoss {
    let (z, sum) = (chosen - rejected - options.gamma, chosen + rejected);
    let pull = 2.0 * options.center_coefficient * sum;
    PairLoss {
        loss: softplus(-z) + options.center_coefficient * sum * sum,
        coefficients: [sigmoid(-z) - pull, -sigmoid(-z) - pull],
        rewards: [chosen, rejected],
    }
}

/// KTO's loss of one answer, good (`desirable`) or bad: λ·(1 − σ(±β·((lp − ref) − z₀))).
/// `baseline` is z₀: what the adapter added, on the average, to answers that belong to other inputs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LabelLoss {
    pub loss: f64,
    /// −∂loss/∂log p of every token of the answer.
    pub coefficient: f64,
    pub reward: f64,
    /// Whether the answer is on the right side of z₀.
    pub is_right: bool,
}

pub fn label_loss(
    options: &Preference,
    answer: Answer,
    desirable: bool,
    baseline: f64,
) -> LabelLoss {
    let (sign, weight) = if desirable {
        (1.0, options.desirable_weight)
    } else {
        (-1.0, options.undesirable_weight)
    };
    let u = sign * options.beta * (answer.gain() - baseline);
    LabelLoss {
        loss: weight * sigmoid(-u),
        coefficient: weight * sign * options.beta * sigmoid(u) * sigmoid(-u),
        reward: options.beta * answer.gain(),
        is_right: u > 0.0,
    }
}

fn odds_ratio(beta: f64, chosen: Answer, rejected: Answer) -> PairLoss {
    // An answer that is certain has infinite odds; this is as near as its derivative can be computed.
    let mean = |answer: Answer| {
        let mean = answer.per_token(answer.log_p);
        // Not `min`, which would hide a mean that is no number.
        if mean > -1e-9 { -1e-9 } else { mean }
    };
    let (a, b) = (mean(chosen), mean(rejected));
    let log_odds = |x: f64| x - (-x.exp_m1()).ln();
    let difference = log_odds(a) - log_odds(b);
    let doubt = sigmoid(-difference);
    // The derivative of ln odds(x) is 1 / (1 − eˣ).
    let steep = |x: f64| beta * doubt / -x.exp_m1();
    PairLoss {
        loss: -a + beta * softplus(-difference),
        coefficients: [(1.0 + steep(a)) / chosen.tokens as f64, -steep(b) / rejected.tokens as f64],
        rewards: [beta * a, beta * b],
    }
}

/// −(1−ε)·ln σ(z) − ε·ln σ(−z), and its derivative by z.
fn smoothed_log_sigmoid(z: f64, options: &Preference) -> (f64, f64) {
    let e = options.label_smoothing;
    let loss = (1.0 - e) * softplus(-z) + e * softplus(z);
    (loss, e * sigmoid(z) - (1.0 - e) * sigmoid(-z))
}

fn sigmoid(z: f64) -> f64 {
    // Neither form overflows on its side.
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

/// ln(1 + eᶻ) = −ln σ(−z)
fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use domain::preference::PreferenceRequest;
    use tch::{Kind, Tensor};

    use super::*;

    const PAIRED: [LossType; 5] =
        [LossType::Sigmoid, LossType::Ipo, LossType::Hinge, LossType::Orpo, LossType::Simpo];

    #[test]
    fn ktos_closed_form_equals_autograd() {
        let mut options = options(LossType::Kto, 0.0);
        (options.desirable_weight, options.undesirable_weight) = (1.5, 0.75);
        for answer in pairs().into_iter().flatten() {
            for (desirable, baseline) in [(true, 0.0), (true, 2.5), (false, 0.25), (false, 7.0)] {
                let lp = Tensor::from_slice(&[answer.log_p]).set_requires_grad(true);
                let gain = &lp - answer.reference;
                let loss: Tensor = if desirable {
                    (-((gain - baseline) * options.beta).sigmoid() + 1.0) * 1.5
                } else {
                    (-((-gain + baseline) * options.beta).sigmoid() + 1.0) * 0.75
                };
                loss.backward();
                let ours = label_loss(&options, answer, desirable, baseline);
                let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1e-3);
                assert!(close(ours.loss, loss.double_value(&[0])), "{ours:?}");
                assert!(close(ours.coefficient, -lp.grad().double_value(&[0])), "{ours:?}");
            }
        }
    }

    #[test]
    fn the_reward_models_closed_form_equals_autograd() {
        let mut options = options(LossType::Reward, 0.0);
        for (gamma, center) in [(0.0, 0.0), (0.5, 0.01), (0.0, 0.3)] {
            (options.gamma, options.center_coefficient) = (gamma, center);
            for scores in [[0.5, -0.25], [-3.0, 2.0], [40.0, -1.0], [0.0, 0.0]] {
                let [w, l] = scores.map(|r: f64| Tensor::from_slice(&[r]).set_requires_grad(true));
                let sum: Tensor = &w + &l;
                let loss = -(&w - &l - gamma).log_sigmoid() + sum.square() * center;
                loss.backward();
                let ours = reward_loss(&options, scores);
                let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1e-3);
                assert!(close(ours.loss, loss.double_value(&[0])), "{ours:?}");
                for (slope, leaf) in ours.coefficients.iter().zip([&w, &l]) {
                    assert!(close(*slope, -leaf.grad().double_value(&[0])), "{ours:?}");
                }
            }
        }
    }

    fn options(loss_type: LossType, label_smoothing: f64) -> Preference {
        let asked = PreferenceRequest { loss_type, ..Default::default() }.resolve();
        Preference { label_smoothing, ..asked }
    }

    fn pairs() -> Vec<[Answer; 2]> {
        let answer = |log_p, tokens, reference| Answer { log_p, tokens, reference };
        vec![
            [answer(-12.5, 7, -13.0), answer(-20.25, 11, -19.0)],
            [answer(-30.0, 9, -12.0), answer(-5.0, 6, -25.5)],
            [answer(-1e-3, 3, -2e-3), answer(-400.0, 90, -399.0)],
            [answer(-80.0, 40, -80.0), answer(-80.0, 40, -80.0)],
            [answer(-900.0, 40, -80.0), answer(-10.0, 40, -800.0)],
        ]
    }

    /// The definitions of the module's head, written down with tensors.
    fn by_autograd(o: &Preference, [w, l]: [Answer; 2]) -> (f64, [f64; 2]) {
        let leaf = |v: f64| Tensor::from_slice(&[v]).set_requires_grad(true);
        let (lp_w, lp_l) = (leaf(w.log_p), leaf(l.log_p));
        let (gain_w, gain_l) = (&lp_w - w.reference, &lp_l - l.reference);
        let (a, b) = (&lp_w / w.tokens as f64, &lp_l / l.tokens as f64);
        let smooth = |z: &Tensor| {
            let e = o.label_smoothing;
            -z.log_sigmoid() * (1.0 - e) - (-z).log_sigmoid() * e
        };
        let z = (&gain_w - &gain_l) * o.beta;
        let odds = |x: &Tensor| x - (-x.expm1()).log();
        let loss = match o.loss_type {
            LossType::Sigmoid => smooth(&z),
            LossType::Hinge => (-z + 1.0).relu(),
            LossType::Ipo => {
                let margin = gain_w / w.tokens as f64 - gain_l / l.tokens as f64;
                (margin - 1.0 / (2.0 * o.beta)).square()
            }
            LossType::Orpo => -&a - (odds(&a) - odds(&b)).log_sigmoid() * o.beta,
            LossType::Simpo => smooth(&((&a - &b) * o.beta - o.gamma)),
            LossType::Kto | LossType::Reward => {
                panic!("not a loss over log-probabilities of pairs")
            }
        };
        assert_eq!(loss.kind(), Kind::Double);
        loss.backward();
        let slope = |leaf: &Tensor| -leaf.grad().double_value(&[0]);
        (loss.double_value(&[0]), [slope(&lp_w), slope(&lp_l)])
    }

    #[test]
    fn closed_forms_equal_autograd() {
        for loss_type in PAIRED {
            let smoothings: &[f64] =
                if loss_type.takes_label_smoothing() { &[0.0, 0.1, 0.3] } else { &[0.0] };
            for &smoothing in smoothings {
                let options = options(loss_type, smoothing);
                for pair in pairs() {
                    let ours = pair_loss(&options, pair);
                    let (loss, slopes) = by_autograd(&options, pair);
                    let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1e-3);
                    assert!(close(ours.loss, loss), "{options:?} {pair:?}: {ours:?} {loss}");
                    for (ours, theirs) in ours.coefficients.iter().zip(slopes) {
                        // The derivative by an answer's sum is that by each of its tokens.
                        assert!(close(*ours, theirs), "{options:?} {pair:?}: {ours} {theirs}");
                    }
                }
            }
        }
    }

    #[test]
    fn swapped_answers_mirror_the_rewards() {
        for loss_type in PAIRED {
            let options = options(loss_type, 0.0);
            for [w, l] in pairs() {
                let (straight, swapped) =
                    (pair_loss(&options, [w, l]), pair_loss(&options, [l, w]));
                assert_eq!(straight.rewards, [swapped.rewards[1], swapped.rewards[0]]);
            }
        }
    }

    #[test]
    fn a_model_that_has_learned_nothing_has_the_loss_of_a_coin() {
        let [_, _, _, equal, _] = pairs()[..] else { panic!() };
        let dpo = pair_loss(&options(LossType::Sigmoid, 0.0), equal);
        assert!((dpo.loss - std::f64::consts::LN_2).abs() < 1e-15);
        assert!((dpo.coefficients[0] - 0.05).abs() < 1e-15);
        assert_eq!(dpo.rewards, [0.0, 0.0]);
    }

    #[test]
    fn numbers_that_are_none_stay_none() {
        let bad = Answer { log_p: f64::NAN, tokens: 3, reference: -1.0 };
        for loss_type in PAIRED {
            let pair = [bad, Answer { log_p: -1.0, tokens: 2, reference: -1.0 }];
            assert!(pair_loss(&options(loss_type, 0.0), pair).loss.is_nan(), "{loss_type:?}");
        }
    }
}
