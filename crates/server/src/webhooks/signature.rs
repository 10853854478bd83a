//! Signatures as Standard Webhooks has them: HMAC-SHA256 over id, time and body, one for every active secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

const PREFIX: &str = "whsec_";

/// A new secret: 32 bytes, of which 244 bits are random.
pub(crate) fn new_secret() -> SecretString {
    let random = || *uuid::Uuid::new_v4().as_bytes();
    let key = [random(), random()].concat();
    format!("{PREFIX}{}", STANDARD.encode(key)).into()
}

/// Enough of a secret to recognise it, too little to sign with it.
pub(crate) fn hint(secret: &SecretString) -> String {
    let secret = secret.expose_secret();
    let end = secret.trim_end_matches('=');
    format!("{PREFIX}...{}", &end[end.len() - 4..])
}

/// The header `webhook-signature`.
pub(crate) fn sign<'s>(
    secrets: impl Iterator<Item = &'s SecretString>,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    let signatures: Vec<String> = secrets
        .map(|secret| {
            let mut mac = Hmac::<Sha256>::new_from_slice(&key(secret.expose_secret()))
                .expect("HMAC takes keys of every length");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        })
        .collect();
    signatures.join(" ")
}

/// What receivers take for the key: the decoded rest behind the prefix, or the text itself.
fn key(secret: &str) -> Vec<u8> {
    let decoded = secret.strip_prefix(PREFIX).and_then(|rest| STANDARD.decode(rest).ok());
    decoded.unwrap_or_else(|| secret.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the standard's own libraries.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let (id, time) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330);
        let signed = sign([&secret].into_iter(), id, time, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let other = new_secret();
        let both = sign([&other, &secret].into_iter(), id, time, br#"{"test": 2432232314}"#);
        assert!(both.ends_with(&format!(" {signed}")), "{both}");
    }

    #[test]
    fn a_new_secret_has_32_bytes_and_its_hint_gives_four_characters_away() {
        let secret = new_secret();
        assert_eq!(key(secret.expose_secret()).len(), 32);
        let hint = hint(&secret);
        let shown = hint.strip_prefix("whsec_...").unwrap();
        assert_eq!(shown.len(), 4);
        assert!(secret.expose_secret().trim_end_matches('=').ends_with(shown), "{hint}");
    }
}
