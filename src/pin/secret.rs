//! Rocket's `secret_key` and those before it, from which the keys for pins are derived.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rocket::figment::value::Value;

/// The bytes of a secret key: 32 or more.
#[derive(Clone)]
pub(crate) struct Secret(pub(super) Vec<u8>);

impl Secret {
    /// Reads a configured key: 256 or 512 bits of base64, 256 bits of hex, or 32 bytes and more. This is
    /// Rocket's own rule, which Rocket checks only if its feature `secrets` is on. `None` is a key of
    /// zeros: Rocket's default, which Rocket itself treats as "no key configured".
    /// <https://api.rocket.rs/v0.5/rocket/config/struct.SecretKey>
    pub(crate) fn parse(key: &Value) -> Result<Option<Self>, &'static str> {
        /// Printed in Rocket's documentation, and copied from there into many a configuration.
        const PUBLISHED: &str = "hPRYyVRiMyxpw5sBB1XeCMN1kFsDCqKvBi2QJxBVHQk=";

        let bytes = if let Ok(text) = key.deserialize::<String>() {
            match text.len() {
                _ if text == PUBLISHED => {
                    return Err("the example key of Rocket's documentation is no secret");
                }
                44 | 88 => STANDARD.decode(text).map_err(|_| "not valid base64")?,
                64 => decode_hex(&text).ok_or("not valid hex")?,
                _ => return Err("expected 44 or 88 characters of base64, 64 of hex, or 32 bytes and more"),
            }
        } else if let Ok(bytes) = key.deserialize::<Vec<u8>>() {
            bytes
        } else {
            return Err("expected a string or an array of bytes");
        };

        if bytes.len() < 32 {
            return Err("shorter than 32 bytes");
        }
        Ok(bytes.iter().any(|byte| *byte != 0).then_some(Self(bytes)))
    }

    pub(crate) fn random() -> Self {
        let mut bytes = vec![0; 32];
        getrandom::fill(&mut bytes).expect("the operating system has random bytes");
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    Some(digits?.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

#[cfg(test)]
mod tests {
    use rocket::figment::Figment;
    use rocket::figment::providers::{Format, Toml};

    use super::*;

    fn secret_of(toml: &str) -> Result<Option<Vec<u8>>, &'static str> {
        let key = Figment::from(Toml::string(toml)).find_value("secret_key").unwrap();
        Secret::parse(&key).map(|secret| secret.map(|Secret(bytes)| bytes))
    }

    #[test]
    fn all_spellings_of_a_key_are_one_key() {
        let bytes: Vec<u8> = (0..32).collect();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = Ok(Some(bytes.clone()));
        assert_eq!(secret_of(&format!("secret_key = \"{}\"", STANDARD.encode(&bytes))), expected);
        assert_eq!(secret_of(&format!("secret_key = \"{hex}\"")), expected);
        assert_eq!(secret_of(&format!("secret_key = \"{}\"", hex.to_uppercase())), expected);
        assert_eq!(secret_of(&format!("secret_key = {bytes:?}")), expected);
    }

    #[test]
    fn a_key_that_is_none_or_no_secret() {
        assert_eq!(secret_of(&format!("secret_key = \"{}\"", "0".repeat(64))), Ok(None));
        let refused = [
            "secret_key = \"abc\"",
            "secret_key = \"hPRYyVRiMyxpw5sBB1XeCMN1kFsDCqKvBi2QJxBVHQk=\"",
            &format!("secret_key = \"{}\"", "?".repeat(44)),
            &format!("secret_key = \"{}\"", "x".repeat(64)),
            &format!("secret_key = \"{}\"", "é".repeat(32)),
            "secret_key = [1, 2, 3]",
            "secret_key = true",
        ];
        for toml in refused {
            assert!(secret_of(toml).is_err(), "{toml}");
        }
    }
}
