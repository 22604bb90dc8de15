//! The shell around the real machine: real sockets on loopback, the store in memory.

use std::{collections::BTreeMap, net::SocketAddr};

use bytes::BytesMut;
use format::{
    ctl::{self, FromManager, RegisterNode, ToManager},
    frame,
    record::Record,
};
use model::epoch::AttachGeneration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::*;
use crate::{
    cli::client::{Client, Refusal},
    store::MemoryStore,
};

const CONFIG: &str = r#"
    cluster = "test"
    region = "local-1"
    zones = ["local-1a", "local-1b"]
    listen = "127.0.0.1:0"
    api_listen = "127.0.0.1:0"
    metrics_listen = "127.0.0.1:0"
    store = "metadata.sqlite"
    account = "123456789012"
    access_key = "AKIATEST"
    secret_key = "secret"
    remirror_delay_ms = 1000
"#;

fn config() -> Config {
    Config::parse(CONFIG, Path::new("/etc/pliant")).expect("a good configuration")
}

struct Running {
    control: SocketAddr,
    api: SocketAddr,
    metrics: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

async fn doors(config: &Config) -> Doors {
    let free = "a free port";
    let metrics = config.metrics_listen.expect("configured");
    Doors {
        control: bind("control links", config.listen).await.expect(free),
        api: bind("the API", config.api_listen).await.expect(free),
        metrics: Some(bind("metrics", metrics).await.expect(free)),
    }
}

/// A manager on `store`; it has taken over when this returns.
async fn start(store: &MemoryStore, config: Config) -> Running {
    let doors = doors(&config).await;
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let (control, api) = (address(&doors.control), address(&doors.api));
    let metrics = address(doors.metrics.as_ref().expect("configured"));
    let (stop, stopped) = oneshot::channel();
    let store = Box::new(store.clone());
    let ended = tokio::spawn(serve(config, store, doors, async {
        let _ = stopped.await;
    }));
    let running = Running { control, api, metrics, stop, ended };
    running.health().await;
    running
}

impl Running {
    async fn get(&self, address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let call = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(call.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    async fn health(&self) -> BTreeMap<String, serde_json::Value> {
        let answer = self.get(self.api, "/v1/health").await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        serde_json::from_str(body).expect("an object")
    }

    async fn until_nodes_up(&self, wanted: u64) {
        while self.health().await["nodes_up"] != wanted {}
    }

    async fn link(&self) -> TcpStream {
        TcpStream::connect(self.control).await.expect("connect")
    }

    async fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.ended.await.expect("no panic").expect("a clean stop");
    }
}

fn register(node: &str) -> ToManager {
    ToManager::RegisterNode(RegisterNode {
        cluster: "test".to_owned(),
        node: node.parse().expect("a legal name"),
        boot: model::id::BootId::from_raw(1),
        zone: "local-1a".parse().expect("a legal name"),
        account: "123456789012".parse().expect("an account"),
        instances: vec![model::id::InstanceId::from_raw(7)],
        attachments: Vec::<(model::id::VolumeId, AttachGeneration)>::new(),
    })
}

async fn say(stream: &mut TcpStream, message: &ToManager) {
    stream.write_all(&ctl::encode(message).encode()).await.expect("send");
}

async fn hear(stream: &mut TcpStream) -> Option<FromManager> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some(frame) = frame::decode(&mut buffer).expect("a good frame") {
            return Some(ctl::decode(&frame).expect("a good message"));
        }
        // A reset is an end like any other.
        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

#[tokio::test]
async fn a_malformed_frame_closes_its_own_link_only() {
    let manager = start(&MemoryStore::default(), config()).await;
    let mut good = manager.link().await;
    say(&mut good, &register("node-a")).await;
    manager.until_nodes_up(1).await;

    let mut flipped = ctl::encode(&register("node-b")).encode().to_vec();
    *flipped.last_mut().expect("not empty") ^= 1;
    let not_json = frame::Frame {
        header: frame::Header { kind: ctl::KIND, ..Default::default() },
        crcs: vec![crc32c::crc32c(b"{")],
        payload: bytes::Bytes::from_static(b"{"),
    };
    for bytes in [vec![0; 100], flipped, not_json.encode().to_vec()] {
        let mut bad = manager.link().await;
        bad.write_all(&bytes).await.expect("send");
        let mut rest: Vec<u8> = Vec::new();
        // The end may be a reset: not all that was sent was read.
        let _ = bad.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "nothing is answered to {} bytes", bytes.len());
    }
    say(&mut good, &ToManager::Beat { replicas: vec![] }).await;
    manager.until_nodes_up(1).await;
    drop(good);
    manager.until_nodes_up(0).await;
    manager.stop().await;
}

#[tokio::test]
async fn a_peer_of_another_cluster_hears_why_before_its_link_closes() {
    let manager = start(&MemoryStore::default(), config()).await;
    let mut link = manager.link().await;
    let mut message = register("node-a");
    if let ToManager::RegisterNode(register) = &mut message {
        register.cluster = "other".to_owned();
    }
    say(&mut link, &message).await;
    assert!(matches!(hear(&mut link).await, Some(FromManager::Rejected { .. })));
    assert_eq!(hear(&mut link).await, None, "then it closes");
    manager.stop().await;
}

/// The signer of the command line against the verifier of the manager, over a real socket.
#[tokio::test]
async fn a_signed_call_is_believed_and_a_forged_one_is_not() {
    let manager = start(&MemoryStore::default(), config()).await;
    let dir = std::env::temp_dir().join(format!("pliant-manager-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
    let call = |secret: &str| {
        let exports = format!(
            "export AWS_ENDPOINT_URL='http://{}'\nexport AWS_ACCESS_KEY_ID='AKIATEST'\n\
             export AWS_SECRET_ACCESS_KEY='{secret}'\nexport AWS_DEFAULT_REGION='local-1'\n",
            manager.api
        );
        std::fs::write(dir.join("env"), exports).expect("written");
        let client = Client::from_dir(&dir).expect("a good env file");
        tokio::task::spawn_blocking(move || {
            let body = serde_json::json!({ "name": "research" });
            client.post("/v1/accounts", &body).and_then(|_| client.get("/v1/accounts"))
        })
    };
    let answer = call("secret").await.expect("no panic").expect("believed");
    assert_eq!(answer["accounts"].as_array().map(Vec::len), Some(2), "{answer}");
    let error = call("guess").await.expect("no panic").expect_err("forged");
    let refusal: &Refusal = error.downcast_ref().expect("a refusal");
    assert_eq!(refusal.code, "AuthFailure");
    std::fs::remove_dir_all(&dir).expect("it is ours");
    manager.stop().await;
}

#[tokio::test]
async fn what_was_registered_is_durable() {
    let store = MemoryStore::default();
    let manager = start(&store, config()).await;
    let mut link = manager.link().await;
    say(&mut link, &register("node-a")).await;
    manager.until_nodes_up(1).await;
    let kept =
        |records: Vec<Record>| records.iter().any(|record| matches!(record, Record::Instance(_)));
    while !kept(commits::load(&store).expect("the records parse")) {
        manager.health().await;
    }
    manager.stop().await;
    let again = start(&store, config()).await;
    again.stop().await;
    assert!(kept(commits::load(&store).expect("the records parse")));
}

#[tokio::test]
async fn a_second_manager_on_the_store_ends_the_first() {
    let store = MemoryStore::default();
    let first = start(&store, config()).await;
    let second = start(&store, config()).await;
    // Something to commit. The first may have ended already, on what it had to commit itself.
    if let Ok(mut link) = TcpStream::connect(first.control).await {
        let _ = link.write_all(&ctl::encode(&register("node-a")).encode()).await;
        let _ = hear(&mut link).await;
    }
    let error = first.ended.await.expect("no panic").expect_err("it cannot commit");
    assert!(matches!(error.downcast_ref(), Some(StoreError::StaleTerm { .. })), "{error}");
    second.health().await;
    second.stop().await;
}

#[tokio::test]
async fn metrics_are_at_their_own_address_and_nothing_else_is() {
    let running = start(&MemoryStore::default(), config()).await;
    let metrics = running.get(running.metrics, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");
    let content_type = "\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n";
    assert!(metrics.contains(content_type), "{metrics}");
    assert!(metrics.contains("\npliant_groups 0\n"), "{metrics}");
    let other = running.get(running.metrics, "/v1/health").await;
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
    let by_customers = running.get(running.api, "/metrics").await;
    assert!(by_customers.starts_with("HTTP/1.1 404 "), "{by_customers}");
    running.stop().await;
}

#[tokio::test]
async fn a_store_of_another_cluster_is_refused() {
    let store = MemoryStore::default();
    start(&store, config()).await.stop().await;
    let mut other = config();
    other.cluster = "other".to_owned();
    let doors = doors(&other).await;
    let ended = serve(other, Box::new(store), doors, std::future::pending()).await;
    let error = ended.expect_err("the store is of cluster test");
    assert!(error.to_string().contains("belongs to cluster 'test'"), "{error}");
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_name() {
    let config = config();
    assert_eq!(config.store, Path::new("/etc/pliant/metadata.sqlite"));
    let check = |from: &str, to: &str, says: &str| {
        let text = CONFIG.replace(from, to);
        assert_ne!(text, CONFIG);
        let parsed = Config::parse(&text, Path::new(""));
        let error = format!("{:#}", parsed.err().expect(to));
        assert!(error.contains(says), "'{error}' does not say '{says}'");
    };
    check("cluster =", "clutser =", "clutser");
    check(r#"cluster = "test""#, r#"cluster = """#, "cluster is empty");
    check(r#""local-1b""#, r#""local-1a""#, "local-1a is listed twice");
    check(r#""local-1a", "local-1b""#, "", "0 zones");
    check("123456789012", "12", "12 decimal digits");
    check(r#""secret""#, r#""""#, "secret_key");
    check("127.0.0.1:0", "localhost", "socket address");
}
