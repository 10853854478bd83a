//! The tables of a job's step metrics.

use domain::report::StepMetrics;

/// OpenAI's columns; five decimals; an empty cell where nothing was measured.
pub(crate) fn step_metrics(steps: &[StepMetrics]) -> String {
    let mut csv =
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n".to_owned();
    for metrics in steps {
        let cells = [
            metrics.step.to_string(),
            cell(Some(metrics.train_loss)),
            cell(Some(metrics.train_mean_token_accuracy)),
            cell(metrics.valid_loss),
            cell(metrics.valid_mean_token_accuracy),
        ];
        csv.push_str(&cells.join(","));
        csv.push('\n');
    }
    csv
}

pub(crate) fn all_metrics(steps: &[StepMetrics]) -> String {
    let mut csv = "step,epoch,train_loss,train_mean_token_accuracy,valid_loss,\
                   valid_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy,\
                   learning_rate,grad_norm,tokens,target_tokens,trained_tokens,tokens_per_second\n"
        .to_owned();
    for metrics in steps {
        let cells = [
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
        ];
        csv.push_str(&cells.join(","));
        csv.push('\n');
    }
    csv
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
}
