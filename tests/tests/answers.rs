//! What S3 and SQS may answer, byte by byte, and what the importer makes of it: which failures
//! bury an object, which are tried again, which stop the intake.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weirgate_common::fault::{Dependency, Fault};
use weirgate_common::queue::{Queue, QueueError};
use weirgate_importer::event::ObjectCreated;
use weirgate_importer::failure::Failure;
use weirgate_importer::object::{Objects, Store as _};
use weirgate_local::fleet::{Clients, Endpoints};

const AWAY: Fault = Fault::Outage(Dependency::ObjectStore);

/// Larger objects are refused.
const BYTES_MAX: u64 = 1_000_000;

/// Answers every request with these bytes; then closes the connection, or leaves it open.
async fn answering(answer: String, hang: bool) -> Result<Clients> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://127.0.0.1:{}", listener.local_addr()?.port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone(), hang));
        }
    });
    Ok(Endpoints { localstack: url.clone(), moto: url }.clients().await)
}

async fn serve(mut stream: TcpStream, answer: String, hang: bool) -> Result<()> {
    let mut request = Vec::new();
    while !is_whole(&request) {
        anyhow::ensure!(stream.read_buf(&mut request).await? > 0, "the request ended");
    }
    stream.write_all(answer.as_bytes()).await?;
    if hang {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    Ok(())
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

fn http(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn s3(status: &str, code: &str) -> String {
    http(status, &format!("<Error><Code>{code}</Code><Message>for a test</Message></Error>"))
}

/// Reads an object to its end.
async fn read(clients: Clients) -> Result<u64, Failure> {
    let objects = Objects::new(clients.s3, BYTES_MAX);
    let event = ObjectCreated {
        bucket: "b".to_owned(),
        key: "k".to_owned(),
        etag: "e".to_owned(),
        version_id: None,
        size: None,
        sequencer: None,
        at: None,
        content: None,
    };
    let mut object = objects.open(&event).await?;
    let mut bytes = 0;
    while let Some(chunk) = object.next().await? {
        bytes += chunk.len() as u64;
    }
    Ok(bytes)
}

#[tokio::test]
async fn what_s3_may_answer() -> Result<()> {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nshort".to_owned();
    let cases = [
        (s3("403 Forbidden", "AccessDenied"), false, "missing_object", Fault::Permanent),
        (s3("403 Forbidden", "InvalidObjectState"), false, "object_archived", Fault::Permanent),
        (s3("403 Forbidden", "SignatureDoesNotMatch"), false, "object_store_away", AWAY),
        (s3("403 Forbidden", "RequestTimeTooSkewed"), false, "object_store_away", AWAY),
        (s3("400 Bad Request", "ExpiredToken"), false, "object_store_away", AWAY),
        (s3("400 Bad Request", "RequestTimeout"), false, "object_store_busy", Fault::Transient),
        (s3("404 Not Found", "NoSuchKey"), false, "missing_object", Fault::Permanent),
        (s3("404 Not Found", "NoSuchBucket"), false, "missing_object", Fault::Permanent),
        (
            s3("405 Method Not Allowed", "MethodNotAllowed"),
            false,
            "missing_object",
            Fault::Permanent,
        ),
        (
            s3("412 Precondition Failed", "PreconditionFailed"),
            false,
            "superseded",
            Fault::Permanent,
        ),
        (
            s3("416 Range Not Satisfiable", "InvalidRange"),
            false,
            "object_refused",
            Fault::Permanent,
        ),
        (
            s3("429 Too Many Requests", "TooManyRequests"),
            false,
            "object_store_busy",
            Fault::Transient,
        ),
        (s3("503 Service Unavailable", "SlowDown"), false, "object_store_busy", Fault::Transient),
        (s3("500 Internal Server Error", "InternalError"), false, "object_store_away", AWAY),
        (http("500 Internal Server Error", "no XML"), false, "object_store_away", AWAY),
        (http("502 Bad Gateway", ""), false, "object_store_away", AWAY),
        ("no HTTP at all\r\n\r\n".to_owned(), false, "object_store_away", AWAY),
        (String::new(), false, "object_store_away", AWAY),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n".to_owned(),
            false,
            "object_too_large",
            Fault::Permanent,
        ),
        // The body ends early, or stands still.
        (short.clone(), false, "object_store_busy", Fault::Transient),
        (short, true, "object_store_busy", Fault::Transient),
    ];
    let read = cases.into_iter().map(async |(answer, hang, code, fault)| {
        let failure = read(answering(answer.clone(), hang).await?).await;
        let failure = failure.err().with_context(|| format!("{answer:?} was read"))?;
        assert_eq!((failure.code, failure.fault), (code, fault), "{answer:?}: {}", failure.detail);
        assert!(code == "superseded" || failure.detail.contains("s3://b/k"), "{}", failure.detail);
        anyhow::Ok(())
    });
    join_all(read).await.into_iter().collect::<Result<Vec<()>>>()?;
    let whole = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole".to_owned();
    assert_eq!(read_whole(whole).await?, 5);
    Ok(())
}

async fn read_whole(answer: String) -> Result<u64> {
    read(answering(answer, false).await?).await.map_err(|failure| anyhow::anyhow!(failure.detail))
}

fn sqs(status: &str, code: &str) -> String {
    http(status, &format!(r#"{{"__type": "com.amazonaws.sqs#{code}", "message": "for a test"}}"#))
}

#[tokio::test]
async fn what_sqs_may_answer() -> Result<()> {
    let answers = [
        sqs("400 Bad Request", "OverLimit"),
        sqs("400 Bad Request", "RequestThrottled"),
        sqs("400 Bad Request", "QueueDoesNotExist"),
        sqs("403 Forbidden", "AccessDenied"),
        sqs("500 Internal Server Error", "InternalFailure"),
        http("503 Service Unavailable", "no JSON"),
        http("200 OK", "no JSON"),
        String::new(),
    ];
    // Whatever it says, nothing was received or deleted for sure, and no message is to blame.
    let asked = answers.into_iter().map(async |answer| {
        let queue = Queue::new(answering(answer.clone(), false).await?.sqs, "http://q/1/q");
        let received = queue.receive(10, Duration::ZERO, Duration::from_secs(30)).await;
        let error = received.err().with_context(|| format!("{answer:?} was received"))?;
        assert_eq!(error.fault(), Fault::Outage(Dependency::Queue), "{answer:?}");
        let deleted = queue.delete(&["a".to_owned(), "b".to_owned()]).await;
        assert!(deleted.len() == 2 && deleted.iter().all(Result::is_err), "{answer:?}");
        assert!(deleted.iter().flat_map(|it| it.as_ref().err()).all(|it| !it.is_stale_receipt()));
        anyhow::Ok(())
    });
    join_all(asked).await.into_iter().collect::<Result<Vec<()>>>()?;

    // A batch of which one entry was done, one came too late, one must be asked for again.
    let partial = r#"{"Successful": [{"Id": "0"}], "Failed": [
        {"Id": "1", "Code": "ReceiptHandleIsInvalid", "Message": "too late", "SenderFault": true},
        {"Id": "2", "Code": "InternalError", "Message": "again", "SenderFault": false}]}"#;
    let queue = Queue::new(answering(http("200 OK", partial), false).await?.sqs, "http://q/1/q");
    let receipts = ["a", "b", "c"].map(str::to_owned);
    let deleted = queue.delete(&receipts).await;
    let extended = queue.change_visibility(&receipts.map(|it| (it, Duration::from_secs(30)))).await;
    for results in [deleted, extended] {
        assert!(results[0].is_ok());
        assert!(results[1].as_ref().is_err_and(QueueError::is_stale_receipt));
        assert!(results[2].as_ref().is_err_and(|error| !error.is_stale_receipt()));
    }
    Ok(())
}
