use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn opened(url: &str, environment: &[(&str, &str)]) -> Result<ObjectBucket, String> {
    let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    let find = |name: &str| environment.iter().chain(&keys).find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned());
    ObjectBucket::open(url, find).map_err(|error| error.to_string())
}

#[test]
fn a_url_and_the_environment_say_where_a_bucket_is() {
    let local = [("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")];
    let bucket = opened("s3://shop-17/a/b/", &local).unwrap();
    assert_eq!((bucket.endpoint.as_str(), bucket.host.as_str()), ("http://127.0.0.1:9000", "127.0.0.1:9000"));
    assert_eq!(bucket.shown("x"), "s3://shop-17/a/b/x");
    assert_eq!(opened("s3://shop", &local).unwrap().shown("x"), "s3://shop/x");
    assert!(!format!("{bucket:?}").contains("hidden"));
    for wrong in ["s3://", "s3:///a", "s3://Shop", "s3://shop/a//b", "s3://shop/../b", "s3://u:p@shop/b", "gs://shop"] {
        assert!(opened(wrong, &local).unwrap_err().contains("expected s3://BUCKET"), "{wrong}");
    }
    for (name, value, says) in [
        ("AWS_ENDPOINT_URL", "http://store.example", "AWS_ALLOW_HTTP=true"),
        ("AWS_ENDPOINT_URL", "https://u:p@store.example", "is not https://HOST"),
        ("AWS_ENDPOINT_URL", "ftp://store.example", "neither https nor http"),
        ("AWS_ENDPOINT_URL", "store", "is not https://HOST"),
        ("AWS_CA_BUNDLE", "/nowhere/ca.crt", "/nowhere/ca.crt cannot be read"),
    ] {
        let error = opened("s3://shop", &[(name, value)]).unwrap_err();
        assert!(error.contains(says) && !error.contains("hidden"), "{error}");
    }
    let allowed = [("AWS_ENDPOINT_URL", "http://store.example"), ("AWS_ALLOW_HTTP", "true")];
    assert_eq!(opened("s3://shop", &allowed).unwrap().host, "store.example");
    let error =
        ObjectBucket::open("s3://shop", |name| local.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).into()));
    assert!(error.unwrap_err().to_string().contains("AWS_ACCESS_KEY_ID is not set"));
}

#[test]
fn a_refusal_is_told_in_the_words_of_the_server() {
    let answer = "<Error><Code>NoSuchBucket</Code><Message>It is &quot;gone&quot;</Message></Error>";
    assert_eq!(reason(answer, "HTTP status 404"), "NoSuchBucket: It is \"gone\"");
    assert_eq!(reason("<html>", "HTTP status 404"), "HTTP status 404");
    assert!(reason(&format!("<Message>{}</Message>", "x".repeat(9_999)), "").len() <= REASON);
}

/// A server that gives these answers, one a connection, and then no more; and the requests that came, without their bodies.
async fn server(answers: Vec<String>) -> (ObjectBucket, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = asked.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(connection.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(str::parse::<usize>);
            let mut body = vec![0; length.map_or(0, Result::unwrap)];
            connection.read_exact(&mut body).await.unwrap();
            told.lock().push(head.lines().next().unwrap().to_owned());
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (opened("s3://shop/a", &[("AWS_ENDPOINT_URL", &url)]).unwrap(), asked)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length =
        if headers.contains("Content-Length") { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}{length}\r\n{body}")
}

fn file(bytes: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; bytes]).unwrap();
    (dir, path)
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_told() {
    let busy = "<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>";
    let (_dir, path) = file(5);
    let answers =
        [answer("503 Busy", "", busy), answer("200 OK", "", ""), answer("200 OK", "Content-Length: 5\r\n", "")];
    let (bucket, asked) = server(answers.to_vec()).await;
    bucket.put(&path, "f").await.unwrap();
    assert_eq!(*asked.lock(), ["PUT /shop/a/f HTTP/1.1", "PUT /shop/a/f HTTP/1.1", "HEAD /shop/a/f HTTP/1.1"]);
    // Another length than was sent.
    let (bucket, _) = server(vec![answer("200 OK", "", ""), answer("200 OK", "Content-Length: 4\r\n", "")]).await;
    let why = bucket.put(&path, "f").await.unwrap_err().to_string();
    assert!(why.contains("s3://shop/a/f has 4 bytes after 5 were sent"), "{why}");
    let denied = answer("403 Forbidden", "", "<Error><Code>AccessDenied</Code></Error>");
    let (bucket, asked) = server(vec![denied.clone(), denied]).await;
    let why = bucket.remove("f").await.unwrap_err().to_string();
    assert!(why.starts_with("s3://shop/a/f at http://127.0.0.1:") && why.ends_with(": AccessDenied"), "{why}");
    assert_eq!(asked.lock().len(), 1);
    let (bucket, asked) = server(vec![answer("500 No", "", ""); 9]).await;
    let why = bucket.remove("f").await.unwrap_err().to_string();
    assert!(why.ends_with("HTTP status 500") && asked.lock().len() == TRIES as usize, "{why}");
}

