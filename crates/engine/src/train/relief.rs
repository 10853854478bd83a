//! What a run does when memory runs out: the same work with less of it. Results do not depend on it.

use domain::hyperparameters::GradientCheckpointing;

use super::evaluate::Evaluation;
use super::{Happened, Phase, Run, warning};

/// What has been given up so far, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relief {
    Nothing,
    Checkpointing,
    HalfTheTokens,
}

impl Run {
    /// Memory ran out in a turn: takes the step or evaluation in hand again, first with every layer
    /// computed again in the backward pass, the next time with half the tokens per micro-batch.
    /// None when nothing more can help.
    pub fn relieve(&mut self) -> Option<Happened> {
        let checkpointing = self.training.hyperparameters.gradient_checkpointing;
        let is_stepping = matches!(self.phase, Phase::Stepping { .. });
        let before = self.training.micro_batch_tokens;
        let next = match self.relief {
            Relief::Nothing if is_stepping && checkpointing != GradientCheckpointing::Full => {
                Relief::Checkpointing
            }
            Relief::Nothing | Relief::Checkpointing if before >= 2 => Relief::HalfTheTokens,
            _ => return None,
        };
        match &mut self.phase {
            Phase::Stepping { .. } => {
                self.training.abandon_step();
                self.phase = Phase::Between;
            }
            Phase::Evaluating { due, .. } => {
                due.iter_mut()
                    .for_each(|evaluation| *evaluation = Evaluation::new(evaluation.extent()));
            }
            Phase::Between | Phase::Updating => return None,
        }
        self.relief = next;
        Some(warning(if next == Relief::Checkpointing {
            self.training.hyperparameters.gradient_checkpointing = GradientCheckpointing::Full;
            format!(
                "Memory ran out with micro_batch_tokens {before}; going on with \
                 gradient_checkpointing full."
            )
        } else {
            self.training.micro_batch_tokens = before / 2;
            format!(
                "Memory ran out with micro_batch_tokens {before}; going on with {}.",
                before / 2
            )
        }))
    }
}
