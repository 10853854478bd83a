# The server: API, no libtorch, no GPU. Small, stateless; run as many as you like.
# NOT BUILT by the project's own tests, which have no Docker: read it before you rely on it.
#   docker build -f docker/server.Dockerfile -t finetuned-server .
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package cli

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home finetuned
COPY --from=build /source/target/release/finetuned /usr/local/bin/finetuned
USER finetuned
EXPOSE 8000
ENV FINETUNED_SERVER__LISTEN=0.0.0.0:8000
# A drain takes up to 35 s: give the container longer than that before it is killed.
STOPSIGNAL SIGTERM
ENTRYPOINT ["finetuned"]
CMD ["serve"]
