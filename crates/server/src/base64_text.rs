//! A stream of bytes as base64 text, in constant memory.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::BoxStream;

/// A stream of bytes as base64 text.
pub(crate) struct Base64<E> {
    inner: BoxStream<'static, Result<Bytes, E>>,
    /// Bytes that do not fill a group of three yet.
    rest: BytesMut,
    has_ended: bool,
}

impl<E> Base64<E> {
    pub(crate) fn new(inner: BoxStream<'static, Result<Bytes, E>>) -> Self {
        Self { inner, rest: BytesMut::new(), has_ended: false }
    }
}

impl<E> Stream for Base64<E> {
    type Item = Result<Bytes, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.has_ended {
            match ready!(self.inner.as_mut().poll_next(cx)) {
                Some(Ok(chunk)) => {
                    self.rest.extend_from_slice(&chunk);
                    let whole = self.rest.len() / 3 * 3;
                    if whole > 0 {
                        let text = STANDARD.encode(self.rest.split_to(whole));
                        return Poll::Ready(Some(Ok(text.into())));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.has_ended = true;
                    if !self.rest.is_empty() {
                        let text = STANDARD.encode(self.rest.split());
                        return Poll::Ready(Some(Ok(text.into())));
                    }
                }
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, TryStreamExt, stream};

    #[tokio::test]
    async fn chunks_do_not_show_in_base64() {
        for size in [1, 2, 3, 4, 7] {
            let content = b"step,train_loss\n1,3.5\n";
            let chunks: Vec<_> =
                content.chunks(size).map(|c| Ok::<_, ()>(Bytes::copy_from_slice(c))).collect();
            let encoded = Base64::new(stream::iter(chunks).boxed());
            let text: BytesMut = encoded.try_collect::<Vec<_>>().await.unwrap().concat()[..].into();
            assert_eq!(STANDARD.decode(text).unwrap(), content);
        }
    }
}
