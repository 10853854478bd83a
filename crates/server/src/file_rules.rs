//! What a file may be, however it comes: its purpose, name, size and life.

use std::time::Duration;

use crate::config::Config;
use crate::error::{ApiError, ApiResult};
use crate::inference::prompt::integer;

const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];
/// What rows may be held in, by the ends of names. OpenAI takes the first alone.
const CONTAINERS: [&str; 4] = [".jsonl", ".json", ".csv", ".tsv"];
const MAX_FILENAME_BYTES: usize = 1024;
const SHORTEST_LIFE_SECONDS: i64 = 3600;
const LONGEST_LIFE_SECONDS: i64 = 30 * 24 * 3600;

pub(crate) fn check_purpose(purpose: &str, filename: &str) -> ApiResult<()> {
    if !PURPOSES.contains(&purpose) {
        return Err(ApiError::unsupported_value("purpose", purpose, &PURPOSES));
    }
    if filename.len() > MAX_FILENAME_BYTES {
        return Err(ApiError::too_long("filename", MAX_FILENAME_BYTES, filename.len()));
    }
    let (api, ends) = match purpose {
        "fine-tune" => ("Fine-Tuning API", &CONTAINERS[..]),
        "batch" => ("Batch API", &CONTAINERS[..1]),
        _ => return Ok(()),
    };
    let filename = filename.to_ascii_lowercase();
    if ends.iter().any(|end| filename.ends_with(end)) {
        return Ok(());
    }
    let ends = ends.join(", ");
    Err(ApiError::BadRequest(format!("Invalid file format for {api}. Must be {ends}")))
}

/// The largest file of a purpose; `most` is the limit of the way on which it comes.
pub(crate) fn largest(config: &Config, purpose: &str, most: u64) -> u64 {
    if purpose == "batch" { most.min(config.max_batch_file_bytes.as_u64()) } else { most }
}

/// How long a file lives; none: until it is deleted. `field` names the two fields as the request
/// writes them.
pub(crate) fn life(
    purpose: &str,
    anchor: Option<&str>,
    seconds: Option<i64>,
    field: impl Fn(&str) -> String,
) -> ApiResult<Option<Duration>> {
    match (anchor, seconds) {
        // As OpenAI does it: everything else stays.
        (None, None) if purpose == "batch" => {
            Ok(Some(Duration::from_secs(LONGEST_LIFE_SECONDS.unsigned_abs())))
        }
        (None, None) => Ok(None),
        (Some("created_at"), Some(seconds)) => {
            let param = field("seconds");
            let seconds = integer(&param, seconds, SHORTEST_LIFE_SECONDS, LONGEST_LIFE_SECONDS)?;
            Ok(Some(Duration::from_secs(seconds.unsigned_abs())))
        }
        (Some("created_at"), None) => Err(ApiError::missing(field("seconds"))),
        (Some(other), _) => {
            Err(ApiError::unsupported_value(field("anchor"), other, &["created_at"]))
        }
        (None, Some(_)) => Err(ApiError::missing(field("anchor"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_training_file_must_say_what_holds_its_rows() {
        for name in ["data.JSONL", "data.json", "data.csv", "data.tsv"] {
            assert!(check_purpose("fine-tune", name).is_ok(), "{name}");
        }
        let refused = |purpose, name| check_purpose(purpose, name).unwrap_err().to_string();
        assert_eq!(
            refused("fine-tune", "data.txt"),
            "Invalid file format for Fine-Tuning API. Must be .jsonl, .json, .csv, .tsv"
        );
        assert_eq!(refused("batch", "x.csv"), "Invalid file format for Batch API. Must be .jsonl");
        assert!(check_purpose("user_data", "x.csv").is_ok());
        assert!(check_purpose("training", "x.jsonl").is_err());
    }

    #[test]
    fn an_expiry_needs_both_fields_and_its_range() {
        let life = |purpose: &str, anchor, seconds| life(purpose, anchor, seconds, str::to_owned);
        let hour = life("fine-tune", Some("created_at"), Some(3600)).unwrap();
        assert_eq!(hour, Some(Duration::from_secs(3600)));
        assert_eq!(life("fine-tune", None, None).unwrap(), None);
        let month = Duration::from_secs(30 * 24 * 3600);
        assert_eq!(life("batch", None, None).unwrap(), Some(month));
        assert_eq!(life("evals", Some("created_at"), Some(2_592_000)).unwrap(), Some(month));
        for (anchor, seconds) in [
            (Some("created_at"), None),
            (None, Some(3600)),
            (Some("updated_at"), Some(3600)),
            (Some("created_at"), Some(3599)),
            (Some("created_at"), Some(2_592_001)),
        ] {
            assert!(life("fine-tune", anchor, seconds).is_err(), "{anchor:?} {seconds:?}");
        }
    }
}
