//! A bucket of an object store that speaks S3, addressed by its path: `ENDPOINT/BUCKET/KEY`.
//!
//! Where it is and who asks comes from the environment, by the names that all such clients have: `AWS_ENDPOINT_URL`,
//! `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_CA_BUNDLE`, `AWS_ALLOW_HTTP`. A file
//! is there whole or not at all: in one request, or in parts that become an object when all of them have come.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, ETAG};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, Url};

use self::signing::{AccessKey, SignedRequest, sha256};
use super::StoreError;
use super::names::compact;
use crate::client::rest::{cause, percent};
use crate::clock::{Clock, SystemClock};
use crate::config::is_loopback;
use crate::tls::files;

mod signing;
mod xml;

/// Bytes of a file that are in memory at once.
const PART: u64 = 8 << 20;
/// As many parts as an object may have at most, with some to spare.
const PARTS: u64 = 9_000;
/// Names on a page of a listing, and pages.
const PAGE: &str = "1000";
const PAGES: usize = 1_000;
/// The longest answer that is no file.
const ANSWER: usize = 4 << 20;
/// What a server says of a refusal is shown up to here.
const REASON: usize = 300;
/// How often a request is sent, and the pause after the first time; twice as long after each further one.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request may take, its body of a part included; a file that is taken may take as long as pieces of it come.
const REQUEST: Duration = Duration::from_secs(300);
const PIECE: Duration = Duration::from_secs(60);
const DOWNLOAD: Duration = Duration::from_secs(4 * 3_600);

/// Where systems keep the CAs that they trust.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A folder of a bucket.
#[derive(Clone)]
pub(crate) struct ObjectBucket {
    http: reqwest::Client,
    /// Without a slash at its end.
    endpoint: String,
    host: String,
    region: String,
    key: AccessKey,
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
}

impl fmt::Debug for ObjectBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectBucket")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Why a request came to nothing.
struct BucketError {
    why: String,
    /// The same request can succeed a moment later.
    passing: bool,
}

/// The bucket and the prefix of `s3://BUCKET/PREFIX`.
fn parts(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_bucket = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    // A dot would be taken for a folder above, or for none.
    let is_folder = |part: &str| !part.is_empty() && !part.bytes().all(|byte| byte == b'.');
    let prefix = prefix.trim_end_matches('/');
    let well = (1..=63).contains(&bucket.len()) && bucket.chars().all(is_bucket) && prefix.len() <= 512;
    (well && (prefix.is_empty() || prefix.split('/').all(is_folder))).then_some((bucket, prefix))
}

