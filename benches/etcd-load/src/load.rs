//! Puts and gets over etcd's gRPC API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::stats::{Report, Stats};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(clap::Args, Clone)]
pub struct Args {
    /// The nodes, http://HOST:PORT
    #[arg(long = "url", value_delimiter = ',', required = true)]
    urls: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    clients: Vec<u32>,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    size: u32,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Write,
    Read,
}

// As much of etcd's API as is asked for here, with its field numbers. What else an answer holds is skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// Linearizable, as `serializable` (field 7) is not set.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

pub fn run(args: &Args, kind: Kind) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut reports = Vec::new();
    Report::print_header();
    for count in &args.clients {
        let report = runtime.block_on(one(args, kind, *count))?;
        report.print();
        reports.push(report);
    }
    if let Some(path) = &args.json {
        let all = serde_json::Value::from_iter(reports.iter().map(Report::json));
        std::fs::write(path, format!("{all:#}\n"))?;
    }
    Ok(())
}

async fn one(args: &Args, kind: Kind, count: u32) -> Result<Report, Error> {
    let stats = Arc::new(Mutex::new(Stats::new()));
    let mut clients = Vec::with_capacity(count as usize);
    for index in 0..count {
        let url = args.urls[index as usize % args.urls.len()].clone();
        // A channel of one's own is a connection of one's own.
        let channel = Endpoint::from_shared(url)?.tcp_nodelay(true).connect().await?;
        let mut client = Client { grpc: tonic::client::Grpc::new(channel), index, next: 0, size: args.size as usize };
        if kind == Kind::Read {
            client.put(0).await?;
        }
        clients.push(client);
    }
    let begin = Instant::now() + Duration::from_secs(args.warmup);
    let end = begin + Duration::from_secs(args.seconds);
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(closed(client, kind, begin, end, stats.clone()));
    }
    while tasks.join_next().await.is_some() {}
    let stats = stats.lock();
    if let Some(why) = &stats.last_error {
        eprintln!("the last error: {why}");
    }
    let name = if kind == Kind::Write { "write" } else { "read" };
    Ok(stats.report(name, count, args.seconds as f64).with("size", args.size))
}

async fn closed(mut client: Client, kind: Kind, begin: Instant, end: Instant, stats: Arc<Mutex<Stats>>) {
    while Instant::now() < end {
        let sent = Instant::now();
        match timeout_at(end, client.ask(kind)).await {
            Ok(Ok(())) => {
                let at = Instant::now();
                if at >= begin && at < end {
                    stats.lock().record(at, at - sent);
                }
            }
            Ok(Err(e)) => {
                stats.lock().error(e.to_string());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(_) => return,
        }
    }
}

struct Client {
    grpc: tonic::client::Grpc<Channel>,
    index: u32,
    next: u64,
    size: usize,
}

impl Client {
    async fn ask(&mut self, kind: Kind) -> Result<(), Error> {
        match kind {
            // As many keys as `tillsync bench` writes records.
            Kind::Write => {
                self.next += 1;
                self.put(self.next % 1_000).await
            }
            Kind::Read => self.get(0).await,
        }
    }

    async fn put(&mut self, record: u64) -> Result<(), Error> {
        let request = PutRequest { key: self.key(record), value: vec![b'x'; self.size] };
        self.grpc.ready().await?;
        let codec = ProstCodec::<PutRequest, PutResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        self.grpc.unary(tonic::Request::new(request), path, codec).await?;
        Ok(())
    }

    async fn get(&mut self, record: u64) -> Result<(), Error> {
        let request = RangeRequest { key: self.key(record) };
        self.grpc.ready().await?;
        let codec = ProstCodec::<RangeRequest, RangeResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let answer = self.grpc.unary(tonic::Request::new(request), path, codec).await?.into_inner();
        match answer.kvs.first() {
            Some(kv) if kv.value.len() == self.size => Ok(()),
            _ => Err("the key is not there".into()),
        }
    }

    fn key(&self, record: u64) -> Vec<u8> {
        format!("bench/{}/{record}", self.index).into_bytes()
    }
}
