# The worker and its engine, with libtorch. On a machine with the NVIDIA container run-time and
# `--build-arg LIBTORCH_SET=--cuda` it uses the GPUs, otherwise the CPU.
# NOT BUILT by the project's own tests, which have no Docker: read it before you rely on it.
#   docker build -f docker/worker.Dockerfile -t finetuned-worker .
FROM rust:1.95-bookworm AS build
ARG LIBTORCH_SET=
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-pip postgresql \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN cargo xtask setup ${LIBTORCH_SET}
RUN cargo build --release --locked --package cli --package engine --bins

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 libstdc++6 util-linux \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --home-dir /var/lib/finetuned finetuned
# libtorch finds the NVIDIA libraries by a path relative to its own: keep the two folders side by side.
COPY --from=build /source/.deps/torch /usr/local/lib/finetuned/torch
COPY --from=build /source/.deps/nvidia /usr/local/lib/finetuned/nvidia
COPY --from=build /source/target/release/finetuned /source/target/release/finetuned-engine \
    /usr/local/bin/
ENV LIBTORCH=/usr/local/lib/finetuned/torch \
    FINETUNED_WORKER__WORK_DIR=/var/lib/finetuned/worker
USER finetuned
VOLUME /var/lib/finetuned
# A drain writes a checkpoint first: allow 180 s before the container is killed.
STOPSIGNAL SIGTERM
ENTRYPOINT ["finetuned"]
CMD ["work"]