impl ObjectBucket {
    /// Of `s3://BUCKET/PREFIX`, with what the environment says; nothing is asked for yet.
    pub(crate) fn open(url: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let unusable = |why: &str| StoreError::Unusable(format!("{url}: {why}"));
        let (bucket, prefix) = parts(url).ok_or_else(|| unusable("expected s3://BUCKET or s3://BUCKET/PREFIX"))?;
        let given =
            |name: &str| environment(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let must = |name: &str| given(name).ok_or_else(|| unusable(&format!("{name} is not set in the environment")));
        let region =
            given("AWS_REGION").or_else(|| given("AWS_DEFAULT_REGION")).unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint = given("AWS_ENDPOINT_URL_S3").or_else(|| given("AWS_ENDPOINT_URL"));
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let parsed = Url::parse(&endpoint).ok();
        let parsed =
            parsed.filter(|url| url.query().is_none() && url.username().is_empty() && url.password().is_none());
        let parsed = parsed.ok_or_else(|| unusable("AWS_ENDPOINT_URL is not https://HOST or https://HOST:PORT"))?;
        let host = parsed.host_str().unwrap_or_default().to_owned();
        let host = parsed.port().map_or(host.clone(), |port| format!("{host}:{port}"));
        let allowed = given("AWS_ALLOW_HTTP").is_some_and(|value| value == "true");
        let tls = match parsed.scheme() {
            "https" => {
                let ca = given("AWS_CA_BUNDLE").or_else(|| given("SSL_CERT_FILE")).map(PathBuf::from);
                let system = || SYSTEM_CAS.iter().map(PathBuf::from).find(|path| path.exists());
                let ca = ca.or_else(system).ok_or_else(|| {
                    unusable("no CAs are known that its certificate could be of: AWS_CA_BUNDLE names a file of them")
                })?;
                files::client(&ca).map_err(|why| unusable(&why))?
            }
            "http" if allowed || is_loopback(&host) => files::nobody().map_err(|why| unusable(&why.to_string()))?,
            "http" => {
                return Err(unusable(
                    "AWS_ENDPOINT_URL is plain http, in which others can read the backups: set AWS_ALLOW_HTTP=true if that is meant",
                ));
            }
            _ => return Err(unusable("AWS_ENDPOINT_URL is neither https nor http")),
        };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .no_proxy()
            // A request is signed for where it goes.
            .redirect(Policy::none())
            .tls_backend_preconfigured(tls)
            .build();
        Ok(Self {
            http: http.map_err(|error| unusable(&error.to_string()))?,
            endpoint: parsed.as_str().trim_end_matches('/').to_owned(),
            host,
            key: AccessKey {
                id: must("AWS_ACCESS_KEY_ID")?,
                secret: must("AWS_SECRET_ACCESS_KEY")?,
                session: given("AWS_SESSION_TOKEN"),
            },
            region,
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
        })
    }

    /// The URL of a file in it, for people.
    pub(crate) fn shown(&self, name: &str) -> String {
        format!("s3://{}/{}{name}", self.bucket, self.prefix)
    }

    fn failed(&self, name: &str) -> impl Fn(BucketError) -> StoreError {
        let place = format!("{} at {}", self.shown(name), self.endpoint);
        move |refusal| StoreError::Failed(format!("{place}: {}", refusal.why))
    }

    /// The names of all files in it, without what is in folders of it.
    pub(crate) async fn list(&self, mut each: impl FnMut(&str)) -> Result<(), StoreError> {
        let mut token: Option<String> = None;
        for _ in 0..PAGES {
            let mut query = vec![("list-type", "2"), ("delimiter", "/"), ("max-keys", PAGE), ("prefix", &self.prefix)];
            query.extend(token.as_deref().map(|token| ("continuation-token", token)));
            let page = self.ask(&Method::GET, "", &query, Bytes::new()).await.map_err(self.failed(""))?;
            for contents in xml::all(&page, "Contents") {
                if let Some(name) =
                    xml::first(contents, "Key").as_deref().and_then(|key| key.strip_prefix(&self.prefix))
                {
                    each(name);
                }
            }
            if xml::first(&page, "IsTruncated").as_deref() != Some("true") {
                return Ok(());
            }
            let next = xml::first(&page, "NextContinuationToken").filter(|next| token.as_ref() != Some(next));
            let without = || StoreError::Failed(format!("{}: its listing does not go on", self.shown("")));
            token = Some(next.ok_or_else(without)?);
        }
        Err(StoreError::Failed(format!("{}: there are too many files in it", self.shown(""))))
    }

    /// Puts a file into it, and sees that it has come in full length. Each request carries the hash of what is in it, signed.
    pub(crate) async fn put(&self, file: &Path, name: &str) -> Result<(), StoreError> {
        let (opened, bytes) = open(file).map_err(|error| StoreError::Failed(format!("{}: {error}", file.display())))?;
        let put = match bytes <= PART {
            true => match read(&opened, 0, bytes).await {
                Ok(body) => self.ask(&Method::PUT, name, &[], body).await.map(drop),
                Err(refusal) => Err(refusal),
            },
            false => self.put_in_parts(&opened, bytes, name).await,
        };
        put.map_err(self.failed(name))?;
        match self.bytes(name).await? {
            stored if stored == bytes => Ok(()),
            stored => {
                let why = format!("{} has {stored} bytes after {bytes} were sent", self.shown(name));
                Err(StoreError::Failed(why))
            }
        }
    }

    async fn put_in_parts(&self, file: &File, bytes: u64, name: &str) -> Result<(), BucketError> {
        let begun = self.ask(&Method::POST, name, &[("uploads", "")], Bytes::new()).await?;
        let upload = xml::first(&begun, "UploadId").filter(|upload| !upload.is_empty() && upload.len() <= 2_048);
        let upload = upload.ok_or_else(|| strange("it gave the upload no number"))?;
        let sent = self.send_parts(file, bytes, name, &upload).await;
        if sent.is_err() {
            // What came of it would be kept, and paid for.
            let _ = self.ask(&Method::DELETE, name, &[("uploadId", &upload)], Bytes::new()).await;
        }
        sent
    }

    async fn send_parts(&self, file: &File, bytes: u64, name: &str, upload: &str) -> Result<(), BucketError> {
        let size = PART.max(bytes.div_ceil(PARTS));
        let (mut at, mut number, mut list) = (0, 1_u32, String::new());
        while at < bytes {
            let body = read(file, at, size.min(bytes - at)).await?;
            at += body.len() as u64;
            let text = number.to_string();
            let query = [("partNumber", text.as_str()), ("uploadId", upload)];
            let response = self.send(&Method::PUT, name, &query, body, None).await?;
            let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| tag.len() <= 256);
            let tag = tag.ok_or_else(|| strange("it gave a part no tag"))?;
            let tag = tag.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
            list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
            number += 1;
        }
        let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
        let done = self.ask(&Method::POST, name, &[("uploadId", upload)], list.into()).await?;
        // A server begins to answer before it is done.
        match xml::first(&done, "Error") {
            Some(_) => Err(strange(&reason(&done, "it did not put the parts together"))),
            None => Ok(()),
        }
    }

