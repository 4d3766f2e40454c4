//! Signatures of requests to an object store: AWS Signature Version 4, with the hash of the body in it, so that a server takes
//! nothing that was altered on its way.

use std::fmt;

use ring::{digest, hmac};

use crate::client::rest::percent;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Who asks. Shown nowhere.
#[derive(Clone)]
pub(super) struct AccessKey {
    pub id: String,
    pub secret: String,
    /// Of a key that lives for some hours.
    pub session: Option<String>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKey")
    }
}

/// What is signed.
pub(super) struct SignedRequest<'a> {
    pub method: &'a str,
    /// Encoded as it is sent.
    pub path: &'a str,
    /// In any order, not encoded.
    pub query: &'a [(&'a str, &'a str)],
    /// Names in lower case; without those that the signature adds.
    pub headers: &'a [(&'a str, &'a str)],
    /// As [`sha256`] gives it.
    pub body_hash: &'a str,
    /// `YYYYMMDDThhmmssZ`
    pub at: &'a str,
    pub region: &'a str,
}

/// In hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

/// A query as it is sent: sorted, which the signature asks for.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let mut pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", percent(name), percent(value))).collect();
    pairs.sort_unstable();
    pairs.join("&")
}

impl SignedRequest<'_> {
    /// The headers to send beside those given: their values, and the signature.
    pub(super) fn sign(&self, key: &AccessKey) -> Vec<(&'static str, String)> {
        let mut added = vec![("x-amz-content-sha256", self.body_hash.to_owned()), ("x-amz-date", self.at.to_owned())];
        added.extend(key.session.iter().map(|token| ("x-amz-security-token", token.clone())));
        let given = self.headers.iter().map(|(name, value)| (*name, value.trim()));
        let mut headers: Vec<(&str, &str)> =
            given.chain(added.iter().map(|(name, value)| (*name, value.as_str()))).collect();
        headers.sort_unstable();
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let Self { method, path, body_hash, at, region, .. } = self;
        let canonical = format!("{method}\n{path}\n{}\n{lines}\n{names}\n{body_hash}", query(self.query));
        let day = at.get(..8).unwrap_or(at);
        let scope = format!("{day}/{region}/s3/aws4_request");
        let text = format!("{ALGORITHM}\n{at}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let mut signing = mac(format!("AWS4{}", key.secret).as_bytes(), day);
        for step in [region, "s3", "aws4_request"] {
            signing = mac(signing.as_ref(), step);
        }
        let signature = hex(mac(signing.as_ref(), &text).as_ref());
        let credential = format!("{}/{scope}", key.id);
        let value = format!("{ALGORITHM} Credential={credential},SignedHeaders={names},Signature={signature}");
        added.push(("authorization", value));
        added
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of "Authenticating Requests: Using the Authorization Header" in the S3 API reference.
    #[test]
    fn the_published_examples_are_signed_as_published() {
        let key = AccessKey {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session: None,
        };
        let host = ("host", "examplebucket.s3.amazonaws.com");
        let empty = sha256(b"");
        assert_eq!(empty, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let put = [host, ("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        let body = sha256(b"Welcome to Amazon S3.");
        for (method, path, query, headers, body_hash, signature) in [
            (
                "GET",
                "/test.txt",
                &[][..],
                &[host, ("range", "bytes=0-9")][..],
                &empty,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test%24file.text",
                &[][..],
                &put[..],
                &body,
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                "GET",
                "/",
                &[("lifecycle", "")][..],
                &[host][..],
                &empty,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/",
                &[("prefix", "J"), ("max-keys", "2")][..],
                &[host][..],
                &empty,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let (at, region) = ("20130524T000000Z", "us-east-1");
            let signed = SignedRequest { method, path, query, headers, body_hash, at, region }.sign(&key);
            let (_, value) = signed.last().unwrap();
            assert!(value.ends_with(&format!(",Signature={signature}")), "{method} {path}: {value}");
            assert!(
                value.starts_with("AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/"),
                "{value}"
            );
            assert!(!value.contains("wJalr"));
        }
        assert_eq!(format!("{key:?}"), "AccessKey");
    }

    #[test]
    fn a_key_that_lives_for_some_hours_is_signed_with_its_token() {
        let key = AccessKey { id: "a".into(), secret: "b".into(), session: Some("token".into()) };
        let request = SignedRequest {
            method: "GET",
            path: "/",
            query: &[],
            headers: &[("host", "h")],
            body_hash: "x",
            at: "20130524T000000Z",
            region: "r",
        };
        let signed = request.sign(&key);
        assert!(signed.contains(&("x-amz-security-token", "token".into())));
        assert!(
            signed
                .last()
                .unwrap()
                .1
                .contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,")
        );
    }
}
