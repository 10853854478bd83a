use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

fn egress(allowed: &[&str]) -> Egress {
    // The first test to come installs it; the others find it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let allowed: Vec<String> = allowed.iter().map(|&entry| entry.to_owned()).collect();
    Egress::new(&allowed, TIMEOUT).unwrap()
}

/// Answers one request with these bytes, and gives what it was sent.
async fn receiver(answer: &'static str) -> (u16, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = connection.read(&mut request).await.unwrap();
        connection.write_all(answer.as_bytes()).await.unwrap();
        request.truncate(length);
        request
    });
    (port, asked)
}

async fn post(egress: &Egress, url: &str) -> Result<Reply, EgressError> {
    egress.post(url, HeaderMap::new(), b"{}".to_vec()).await
}

#[test]
fn urls_are_refused_for_their_scheme_their_password_or_their_address() {
    let egress = egress(&[]);
    let refusal = |url: &str| egress.check(url).unwrap_err().to_string();
    for url in ["http://example.com/", "ftp://example.com/", "file:///etc/passwd", "HTTP://1.1.1.1"]
    {
        assert_eq!(refusal(url), "it must begin with https://", "{url}");
    }
    assert!(refusal("https://u:p@example.com/").contains("password"));
    assert!(refusal("example.com/hook").contains("no URL"));
    for url in [
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://[::1]:5432/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://0/",
    ] {
        assert!(refusal(url).contains("is not a public one"), "{url}: {}", refusal(url));
    }
    egress.check("https://example.com:8443/hook?x=1").unwrap();
}

#[test]
fn plain_http_is_for_listed_hosts_alone() {
    let egress = egress(&["hooks.internal", "127.0.0.0/8"]);
    for url in ["http://hooks.internal/", "http://HOOKS.internal:80/", "http://127.0.0.1:9/"] {
        egress.check(url).unwrap();
    }
    for url in ["http://example.com/", "http://10.0.0.1/", "http://localhost/"] {
        assert!(matches!(egress.check(url), Err(EgressError::NotHttps)), "{url}");
    }
}

#[tokio::test]
async fn a_name_of_a_private_address_is_refused_when_it_is_resolved() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let refusal = post(&egress(&[]), &format!("https://localhost:{port}/")).await.unwrap_err();
    assert!(matches!(&refusal, EgressError::PrivateName(name) if name == "localhost"), "{refusal}");
    assert!(listener.accept().is_err(), "a connection was made");
}

#[tokio::test]
async fn a_listed_name_is_reached() {
    let (port, asked) = receiver("HTTP/1.1 204 No Content\r\n\r\n").await;
    let reply = post(&egress(&["localhost"]), &format!("http://localhost:{port}/x")).await.unwrap();
    assert_eq!(reply, Reply { status: StatusCode::NO_CONTENT, retry_after: None });
    let request = String::from_utf8(asked.await.unwrap()).unwrap();
    assert!(request.starts_with("POST /x HTTP/1.1\r\n"), "{request}");
}

#[tokio::test]
async fn a_name_whose_network_is_listed_is_let_through_by_the_resolver() {
    let resolver = |allowed: &[&str]| {
        let allowed: Vec<String> = allowed.iter().map(|&entry| entry.to_owned()).collect();
        Resolver { allowed: Arc::new(Allowed::parse(&allowed).unwrap()) }
    };
    let resolve = async |resolver: Resolver| resolver.resolve("localhost".parse().unwrap()).await;
    assert!(resolve(resolver(&[])).await.is_err());
    let found: Vec<SocketAddr> =
        resolve(resolver(&["127.0.0.0/8", "::1"])).await.unwrap().collect();
    assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()));
}

#[tokio::test]
async fn a_redirect_is_an_answer_like_others() {
    let to = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    let (port, _) = receiver(to).await;
    let reply = post(&egress(&["127.0.0.1"]), &format!("http://127.0.0.1:{port}/")).await.unwrap();
    assert_eq!(reply.status, StatusCode::FOUND);
}

#[test]
fn a_receiver_may_say_when_it_wants_to_be_asked_again() {
    let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    let read = |text: &str| retry_after(text, now).map(|time| time.as_secs());
    assert_eq!(read("120"), Some(120));
    assert_eq!(read(" Sun, 06 Nov 1994 08:50:37 GMT "), Some(60));
    assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), None);
    assert_eq!(read("soon"), None);
}