    /// How many bytes a file of it has.
    pub(crate) async fn bytes(&self, name: &str) -> Result<u64, StoreError> {
        let response = self.send(&Method::HEAD, name, &[], Bytes::new(), None).await.map_err(self.failed(name))?;
        let bytes = response.headers().get(CONTENT_LENGTH).and_then(|text| text.to_str().ok()?.parse().ok());
        bytes.ok_or_else(|| self.failed(name)(strange("it does not say how long it is")))
    }

    /// Writes a file of it, or the first `most` bytes, to `to`.
    pub(crate) async fn fetch(&self, name: &str, to: &Path, most: Option<u64>) -> Result<(), StoreError> {
        let fetched = tokio::time::timeout(DOWNLOAD, async {
            let mut tries = 0;
            loop {
                match self.fetch_once(name, to, most).await {
                    Err(refusal) if refusal.passing && tries + 1 < TRIES => {
                        tokio::time::sleep(PAUSE * 2_u32.pow(tries)).await
                    }
                    other => return other,
                }
                tries += 1;
            }
        });
        let slow = |_| Err(strange("it took too long"));
        fetched.await.unwrap_or_else(slow).map_err(self.failed(name))
    }

    async fn fetch_once(&self, name: &str, to: &Path, most: Option<u64>) -> Result<(), BucketError> {
        let disk = |error: io::Error| strange(&format!("{}: {error}", to.display()));
        let range = most.map(|most| format!("bytes=0-{}", most.saturating_sub(1)));
        let mut response = self.send(&Method::GET, name, &[], Bytes::new(), range.as_deref()).await?;
        // The disk is the node's: what has no end is not begun.
        let promised = response.content_length().ok_or_else(|| strange("it does not say how long it is"))?;
        let mut file = File::create(to).map_err(disk)?;
        let mut came = 0;
        // A server may pass over the range that was asked for.
        while most.is_none_or(|most| came < most) {
            let piece = tokio::time::timeout(PIECE, response.chunk()).await;
            let piece = piece.map_err(|_| passing(format!("nothing came for {} s", PIECE.as_secs())))?;
            let Some(piece) = piece.map_err(|error| passing(cause(&error)))? else { break };
            came += piece.len() as u64;
            file.write_all(&piece).map_err(disk)?;
        }
        if came < promised.min(most.unwrap_or(u64::MAX)) {
            return Err(passing("it ended too soon".to_owned()));
        }
        Ok(())
    }

