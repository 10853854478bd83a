//! Requests to addresses that users have named. One client for all of them, which reaches public addresses and
//! what the operator has listed, and nothing else:
//!
//! - names are resolved here, and every address that comes out is looked at: the connection goes to one of those
//!   that were looked at, so a name that resolves differently the second time gains nothing;
//! - addresses that stand in a URL are looked at as well, in whatever notation;
//! - redirects are not followed, proxies of the environment not used, connections not kept;
//! - a request has an end in time, and of an answer no more than [`MAX_REPLY`] is read.

mod address;
mod allow;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Response, Url};

use self::allow::Allowed;
use crate::error::ErrorChain;

/// Bytes of an answer that are read; the rest is not waited for.
pub(crate) const MAX_REPLY: usize = 64 << 10;
/// How long an answer whose status is known may go on.
const DRAIN: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(10);

/// Why a request was not made, or not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum EgressError {
    #[error("it is no URL: {0}")]
    NoUrl(String),
    #[error("it must begin with https://")]
    NotHttps,
    #[error("it must not hold a user or a password")]
    Credentials,
    #[error("the address {0} is not a public one, and this server may not reach it")]
    Private(IpAddr),
    #[error("'{0}' has no public address, and this server may not reach those that it has")]
    PrivateName(String),
    #[error("there was no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Failed(String),
}

/// What of an answer matters to a sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub status: StatusCode,
    /// When the receiver wants to be asked again.
    pub retry_after: Option<Duration>,
}

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Egress {
    client: Client,
    allowed: Arc<Allowed>,
    timeout: Duration,
}

impl Egress {
    /// `allowed` lists names, addresses and networks that may be reached although they are not public.
    ///
    /// # Errors
    /// The entry that is none of these, or why there can be no client.
    pub(crate) fn new(allowed: &[String], timeout: Duration) -> Result<Self, String> {
        let allowed = Arc::new(Allowed::parse(allowed)?);
        let resolver = Resolver { allowed: allowed.clone() };
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT.min(timeout))
            .timeout(timeout)
            .dns_resolver(resolver)
            .build()
            .map_err(|error| ErrorChain(&error).to_string())?;
        Ok(Self { client, allowed, timeout })
    }

    /// Whether a URL may be called, as far as that can be said without resolving its name.
    pub(crate) fn check(&self, text: &str) -> Result<Url, EgressError> {
        let url = Url::parse(text).map_err(|error| EgressError::NoUrl(error.to_string()))?;
        let host = url.host_str().unwrap_or_default();
        let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let is_listed = match address {
            Some(address) => self.allowed.has_address(address),
            None => self.allowed.has_name(host),
        };
        match url.scheme() {
            "https" => {}
            "http" if is_listed => {}
            _ => return Err(EgressError::NotHttps),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EgressError::Credentials);
        }
        match address {
            Some(address) if !is_listed && !address::is_public(address) => {
                Err(EgressError::Private(address))
            }
            _ => Ok(url),
        }
    }

    /// Sends a body. Every answer with a status is a reply, whatever it says.
    pub(crate) async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Reply, EgressError> {
        let url = self.check(url)?;
        let request = self.client.post(url).headers(headers).body(body);
        let response = request.send().await.map_err(|error| self.explain(&error))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?, SystemTime::now()));
        // To be polite: a receiver that is cut off in its answer may take its work for failed.
        let _ = tokio::time::timeout(DRAIN, drain(response)).await;
        Ok(Reply { status, retry_after })
    }

    fn explain(&self, error: &reqwest::Error) -> EgressError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(refusal) = error.downcast_ref::<EgressError>() {
                return refusal.clone();
            }
            cause = error.source();
        }
        if error.is_timeout() {
            return EgressError::Timeout(self.timeout);
        }
        // The URL may be the user's secret; it is not repeated.
        let mut text = String::new();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text = error.to_string();
            cause = error.source();
        }
        EgressError::Failed(format!("the connection failed: {text}"))
    }
}

async fn drain(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > MAX_REPLY {
            return;
        }
    }
}

/// Seconds, or a date that lies ahead.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

/// The system's resolver, with every address that must not be reached taken out.
struct Resolver {
    allowed: Arc<Allowed>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.allowed.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let is_listed = allowed.has_name(name.as_str());
            let fit = |address: &SocketAddr| {
                let address = address.ip();
                is_listed || allowed.has_address(address) || address::is_public(address)
            };
            let fit: Vec<SocketAddr> = found.filter(fit).collect();
            if fit.is_empty() {
                return Err(EgressError::PrivateName(name.as_str().to_owned()).into());
            }
            Ok(Box::new(fit.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
