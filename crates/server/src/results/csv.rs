//! The tables of a job's step metrics.

use domain::report::{RewardMetrics, StepMetrics};

/// A further column: its name, and its value in a step.
type Column = (&'static str, fn(&RewardMetrics) -> Option<f64>);

/// What jobs of the method `dpo` measure beside the rest.
const REWARDS: [Column; 8] = [
    ("train_reward_accuracy", |r| r.train_reward_accuracy),
    ("train_reward_margin", |r| r.train_reward_margin),
    ("valid_reward_accuracy", |r| r.valid_reward_accuracy),
    ("valid_reward_margin", |r| r.valid_reward_margin),
    ("train_chosen_reward", |r| r.train_chosen_reward),
    ("train_rejected_reward", |r| r.train_rejected_reward),
    ("full_valid_reward_accuracy", |r| r.full_valid_reward_accuracy),
    ("full_valid_reward_margin", |r| r.full_valid_reward_margin),
];
/// So many of them stand in the small table too.
const SHORT_REWARDS: usize = 4;

/// The columns of rewards, of a job that measured any.
fn reward_columns(steps: &[StepMetrics]) -> &'static [Column] {
    let measured = steps.iter().any(|metrics| *metrics.rewards != RewardMetrics::default());
    if measured { &REWARDS } else { &[] }
}

/// A table: fixed columns, then those of rewards.
fn table<const N: usize>(
    header: &str,
    steps: &[StepMetrics],
    rewards: &[Column],
    cells: impl Fn(&StepMetrics) -> [String; N],
    reward: fn(Option<f64>) -> String,
) -> String {
    let names = rewards.iter().map(|(name, _)| format!(",{name}"));
    let mut csv = header.to_owned() + &names.collect::<String>() + "\n";
    for metrics in steps {
        let rewards = rewards.iter().map(|(_, of)| reward(of(&metrics.rewards)));
        let cells: Vec<String> = cells(metrics).into_iter().chain(rewards).collect();
        csv.push_str(&cells.join(","));
        csv.push('\n');
    }
    csv
}

/// OpenAI's columns; five decimals; an empty cell where nothing was measured. Jobs of the method `dpo` have
/// columns of rewards behind them.
pub(crate) fn step_metrics(steps: &[StepMetrics]) -> String {
    let header = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy";
    let rewards = reward_columns(steps);
    let cells = |metrics: &StepMetrics| {
        [
            metrics.step.to_string(),
            cell(Some(metrics.train_loss)),
            cell(Some(metrics.train_mean_token_accuracy)),
            cell(metrics.valid_loss),
            cell(metrics.valid_mean_token_accuracy),
        ]
    };
    table(header, steps, &rewards[..SHORT_REWARDS.min(rewards.len())], cells, cell)
}

pub(crate) fn all_metrics(steps: &[StepMetrics]) -> String {
    let header = "step,epoch,train_loss,train_mean_token_accuracy,valid_loss,\
                  valid_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy,\
                  learning_rate,grad_norm,tokens,target_tokens,trained_tokens,tokens_per_second";
    let cells = |metrics: &StepMetrics| {
        [
            metrics.step.to_string(),
            number(Some(metrics.epoch)),
            number(Some(metrics.train_loss)),
            number(Some(metrics.train_mean_token_accuracy)),
            number(metrics.valid_loss),
            number(metrics.valid_mean_token_accuracy),
            number(metrics.full_valid_loss),
            number(metrics.full_valid_mean_token_accuracy),
            number(Some(metrics.learning_rate)),
            number(Some(metrics.grad_norm)),
            metrics.tokens.to_string(),
            metrics.target_tokens.to_string(),
            metrics.trained_tokens.to_string(),
            number(Some(metrics.tokens_per_second)),
        ]
    };
    table(header, steps, reward_columns(steps), cells, number)
}

/// At most five decimals, without trailing zeros, as OpenAI's files have them.
fn cell(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return String::new() };
    let text = format!("{value:.5}");
    let text = text.trim_end_matches('0');
    if text.ends_with('.') { format!("{text}0") } else { text.to_owned() }
}

/// Full precision.
fn number(value: Option<f64>) -> String {
    // A number that is none would spoil the column for whoever reads it.
    value.filter(|value| value.is_finite()).map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_rounded_and_empty_where_nothing_was_measured() {
        let steps = [
            StepMetrics {
                step: 1,
                train_loss: 3.632_649_9,
                train_mean_token_accuracy: 0.5,
                ..Default::default()
            },
            StepMetrics {
                step: 2,
                train_loss: 3.0,
                train_mean_token_accuracy: 1.0,
                valid_loss: Some(0.000_004),
                valid_mean_token_accuracy: Some(0.25),
                ..Default::default()
            },
        ];
        assert_eq!(
            step_metrics(&steps),
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n\
             1,3.63265,0.5,,\n2,3.0,1.0,0.0,0.25\n"
        );
        let all = all_metrics(&steps);
        let widths: Vec<usize> = all.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(widths, [14, 14, 14]);
    }

    #[test]
    fn rewards_have_columns_where_they_were_measured() {
        let rewards = RewardMetrics {
            train_reward_accuracy: Some(0.75),
            train_reward_margin: Some(-0.123_456),
            ..Default::default()
        };
        let rewards = Box::new(rewards);
        let step = StepMetrics { step: 1, train_loss: 0.5, rewards, ..Default::default() };
        assert_eq!(
            step_metrics(std::slice::from_ref(&step)),
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,\
             train_reward_accuracy,train_reward_margin,valid_reward_accuracy,valid_reward_margin\n\
             1,0.5,0.0,,,0.75,-0.12346,,\n"
        );
        let all = all_metrics(&[step]);
        let widths: Vec<usize> = all.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(widths, [22, 22]);
    }
}
