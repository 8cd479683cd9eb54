//! The network between importers and what they need: a TCP proxy that can be stalled, cut and
//! closed.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections stay, nothing gets through.
    Stalled,
    /// Connections end, new ones at once.
    Closed,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    mode: Mode,
    /// How often all connections were cut.
    cuts: u64,
}

/// Closed when dropped.
pub(super) struct Proxy {
    pub(super) port: u16,
    link: watch::Sender<Link>,
}

impl Proxy {
    /// Takes connections to a port of its own, on to `target`.
    pub(super) async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind a proxy")?;
        let port = listener.local_addr()?.port();
        let (link, seen) = watch::channel(Link { mode: Mode::Open, cuts: 0 });
        tokio::spawn(accept(listener, target, seen));
        Ok(Proxy { port, link })
    }

    pub(super) async fn stall(&self, span: Duration) {
        self.during(Mode::Stalled, span).await;
    }

    pub(super) async fn close(&self, span: Duration) {
        self.during(Mode::Closed, span).await;
    }

    pub(super) fn cut(&self) {
        self.link.send_modify(|link| link.cuts += 1);
    }

    async fn during(&self, mode: Mode, span: Duration) {
        self.link.send_modify(|link| link.mode = mode);
        tokio::time::sleep(span).await;
        self.link.send_modify(|link| link.mode = Mode::Open);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, mut link: watch::Receiver<Link>) {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            // The proxy was dropped.
            Err(_) = link.wait_for(|_| false) => return,
        };
        if let Ok((client, _)) = client
            && link.borrow().mode != Mode::Closed
        {
            tokio::spawn(serve(client, target, link.clone()));
        }
    }
}

async fn serve(client: TcpStream, target: SocketAddr, mut link: watch::Receiver<Link>) {
    let cuts = link.borrow().cuts;
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Small packets must not wait for acknowledgements here, since they do not without a proxy.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, link.clone()) => {}
        () = pump(from_server, to_client, link.clone()) => {}
        _ = link.wait_for(|link| link.cuts != cuts || link.mode == Mode::Closed) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut link: watch::Receiver<Link>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if link.wait_for(|link| link.mode != Mode::Stalled).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        Ok(address)
    }

    async fn says(stream: &mut TcpStream) -> Result<bool> {
        stream.write_all(b"x").await?;
        let mut answer = [0];
        let read = stream.read(&mut answer);
        Ok(tokio::time::timeout(Duration::from_millis(300), read)
            .await
            .is_ok_and(|read| matches!(read, Ok(1))))
    }

    #[tokio::test]
    async fn connections_are_stalled_cut_and_refused() -> Result<()> {
        let proxy = Proxy::start(echo().await?).await?;
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port));
        let mut stream = connect().await?;
        assert!(says(&mut stream).await?);
        let (_, answered) =
            tokio::join!(proxy.stall(Duration::from_millis(600)), says(&mut stream));
        assert!(!answered?, "nothing gets through while it is stalled");
        stream.read_exact(&mut [0]).await.context("what was stalled goes on")?;
        proxy.cut();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!says(&mut stream).await.unwrap_or(false), "a cut connection stays dead");
        assert!(says(&mut connect().await?).await?, "a new one works");
        let closed = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            says(&mut connect().await?).await
        };
        let (_, answered) = tokio::join!(proxy.close(Duration::from_millis(500)), closed);
        assert!(!answered.unwrap_or(false), "nobody answers while it is closed");
        assert!(says(&mut connect().await?).await?);
        Ok(())
    }
}