#[tokio::test]
async fn an_upload_whose_part_is_refused_is_given_up() {
    let (_dir, path) = file(PART as usize + 1);
    let begun = answer("200 OK", "", "<R><UploadId>u/1</UploadId></R>");
    let part = answer("200 OK", "ETag: \"e\"\r\n", "");
    let done = "<Error><Code>InternalError</Code><Message>later</Message></Error>";
    let answers = [begun, part.clone(), part, answer("200 OK", "", done), answer("204 No Content", "", "")];
    let (bucket, asked) = server(answers.to_vec()).await;
    let why = bucket.put(&path, "f").await.unwrap_err().to_string();
    assert!(why.ends_with("InternalError: later"), "{why}");
    let asked = asked.lock().clone();
    let lines = [
        "POST /shop/a/f?uploads=",
        "PUT /shop/a/f?partNumber=1&uploadId=u%2F1",
        "PUT /shop/a/f?partNumber=2&uploadId=u%2F1",
    ];
    let lines = lines.into_iter().chain(["POST /shop/a/f?uploadId=u%2F1", "DELETE /shop/a/f?uploadId=u%2F1"]);
    assert!(lines.eq(asked.iter().map(|line| line.strip_suffix(" HTTP/1.1").unwrap())), "{asked:?}");
}

#[tokio::test]
async fn what_a_server_sends_has_bounds() {
    let page = |next: &str, key: &str| {
        let keys = format!("<Contents><Key>a/{key}</Key></Contents><Contents><Key>other</Key></Contents>");
        answer(
            "200 OK",
            "",
            &format!("<IsTruncated>true</IsTruncated>{keys}<NextContinuationToken>{next}</NextContinuationToken>"),
        )
    };
    let last = answer("200 OK", "", "<IsTruncated>false</IsTruncated>");
    let (bucket, asked) = server(vec![page("n 1", "x"), page("n2", "y"), last]).await;
    let mut names = Vec::new();
    bucket.list(|name| names.push(name.to_owned())).await.unwrap();
    assert_eq!(names, ["x", "y"]);
    assert!(asked.lock()[1].contains("?continuation-token=n%201&delimiter=%2F&list-type=2"), "{asked:?}");
    // Pages that go round, an answer without an end, and a file that ends too soon.
    let (bucket, _) = server(vec![page("n", "x"), page("n", "x")]).await;
    let why = bucket.list(|_| {}).await.unwrap_err().to_string();
    assert!(why.contains("does not go on"), "{why}");
    let (bucket, _) = server(vec![answer("200 OK", "", &" ".repeat(ANSWER + 1))]).await;
    let why = bucket.list(|_| {}).await.unwrap_err().to_string();
    assert!(why.contains("too long"), "{why}");
    let (dir, _) = file(0);
    let (short, whole) = (answer("200 OK", "Content-Length: 5\r\n", "abc"), answer("200 OK", "", "abcde"));
    let (bucket, asked) = server(vec![short, whole]).await;
    let to = dir.path().join("to");
    bucket.fetch("f", &to, None).await.unwrap();
    assert_eq!((std::fs::read(&to).unwrap().as_slice(), asked.lock().len()), (b"abcde".as_slice(), 2));
}
