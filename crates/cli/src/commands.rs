//! One file per command.

pub mod config;
pub mod data;
pub mod doctor;
pub mod estimate;
pub mod grade_python;
pub mod jobs;
pub mod keys;
pub mod migrate;
pub mod models;
pub mod postgres;
pub mod projects;
pub mod run_guarded;
pub mod serve;
pub mod up;
pub mod work;
