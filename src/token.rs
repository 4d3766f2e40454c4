//! Tokens: who may speak, and as what (docs/design.md, section 8). JWTs signed with HS256 under the cluster's key.
//!
//! Issuing needs the key file alone, so it works offline; a gateway verifies with the same file.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::ids::UnixMs;
use crate::limits;
use crate::model::access::{CLASSES, ClassNumber};
use crate::model::error::{Code, Error};
use crate::proto::Principal;

/// The shortest key that HS256 is worth: as long as its hash. Bytes.
const KEY_BYTES: usize = 32;

/// What a token's bearer is, and so the greatest priority that it may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Class {
    Admin,
    Manager,
    AssistantManager,
    InventoryAssistant,
    SalesAssistant,
}

impl Class {
    pub const ALL: [Self; 5] =
        [Self::Admin, Self::Manager, Self::AssistantManager, Self::InventoryAssistant, Self::SalesAssistant];

    /// The document's priority of the class.
    pub fn priority(self) -> u32 {
        match self {
            Self::Admin => 100,
            Self::Manager => 80,
            Self::AssistantManager => 60,
            Self::InventoryAssistant => 40,
            Self::SalesAssistant => 20,
        }
    }

    /// May act for other devices, start elections, change roles, resolve conflicts and set policies.
    pub fn is_privileged(self) -> bool {
        matches!(self, Self::Admin | Self::Manager)
    }

    pub fn name(self) -> &'static str {
        CLASSES.get(self as usize).copied().unwrap_or_default()
    }

    /// The class as the state knows it.
    pub fn number(self) -> ClassNumber {
        ClassNumber::of(self as u32 + 1).unwrap_or_default()
    }

    pub fn numbered(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.number().number() == number)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Class {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|c| c.name() == text).ok_or_else(|| {
            Error::new(Code::Credentials, format!("the token's class '{text}' is not one of the device classes"))
        })
    }
}

/// What a token says. Times are Unix seconds, as JWT has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The device that the token was made for.
    pub sub: String,
    pub class: Class,
    pub exp: u64,
    pub iat: u64,
    /// The token's own name: what a revocation names.
    pub jti: String,
    /// Which key signed it; not a part of the token. 0: not looked at.
    #[serde(skip)]
    pub key: u64,
}

impl Claims {
    /// Whose token it is, as the audit log names it.
    pub fn principal(&self) -> Principal {
        Principal { sub: self.sub.clone(), jti: self.jti.clone() }
    }
}

/// The keys that are valid: tokens are signed with the current one; those signed with the previous one stay good,
/// so that a key can be changed while tokens are out. Clones share them: [`KeyRing::replace`] reaches all.
#[derive(Clone)]
pub struct KeyRing(Arc<RwLock<Keys>>);

#[derive(Clone)]
struct Keys {
    current: SigningKey,
    previous: Option<SigningKey>,
}

#[derive(Clone)]
struct SigningKey {
    id: u64,
    encode: EncodingKey,
    decode: DecodingKey,
}

// Keys never reach a log.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("previous", &self.0.read().previous.is_some()).finish_non_exhaustive()
    }
}

impl SigningKey {
    fn parse(line: &str) -> Result<Self, String> {
        let bytes = from_hex(line).ok_or("is not hexadecimal")?;
        if bytes.len() < KEY_BYTES {
            return Err(format!("has {} bytes, at least {KEY_BYTES} are needed", bytes.len()));
        }
        let (encode, decode) = (EncodingKey::from_secret(&bytes), DecodingKey::from_secret(&bytes));
        Ok(Self { id: xxhash_rust::xxh3::xxh3_64(&bytes).max(1), encode, decode })
    }
}

