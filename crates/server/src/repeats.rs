//! Which requests are repetitions: those that carry the key of an earlier one, and those that say so.
//!
//! OpenAI's clients send no key, but they count their tries: a creation whose answer was lost comes again with
//! `x-stainless-retry-count` above 0 and the same body.

use axum::http::HeaderMap;
use serde_json::Value;
use sha2::{Digest, Sha256};
use store::idempotency::{Attempt, Created, Once};

use crate::error::{ApiError, ApiResult};

const KEY: &str = "idempotency-key";
const TRIES: &str = "x-stainless-retry-count";
const MAX_KEY_BYTES: usize = 255;

/// How the creation of an object is kept from happening twice. `request` is all that the client asks for: the
/// body, and what else decides about the object, such as ids in the path.
pub(crate) fn once(headers: &HeaderMap, created: Created, request: &Value) -> ApiResult<Once> {
    let mut request = request.clone();
    // The order of fields carries no meaning.
    request.sort_all_objects();
    let request_sha256: [u8; 32] = Sha256::digest(request.to_string()).into();
    let Some(key) = headers.get(KEY) else {
        let tries = headers.get(TRIES).and_then(|tries| tries.to_str().ok()?.parse::<u32>().ok());
        let attempt = if tries.unwrap_or(0) > 0 { Attempt::Again } else { Attempt::First };
        let digits: String = request_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        return Ok(Once { created, key: format!("body:{digits}"), request_sha256, attempt });
    };
    let key = String::from_utf8_lossy(key.as_bytes());
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        let message = format!("An Idempotency-Key has 1 to {MAX_KEY_BYTES} characters.");
        return Err(ApiError::BadRequest(message));
    }
    Ok(Once { created, key: format!("key:{key}"), request_sha256, attempt: Attempt::Keyed })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(headers: &[(&'static str, &str)], body: Value) -> ApiResult<Once> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        once(&map, Created::Job, &body)
    }

    #[test]
    fn a_try_after_the_first_one_is_a_repetition_of_the_same_body() {
        let first = of(&[(TRIES, "0")], json!({"a": 1, "b": 2})).unwrap();
        let again = of(&[(TRIES, "1")], json!({"b": 2, "a": 1})).unwrap();
        assert_eq!((first.attempt, again.attempt), (Attempt::First, Attempt::Again));
        assert_eq!(first.key, again.key);
        assert_eq!(of(&[], json!({})).unwrap().attempt, Attempt::First);
        assert_ne!(first.key, of(&[], json!({"a": 1, "b": 3})).unwrap().key);
    }

    #[test]
    fn a_key_of_the_client_s_own_wins() {
        let keyed = of(&[(KEY, "body:1"), (TRIES, "2")], json!({})).unwrap();
        assert_eq!((keyed.key.as_str(), keyed.attempt), ("key:body:1", Attempt::Keyed));
        for key in ["", "k".repeat(256).as_str()] {
            assert!(of(&[(KEY, key)], json!({})).is_err());
        }
    }
}
