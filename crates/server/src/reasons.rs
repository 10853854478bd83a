//! Why each hyperparameter of a job has its value: told where the value is chosen, so that they agree.

use std::collections::BTreeMap;

use domain::TrainingOptions;
use domain::hyperparameters::Tuning;

const REQUEST: &str = "the request says so";
pub(crate) const OPERATOR: &str =
    "the operator's default for jobs that do not say ([training] in the configuration)";

/// The reason of each value, by the value's name; of a part of an object as `lora.rank`.
pub(crate) type Reasons = BTreeMap<&'static str, String>;

/// Chooses values and keeps the reasons.
pub(crate) struct Chooser<'o> {
    pub job: &'o TrainingOptions,
    pub operator: &'o TrainingOptions,
    pub reasons: Reasons,
}

impl<'o> Chooser<'o> {
    pub fn new(job: &'o TrainingOptions, operator: &'o TrainingOptions) -> Self {
        Self { job, operator, reasons: Reasons::new() }
    }

    pub fn because(&mut self, name: &'static str, reason: impl Into<String>) {
        self.reasons.insert(name, reason.into());
    }

    /// The request's value, else that of a rule, with its reason.
    pub fn wish<T>(
        &mut self,
        name: &'static str,
        wish: Option<T>,
        rule: impl FnOnce() -> (T, String),
    ) -> T {
        let (value, reason) = match wish {
            Some(value) => (value, REQUEST.to_owned()),
            None => {
                let (value, reason) = rule();
                (value, format!("auto: {reason}"))
            }
        };
        self.because(name, reason);
        value
    }

    /// The job's value, else the operator's, else the built-in one, with what is to be said for it.
    pub fn option<T>(
        &mut self,
        name: &'static str,
        get: impl Fn(&TrainingOptions) -> Option<T>,
        built_in: T,
        why: &str,
    ) -> T {
        let (value, reason) = match (get(self.job), get(self.operator)) {
            (Some(value), _) => (value, REQUEST.to_owned()),
            (None, Some(value)) => (value, OPERATOR.to_owned()),
            (None, None) => (built_in, format!("built in: {why}")),
        };
        self.because(name, reason);
        value
    }

    /// Who has said something about a value that was chosen elsewhere.
    pub fn source<T>(&self, get: impl Fn(&TrainingOptions) -> Option<T>) -> Option<&'static str> {
        if get(self.job).is_some() {
            return Some(REQUEST);
        }
        get(self.operator).map(|_| OPERATOR)
    }
}

/// Of [`domain::hyperparameters::auto_epochs`].
pub(crate) fn of_epochs(n_examples: u64, epochs: u32) -> String {
    match epochs {
        4.. => format!(
            "{n_examples} examples are few, so each is seen {epochs} times: about 100 examples seen, at \
             most 25 times each"
        ),
        3 => format!("three times over {n_examples} examples is what most jobs of that size take"),
        _ => format!(
            "{n_examples} examples are many, so at most 25,000 are seen, or all of them once"
        ),
    }
}

/// Of [`domain::hyperparameters::auto_batch_size`].
pub(crate) fn of_batch_size(n_examples: u64, size: u32, is_kto: bool) -> String {
    let share = format!("0.2 % of {n_examples} examples");
    match size {
        _ if is_kto => {
            format!("{share}, and at least 8, because KTO measures its baseline on the batch")
        }
        1 => format!("every example is a step, because {n_examples} examples make few steps"),
        4 | 8 => {
            format!("{share}, and at least {size}, so that a step is not a single row's noise")
        }
        _ => share,
    }
}

/// Of the learning rate of a multiplier of 1 that no operator has set.
pub(crate) fn of_learning_rate(tuning: Tuning, hidden_size: u64) -> String {
    let lora =
        format!("5e-4 up to a width of 2,000 and less above it; this model has {hidden_size}");
    match tuning {
        Tuning::Lora => format!("the rate of LoRA: {lora}"),
        Tuning::Full => format!("a tenth of LoRA's rate, because every weight moves ({lora})"),
        Tuning::Prompt | Tuning::Prefix => {
            "the rate of virtual tokens, a hundred times that of matrices, because few rows move the \
             model little"
                .to_owned()
        }
    }
}
