//! LocalStack (S3, SNS, SQS, CloudFormation, …) and moto (Auto Scaling): Python programs that
//! speak AWS over HTTP and keep their state in memory.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weirgate_common::clock;

use super::ACCOUNT;
use crate::layout::{Port, create_folder};
use crate::process::{Child, Orphan, PidFiles, last_lines, log_to};
use crate::programs::forget_aws;
use crate::python::Python;

/// A cold machine needs about 15 s; this is for one under heavy load.
const START_MAX: Duration = Duration::from_secs(90);

/// What the data-plane stack and the programs call. LocalStack answers for nothing else.
const SERVICES: &str = "cloudformation,cloudwatch,iam,logs,s3,sns,sqs,sts";

/// Its own entry point, but for one thing: it reads times in CBOR, which is what the SDK speaks
/// with CloudWatch, as integers, while the SDK sends them with a fraction.
const LOCALSTACK_MAIN: &str = "
import datetime, runpy
from localstack.aws.protocol.parser import RequestParser
RequestParser._timestamp_unixtimestamp = staticmethod(
    lambda seconds: datetime.datetime.fromtimestamp(float(seconds), tz=datetime.timezone.utc))
runpy.run_module('localstack.runtime.main', run_name='__main__')
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LocalStack,
    Moto,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::LocalStack => "localstack",
            Kind::Moto => "moto",
        }
    }

    /// Answers 200 once requests are served.
    fn health(self) -> &'static str {
        match self {
            Kind::LocalStack => "/_localstack/health",
            Kind::Moto => "/moto-api/data.json",
        }
    }

    fn command(self, python: &Python, port: u16, folder: &Path) -> Command {
        let mut command = python.command();
        forget_aws(&mut command);
        let port = port.to_string();
        match self {
            Kind::LocalStack => command
                .args(["-c", LOCALSTACK_MAIN])
                .env("GATEWAY_LISTEN", format!("127.0.0.1:{port}"))
                // Queue URLs are made of these two: an address and a path need no DNS.
                .env("LOCALSTACK_HOST", format!("127.0.0.1:{port}"))
                .env("SQS_ENDPOINT_STRATEGY", "path")
                .env("FILESYSTEM_ROOT", folder)
                // In a container LocalStack would take itself for its own image, and write to
                // the root of the file system.
                .env("OVERRIDE_IN_DOCKER", "0")
                .env("SERVICES", SERVICES)
                .env("STRICT_SERVICE_LOADING", "1")
                .env("EAGER_SERVICE_LOADING", "0")
                .env("SKIP_SSL_CERT_DOWNLOAD", "1")
                .env("DISABLE_EVENTS", "1")
                .env("DNS_ADDRESS", "0")
                .env("LS_LOG", "warning"),
            Kind::Moto => command
                .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port])
                .env("MOTO_ACCOUNT_ID", ACCOUNT),
        };
        command
    }
}

/// A running emulator, on a port it keeps across restarts.
#[derive(Debug)]
pub struct Emulator {
    kind: Kind,
    python: Python,
    port: Port,
    folder: PathBuf,
    log: PathBuf,
    pids: PidFiles,
    child: Child,
}

impl Emulator {
    pub async fn start(kind: Kind, python: &Python, cache: &Path, world: &Path) -> Result<Self> {
        let port = Port::claim(cache)?;
        let folder = world.join(kind.name());
        create_folder(&folder)?;
        let log = world.join("logs").join(format!("{}.log", kind.name()));
        let pids = PidFiles::new(world);
        let child = spawn(kind, python, port.number, &folder, &log, &pids)?;
        let python = python.clone();
        let mut emulator = Self { kind, python, port, folder, log, pids, child };
        emulator.ready().await?;
        Ok(emulator)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number)
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.exited()
    }

    /// Ends it at once. Everything it held is lost.
    pub async fn kill(&mut self) {
        self.child.kill();
        self.child.finished().await;
    }

    /// A new, empty one at the same address.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill().await;
        let Self { kind, python, port, folder, log, pids, .. } = self;
        self.child = spawn(*kind, python, port.number, folder, log, pids)?;
        self.ready().await
    }

    /// There is no state to save, so nothing is gained by asking.
    pub async fn stop(mut self) {
        self.kill().await;
        self.pids.forget(self.kind.name());
    }

    async fn ready(&mut self) -> Result<()> {
        let name = self.kind.name();
        let deadline = clock::monotonic() + START_MAX;
        loop {
            if let Some(status) = self.child.exited() {
                bail!("{name} ended while starting: {status}\n{}", last_lines(&self.log, 15));
            }
            if answers(self.port.number, self.kind.health()).await {
                return Ok(());
            }
            if clock::monotonic() > deadline {
                bail!(
                    "{name} did not answer within {} s\n{}",
                    START_MAX.as_secs(),
                    last_lines(&self.log, 15)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn spawn(
    kind: Kind,
    python: &Python,
    port: u16,
    folder: &Path,
    log: &Path,
    pids: &PidFiles,
) -> Result<Child> {
    let mut command = kind.command(python, port, folder);
    command.current_dir(folder);
    log_to(&mut command, log)?;
    let child = Child::spawn(kind.name(), command, Orphan::Kill)?;
    pids.record(&child).with_context(|| format!("record the pid of {}", kind.name()))?;
    Ok(child)
}

/// Whether a GET is answered with 200. One request needs no HTTP library.
async fn answers(port: u16, path: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        std::io::Result::Ok(head)
    };
    match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(head)) => head.starts_with(b"HTTP/1.") && head.ends_with(b" 200"),
        Ok(Err(_)) | Err(_) => false,
    }
}