impl KeyRing {
    /// Reads the text of a key file: one key a line in hexadecimal, the current one first, then perhaps the
    /// one before it; `#` begins a comment. The error says what is wrong, without the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                keys.push(SigningKey::parse(line).map_err(|e| format!("the key in line {} {e}", number + 1))?);
            }
        }
        if keys.len() > 2 {
            return Err(format!("it holds {} keys; two can be valid at once", keys.len()));
        }
        let mut keys = keys.into_iter();
        let current = keys.next().ok_or("it holds no key")?;
        Ok(Self(Arc::new(RwLock::new(Keys { current, previous: keys.next() }))))
    }

    /// Takes over the keys of another ring, for all clones of this one.
    pub fn replace(&self, other: &Self) {
        let keys = other.0.read().clone();
        *self.0.write() = keys;
    }

    /// Is the key that signed these claims still valid?
    pub fn holds(&self, claims: &Claims) -> bool {
        let keys = self.0.read();
        keys.current.id == claims.key || keys.previous.as_ref().is_some_and(|k| k.id == claims.key)
    }

    /// Reads a key file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::new(Code::Configuration, format!("key file {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    /// Signs a token of `class` for the device `sub`.
    pub fn issue(&self, sub: &str, class: Class, now_ms: UnixMs, ttl_seconds: u64) -> Result<(String, Claims), Error> {
        if sub.is_empty() || sub.len() > limits::DEVICE_ID {
            let why = format!("a token's device id has 1 to {} bytes", limits::DEVICE_ID);
            return Err(Error::new(Code::Credentials, why));
        }
        if ttl_seconds > limits::TOKEN_SECONDS {
            let why = format!("a token lives at most {} days", limits::TOKEN_SECONDS / 86_400);
            return Err(Error::new(Code::Credentials, why));
        }
        self.issue_at(sub, class, None, now_ms.seconds(), now_ms.seconds().saturating_add(ttl_seconds))
    }

    /// The same with both of its times, in Unix seconds, and with the name of the token that it takes the place of.
    pub fn issue_at(
        &self,
        sub: &str,
        class: Class,
        jti: Option<String>,
        iat: u64,
        exp: u64,
    ) -> Result<(String, Claims), Error> {
        let jti = jti.unwrap_or_else(|| hex(&rand::random::<[u8; 16]>()));
        let keys = self.0.read();
        let key = keys.current.id;
        let claims = Claims { sub: sub.to_owned(), class, exp, iat, jti, key };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &keys.current.encode)
            .map_err(|e| Error::new(Code::Internal, format!("the token cannot be signed: {e}")))?;
        Ok((token, claims))
    }

    /// What the token says, if one of the keys signed it and it has not expired. Whether it was revoked is
    /// for the caller to ask the state.
    pub fn verify(&self, token: &str, now_ms: UnixMs) -> Result<Claims, Error> {
        let keys = self.0.read();
        let mut outcome = decode(token, &keys.current);
        if let (Err(kind), Some(previous)) = (&outcome, &keys.previous)
            && *kind == ErrorKind::InvalidSignature
        {
            outcome = decode(token, previous);
        }
        drop(keys);
        let claims = outcome.map_err(|kind| {
            let why = match kind {
                ErrorKind::InvalidSignature => "the token is not signed with this cluster's key",
                ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => "the token's algorithm is not HS256",
                ErrorKind::Json(_) => "the token's claims are not those of Tillsync (sub, class, exp, iat, jti)",
                _ => "the token is malformed",
            };
            Error::new(Code::Credentials, why)
        })?;
        if claims.sub.is_empty() || claims.sub.len() > limits::DEVICE_ID {
            return Err(Error::new(Code::Credentials, "the token names no device"));
        }
        if UnixMs(claims.exp.saturating_mul(1_000)) <= now_ms {
            return Err(Error::new(Code::TokenExpired, "the token has expired"));
        }
        Ok(claims)
    }
}

fn decode(token: &str, key: &SigningKey) -> Result<Claims, ErrorKind> {
    let mut rules = Validation::new(Algorithm::HS256);
    // Expiry is checked by `verify`, against the caller's clock.
    rules.validate_exp = false;
    rules.required_spec_claims.clear();
    let decoded = jsonwebtoken::decode(token, &key.decode, &rules).map_err(jsonwebtoken::errors::Error::into_kind)?;
    Ok(Claims { key: key.id, ..decoded.claims })
}

/// What a token says of itself, without any key: for a client that holds it and need not doubt it.
pub fn claims_unverified(token: &str) -> Result<Claims, Error> {
    let mut rules = Validation::new(Algorithm::HS256);
    rules.insecure_disable_signature_validation();
    rules.validate_exp = false;
    rules.validate_aud = false;
    rules.required_spec_claims.clear();
    jsonwebtoken::decode(token, &DecodingKey::from_secret(&[]), &rules)
        .map(|t| t.claims)
        .map_err(|_| Error::new(Code::Credentials, "the token is malformed"))
}

