//! Faulty files → the job's error, in OpenAI's codes and words. The message shows the first few
//! faults and counts the rest; the last event's data lists them.

use dataset::{Checked, FileRole, Problem, code};
use serde_json::{Value, json};
use store::jobs::JobError;
use store::queue::Validation;

use super::notes::field;
use crate::remedy::remedy;

/// Faults that the message spells out.
const SHOWN: usize = 5;

/// None when neither file has a fault.
pub(crate) fn of_files(training: &Checked, validation: Option<&Checked>) -> Option<Validation> {
    let validation = validation.filter(|checked| checked.total_problems > 0);
    let faulty: Vec<(FileRole, &Checked)> = [(FileRole::Training, training)]
        .into_iter()
        .filter(|(_, checked)| checked.total_problems > 0)
        .chain(validation.map(|checked| (FileRole::Validation, checked)))
        .collect();
    let &(role, first) = faulty.first()?;
    let problems: Vec<Value> =
        faulty.iter().flat_map(|(role, checked)| listed(*role, checked)).collect();
    let total: u64 = faulty.iter().map(|(_, checked)| checked.total_problems).sum();
    let message = faulty.iter().map(|(role, checked)| message(*role, checked));
    let error = JobError {
        code: error_code(role, first).to_owned(),
        param: Some(field(role).to_owned()),
        message: message.collect::<Vec<_>>().join(" "),
    };
    let data = json!({ "problems": problems, "total_problems": total });
    Some(Validation::Failed { error, data })
}

/// A failure that is no fault of the files'.
pub(crate) fn of_job(code: &str, param: Option<&str>, message: String) -> Validation {
    let error = JobError { code: code.to_owned(), param: param.map(str::to_owned), message };
    Validation::Failed { error, data: json!({}) }
}

fn error_code(role: FileRole, checked: &Checked) -> &'static str {
    match role {
        FileRole::Validation => "invalid_validation_file",
        FileRole::Training if is_too_short(checked) => "invalid_n_examples",
        FileRole::Training if is_format_error(checked) => "invalid_file_format",
        FileRole::Training => "invalid_training_file",
    }
}

/// Nothing is wrong but the number of examples.
fn is_too_short(checked: &Checked) -> bool {
    checked.problems.iter().all(|problem| problem.code == code::INVALID_N_EXAMPLES)
}

/// Rows with something in them that must not be there.
fn is_format_error(checked: &Checked) -> bool {
    const CODES: [&str; 3] =
        [code::UNRECOGNIZED_KEY, code::MESSAGE_UNRECOGNIZED_KEY, code::SPECIAL_TOKEN];
    checked.problems.iter().all(|problem| CODES.contains(&problem.code))
}

fn message(role: FileRole, checked: &Checked) -> String {
    let shown: Vec<&str> =
        checked.problems.iter().take(SHOWN).map(|problem| problem.message.as_str()).collect();
    let mut text = shown.join("; ");
    let more = checked.total_problems - shown.len() as u64;
    if more > 0 {
        text.push_str(&format!("; and {more} more (the job's last event lists them)"));
    }
    if is_too_short(checked) {
        return text;
    }
    match (role, is_format_error(checked)) {
        (FileRole::Training, true) => format!(
            "The job failed due to a file format error in the training file. Invalid file \
             format. {text}"
        ),
        (FileRole::Training, false) => {
            format!("The job failed due to an invalid training file. Invalid file format. {text}")
        }
        (FileRole::Validation, _) => {
            format!("The job failed due to an invalid validation file. Invalid file format. {text}")
        }
    }
}

fn listed(role: FileRole, checked: &Checked) -> Vec<Value> {
    let one = |Problem { code, line, path, message }: &Problem| {
        json!({
            "file": field(role), "code": code, "line": line, "path": path, "message": message,
            "remedy": remedy(code),
        })
    };
    checked.problems.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataset::Stats;

    fn checked(problems: &[(&'static str, &str)], total: u64) -> Checked {
        let problem = |(i, &(code, message)): (usize, &(&'static str, &str))| Problem {
            code,
            line: Some(i as u64 + 1),
            path: None,
            message: message.to_owned(),
        };
        Checked {
            problems: problems.iter().enumerate().map(problem).collect(),
            total_problems: total,
            format: dataset::Format::Chat,
            shape: dataset::Shape::Chat,
            container: dataset::ContainerKind::Lines,
            stats: Stats::default(),
            quality: None,
        }
    }

    fn error_of(training: &Checked, validation: Option<&Checked>) -> JobError {
        match of_files(training, validation) {
            Some(Validation::Failed { error, .. }) => error,
            _ => panic!("no failure"),
        }
    }

    #[test]
    fn good_files_are_no_failure() {
        let good = checked(&[], 0);
        assert!(of_files(&good, None).is_none());
        assert!(of_files(&good, Some(&good)).is_none());
    }

    #[test]
    fn codes_and_words_are_openais() {
        let few = "Training file has 3 example(s), but must have at least 10 examples";
        let error = error_of(&checked(&[(code::INVALID_N_EXAMPLES, few)], 1), None);
        assert_eq!((error.code.as_str(), error.message.as_str()), ("invalid_n_examples", few));

        let extra = "Example 1 contains an extra \"weight\".";
        let error = error_of(&checked(&[(code::UNRECOGNIZED_KEY, extra)], 1), None);
        assert_eq!(error.code, "invalid_file_format");
        assert_eq!(
            error.message,
            format!(
                "The job failed due to a file format error in the training file. Invalid file \
                 format. {extra}"
            )
        );

        let both =
            checked(&[(code::INVALID_JSON, "Example 1 a"), (code::INVALID_N_EXAMPLES, few)], 2);
        assert_eq!(error_of(&both, None).code, "invalid_training_file");

        let bad = checked(&[(code::INVALID_JSON, "Example 1 x")], 1);
        let error = error_of(&checked(&[], 0), Some(&bad));
        assert_eq!(error.code, "invalid_validation_file");
        assert_eq!(error.param.as_deref(), Some("validation_file"));
    }

    #[test]
    fn the_message_shows_a_few_and_counts_the_rest() {
        let many: Vec<_> = (0..8).map(|_| (code::INVALID_JSON, "Example 1 x")).collect();
        let message = error_of(&checked(&many, 5000), None).message;
        assert_eq!(message.matches("Example").count(), 5);
        assert!(message.contains("and 4995 more"), "{message}");
        let Some(Validation::Failed { data, .. }) = of_files(&checked(&many, 5000), None) else {
            panic!("no failure")
        };
        assert_eq!(data["problems"].as_array().unwrap().len(), 8);
        assert_eq!(data["total_problems"], 5000);
    }
}
