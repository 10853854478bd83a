//! The best evaluation of a run, when to stop waiting for a better one, and the adapter that it measured.
//!
//! An evaluation here is one of the whole validation file. The adapter's values are kept only when early
//! stopping is asked for; they travel with every checkpoint, so that a resumed run ends with the same.

use std::collections::BTreeMap;
use std::path::Path;

use domain::hyperparameters::EarlyStopping;
use domain::report::{Level, RunReport, StepMetrics};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};
use weights::{Dtype, FileError, TensorFile, write_safetensors};

use super::{Happened, Run};

/// The file of the best values in a checkpoint folder.
pub const BEST_FILE: &str = "best_adapter.safetensors";

/// The best full validation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub full_valid_loss: f64,
    /// Evaluations since then, none of them better.
    #[serde(default)]
    pub evaluations_since: u32,
}

impl Best {
    /// Enters an evaluation; true when it is the best so far.
    pub fn enter(
        best: &mut Option<Self>,
        step: u64,
        loss: f64,
        rule: Option<EarlyStopping>,
    ) -> bool {
        let min_delta = rule.map_or(0.0, |rule| rule.min_delta);
        match best {
            Some(best) if loss >= best.full_valid_loss - min_delta => {
                best.evaluations_since += 1;
                false
            }
            _ => {
                *best = Some(Self { step, full_valid_loss: loss, evaluations_since: 0 });
                true
            }
        }
    }

    /// Whether the rule's patience is at its end.
    pub fn is_stale(best: Option<Self>, rule: Option<EarlyStopping>) -> bool {
        let pair = best.zip(rule);
        pair.is_some_and(|(best, rule)| best.evaluations_since >= rule.patience)
    }
}

impl Run {
    /// Enters an evaluation that a step's metrics hold, if they hold one.
    pub(super) fn note_best(&mut self, metrics: &StepMetrics) {
        let rule = self.training.hyperparameters.early_stopping;
        if let Some(loss) = metrics.full_valid_loss
            && Best::enter(&mut self.state.best, metrics.step, loss, rule)
            && rule.is_some()
        {
            self.best_values = Some(self.training.adapter.values().copy());
        }
    }

    /// Makes the best evaluation's adapter the result, and says so.
    pub(super) fn restore_best(&mut self, happened: &mut Vec<Happened>) {
        let (Some(best), Some(values)) = (self.state.best, &self.best_values) else { return };
        if best.step == self.training.step {
            return;
        }
        self.training.adapter.set_values(values);
        let why = match self.training.step < self.training.total_steps {
            true => format!("Training stopped early after step {}: ", self.training.step),
            false => String::new(),
        };
        let message = format!(
            "{why}the result is the adapter of step {}, whose validation loss of {:.4} was the \
             lowest.",
            best.step, best.full_valid_loss
        );
        happened.push(Happened::Report(RunReport::Message { level: Level::Info, message }));
    }
}

/// Writes an adapter's flat values.
///
/// # Errors
/// File errors.
pub fn save(folder: &Path, values: &Tensor) -> Result<(), FileError> {
    let values = Vec::<f32>::try_from(values.to_device(Device::Cpu))
        .expect("an adapter's values are a flat f32 tensor");
    let tensor = ("values", Dtype::F32, vec![values.len()], values.as_slice());
    write_safetensors(&folder.join(BEST_FILE), [tensor], &BTreeMap::new())
}

/// Reads what [`save`] wrote, if it did.
///
/// # Errors
/// File errors, and values that are not `len`.
pub fn load(folder: &Path, len: usize, device: Device) -> Result<Option<Tensor>, String> {
    let path = folder.join(BEST_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let values = TensorFile::open(&path)
        .and_then(|file| file.get_f32("values"))
        .map_err(|error| error.to_string())?;
    if values.len() != len {
        return Err(format!("{BEST_FILE} has {} values; the adapter has {len}", values.len()));
    }
    Ok(Some(Tensor::from_slice(&values).to_device(device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_evaluations_that_are_not_better_by_the_margin() {
        let rule = Some(EarlyStopping { patience: 2, min_delta: 0.1, evaluation_steps: 0 });
        let mut best = None;
        let mut seen = |step, loss| {
            let better = Best::enter(&mut best, step, loss, rule);
            (better, Best::is_stale(best, rule))
        };
        assert_eq!(seen(1, 2.0), (true, false));
        assert_eq!(seen(2, 1.95), (false, false), "not better by the margin");
        assert_eq!(seen(3, 1.8), (true, false), "better than the best, not than the last");
        assert_eq!(seen(4, 1.9), (false, false));
        assert_eq!(seen(5, 1.75), (false, true));
        assert!(!Best::is_stale(best, None), "without a rule nothing stops");
    }
}
