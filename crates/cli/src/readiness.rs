//! Asks our own server whether it is ready, so that "ready" is printed when it is true.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const POLL: Duration = Duration::from_millis(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Returns once `/readyz` answers 200.
pub async fn wait(mut address: SocketAddr, limit: Duration) -> Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let begin = Instant::now();
    let mut last = String::new();
    while begin.elapsed() < limit {
        match timeout(ANSWER_LIMIT, status_line(address)).await {
            Ok(Ok(line)) if line.contains(" 200") => return Ok(()),
            Ok(Ok(line)) => last = line,
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "no answer".into(),
        }
        sleep(POLL).await;
    }
    bail!("the server is not ready after {} s: {last}", limit.as_secs())
}

async fn status_line(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request after the other with these status lines.
    async fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn readiness_comes_with_the_first_200() {
        let address = server(&["503 Service Unavailable", "200 OK"]).await;
        wait(address, Duration::from_secs(30)).await.unwrap();
    }

    #[tokio::test]
    async fn giving_up_tells_the_last_answer() {
        let address = server(&["503 Service Unavailable"; 2]).await;
        let error = wait(address, Duration::from_millis(30)).await.unwrap_err().to_string();
        assert!(error.contains("503") || error.contains("refused"), "{error}");
    }
}