    /// It is not there any more; also if it was not.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.ask(&Method::DELETE, name, &[], Bytes::new()).await.map(drop).map_err(self.failed(name))
    }

    /// The text of an answer.
    async fn ask(
        &self,
        method: &Method,
        name: &str,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Result<String, BucketError> {
        let response = self.send(method, name, query, body, None).await?;
        String::from_utf8(text(response).await?).map_err(|_| strange("its answer is no text"))
    }

    /// Sends a request until it is answered well, a few times at most.
    async fn send(
        &self,
        method: &Method,
        name: &str,
        query: &[(&str, &str)],
        body: Bytes,
        range: Option<&str>,
    ) -> Result<Response, BucketError> {
        let hash = sha256(&body);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.send_once(method, name, query, (&body, &hash), range).await {
                Err(refusal) if refusal.passing && tries < TRIES => {
                    tokio::time::sleep(PAUSE * 2_u32.pow(tries - 1)).await;
                }
                other => return other,
            }
        }
    }

    async fn send_once(
        &self,
        method: &Method,
        name: &str,
        query: &[(&str, &str)],
        (body, hash): (&Bytes, &str),
        range: Option<&str>,
    ) -> Result<Response, BucketError> {
        // Of the bucket itself, or of an object.
        let object = if name.is_empty() { String::new() } else { format!("{}{name}", self.prefix) };
        let path: String = std::iter::once(self.bucket.as_str())
            .chain(object.split('/').filter(|part| !part.is_empty()))
            .map(|part| format!("/{}", percent(part)))
            .collect();
        let mut url = format!("{}{path}", self.endpoint);
        if !query.is_empty() {
            url = format!("{url}?{}", signing::query(query));
        }
        let url = Url::parse(&url).map_err(|error| strange(&error.to_string()))?;
        let at = compact(SystemClock.now_ms());
        let mut headers = vec![("host", self.host.as_str())];
        headers.extend(range.map(|range| ("range", range)));
        let (region, path) = (self.region.as_str(), url.path().to_owned());
        let signed = SignedRequest {
            method: method.as_str(),
            path: &path,
            query,
            headers: &headers,
            body_hash: hash,
            at: &at,
            region,
        };
        let mut request = self.http.request(method.clone(), url);
        for (name, value) in signed.sign(&self.key) {
            request = request.header(name, value);
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        if matches!(*method, Method::PUT | Method::POST) {
            request = request.body(body.clone());
        }
        let answered = match *method == Method::GET && query.is_empty() {
            // What comes after its head takes as long as it does.
            true => {
                tokio::time::timeout(REQUEST, request.send()).await.map_err(|_| passing("no answer came".to_owned()))?
            }
            false => request.timeout(REQUEST).send().await,
        };
        let response = answered.map_err(|error| passing(cause(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let is_passing = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
        let answer = text(response).await.unwrap_or_default();
        let why = reason(&String::from_utf8_lossy(&answer), &format!("HTTP status {}", status.as_u16()));
        Err(BucketError { why, passing: is_passing })
    }
}

/// What a server says of a refusal, or what is known without it.
fn reason(answer: &str, otherwise: &str) -> String {
    let (code, message) = (xml::first(answer, "Code"), xml::first(answer, "Message"));
    let said = [code, message].into_iter().flatten().collect::<Vec<_>>().join(": ");
    if said.is_empty() { otherwise.to_owned() } else { said.chars().take(REASON).collect() }
}

fn strange(why: &str) -> BucketError {
    BucketError { why: why.to_owned(), passing: false }
}

fn passing(why: String) -> BucketError {
    BucketError { why, passing: true }
}

/// The body of an answer that is no file.
async fn text(mut response: Response) -> Result<Vec<u8>, BucketError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| passing(cause(&error)))? {
        if body.len() + piece.len() > ANSWER {
            return Err(strange("its answer is too long"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn open(file: &Path) -> io::Result<(File, u64)> {
    let file = File::open(file)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

async fn read(file: &File, at: u64, bytes: u64) -> Result<Bytes, BucketError> {
    let read = async {
        let (file, len) = (file.try_clone()?, usize::try_from(bytes).map_err(io::Error::other)?);
        let piece = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; len];
            file.read_exact_at(&mut piece, at).map(|()| piece)
        });
        piece.await.map_err(io::Error::other)?
    };
    read.await.map(Bytes::from).map_err(|error: io::Error| strange(&format!("the file to send: {error}")))
}

#[cfg(test)]
mod tests;
