//! The store against a real Postgres (`DATABASE_URL`), a real folder and a real S3 server.

mod blobs;
mod common;
mod database;
mod evals;
mod jobs;
mod leases;
mod objects;
mod runs;
mod schema;
mod transitions;
mod uploads;
mod webhooks;