/// Makes a key file with one fresh key, readable by its owner only. An existing file is left as it is.
pub fn make_key_file(path: &Path) -> io::Result<()> {
    let text = format!("# Tillsync token key (HS256). Put a new key above this one to change it.\n{}\n", {
        hex(&rand::random::<[u8; KEY_BYTES]>())
    });
    match create_private(path) {
        Ok(mut file) => io::Write::write_all(&mut file, text.as_bytes()).and_then(|()| file.sync_all()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn create_private(path: &Path) -> io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_000_000_000;
    const A: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const B: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn ring(keys: &[&str]) -> KeyRing {
        KeyRing::parse(&keys.join("\n")).unwrap()
    }

    #[test]
    fn an_issued_token_says_what_it_was_issued_for() {
        let (token, claims) = ring(&[A]).issue("till-1", Class::SalesAssistant, UnixMs(NOW), 60).unwrap();
        assert_eq!(ring(&[A]).verify(&token, UnixMs(NOW)).unwrap(), claims);
        assert_eq!(claims_unverified(&token).unwrap(), Claims { key: 0, ..claims.clone() });
        assert!(claims_unverified("wrong").is_err());
        assert_eq!((claims.sub.as_str(), claims.exp - claims.iat), ("till-1", 60));
    }

    #[test]
    fn a_token_ends_when_it_says() {
        let (token, _) = ring(&[A]).issue("till-1", Class::Admin, UnixMs(NOW), 60).unwrap();
        assert!(ring(&[A]).verify(&token, UnixMs(NOW + 59_999)).is_ok());
        assert_eq!(ring(&[A]).verify(&token, UnixMs(NOW + 60_000)).unwrap_err().code, Code::TokenExpired);
    }

    #[test]
    fn no_token_lives_longer_than_a_revocation_is_remembered() {
        let issue = |seconds| ring(&[A]).issue("till-1", Class::Admin, UnixMs(NOW), seconds);
        assert!(issue(limits::TOKEN_SECONDS).is_ok());
        assert!(issue(limits::TOKEN_SECONDS + 1).unwrap_err().message.contains("366 days"));
    }

    #[test]
    fn the_previous_key_stays_good_and_only_the_current_one_signs() {
        let (old, _) = ring(&[A]).issue("till-1", Class::Admin, UnixMs(NOW), 60).unwrap();
        let both = ring(&["# changed", B, "", A]);
        assert!(both.verify(&old, UnixMs(NOW)).is_ok());
        let (new, _) = both.issue("till-1", Class::Admin, UnixMs(NOW), 60).unwrap();
        assert!(ring(&[B]).verify(&new, UnixMs(NOW)).is_ok());
        assert_eq!(ring(&[A]).verify(&new, UnixMs(NOW)).unwrap_err().code, Code::Credentials);
    }

    #[test]
    fn replaced_keys_reach_every_clone() {
        let shared = ring(&[A]);
        let clone = shared.clone();
        let (old, claims) = shared.issue("till-1", Class::Admin, UnixMs(NOW), 60).unwrap();
        shared.replace(&ring(&[B, A]));
        assert!(clone.holds(&claims) && clone.verify(&old, UnixMs(NOW)).is_ok());
        shared.replace(&ring(&[B]));
        assert!(!clone.holds(&claims));
        assert_eq!(clone.verify(&old, UnixMs(NOW)).unwrap_err().code, Code::Credentials);
        assert!(clone.holds(&clone.issue("till-1", Class::Admin, UnixMs(NOW), 60).unwrap().1));
    }

    #[test]
    fn what_is_no_token_of_ours_is_refused() {
        let ring = ring(&[A]);
        let claims = serde_json::json!({"sub": "x", "class": "admin", "exp": 9_999_999_999u64, "iat": 0, "jti": "j"});
        let key = EncodingKey::from_secret(&from_hex(A).unwrap());
        let other = jsonwebtoken::encode(&Header::new(Algorithm::HS512), &claims, &key).unwrap();
        let king = serde_json::json!({"sub": "x", "class": "king", "exp": 9_999_999_999u64, "iat": 0, "jti": "j"});
        let king = jsonwebtoken::encode(&Header::default(), &king, &key).unwrap();
        // {"alg":"none"} . claims . nothing
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4IiwiY2xhc3MiOiJhZG1pbiJ9.";
        for bad in ["", "wrong", "a.b.c", none, &other, &king] {
            assert_eq!(ring.verify(bad, UnixMs(NOW)).unwrap_err().code, Code::Credentials, "{bad}");
        }
    }

    #[test]
    fn a_bad_key_file_is_named_without_its_key() {
        for (text, says) in [
            ("", "no key"),
            ("abc", "line 1 is not hexadecimal"),
            ("# c\n0011", "line 2 has 2 bytes"),
            (&format!("{A}\n{A}\n{A}"), "3 keys"),
        ] {
            let why = KeyRing::parse(text).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn a_key_file_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token.key");
        make_key_file(&path).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        make_key_file(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
        assert!(KeyRing::read(&path).is_ok());
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777, 0o600);
    }
}
