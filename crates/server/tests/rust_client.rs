//! The API through async-openai, whose types are strict: an answer that lacks a key, or has one of another type, fails
//! here. Jobs and questions are answered by scripted workers. Evaluations are left out: version 0.43 cannot read any, nor
//! OpenAI's own (its type of `data_source_config` asks for the key `type` twice).

mod common;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::InputSource;
use async_openai::types::chat::{
    ChatCompletionRequestUserMessageArgs, CreateChatCompletionRequest,
    CreateChatCompletionRequestArgs,
};
use async_openai::types::completions::CreateCompletionRequestArgs;
use async_openai::types::files::{CreateFileRequest, FileInput, FilePurpose};
use async_openai::types::finetuning::{
    CreateFineTuningCheckpointPermissionRequest, CreateFineTuningJobRequest, FineTuneMethod,
    FineTuneSupervisedMethod, FineTuningJobStatus,
};
use async_openai::types::uploads::{
    AddUploadPartRequest, CompleteUploadRequest, CreateUploadRequest, UploadPurpose, UploadStatus,
};
use common::answering::{Answering, DONE, take};
use common::worker::{Worker, metrics};
use common::{KEY, MODEL, TestServer, rows, until};
use domain::engine::{FinishReason, GenerationEvent};
use domain::report::{CheckpointKind, StepMetrics};
use futures::StreamExt;
use serde_json::json;
use store::projects;

async fn start() -> (TestServer, Client<OpenAIConfig>) {
    let server = TestServer::start().await.with_model().await;
    let config = OpenAIConfig::new().with_api_base(format!("{}/v1", server.base)).with_api_key(KEY);
    let client = Client::with_config(config).with_http_client(server.http.clone());
    (server, client)
}

fn input(content: Vec<u8>) -> InputSource {
    InputSource::VecU8 { filename: "rows.jsonl".to_owned(), vec: content }
}

async fn file(client: &Client<OpenAIConfig>, content: Vec<u8>, purpose: FilePurpose) -> String {
    let file = FileInput { source: input(content) };
    let request = CreateFileRequest { file, purpose, expires_after: None };
    client.files().create(request).await.unwrap().id
}

#[tokio::test]
async fn files_come_whole_and_in_parts() {
    let (_server, client) = start().await;
    let id = file(&client, rows(12), FilePurpose::FineTune).await;
    let shown = client.files().retrieve(&id).await.unwrap();
    assert_eq!(shown.bytes.map(|bytes| bytes as usize), Some(rows(12).len()));
    assert_eq!(client.files().content(&id).await.unwrap(), rows(12));
    assert_eq!(client.files().list().await.unwrap().data.len(), 1);
    assert!(client.files().delete(&id).await.unwrap().deleted);

    let new = || CreateUploadRequest {
        filename: "rows.jsonl".to_owned(),
        purpose: UploadPurpose::FineTune,
        bytes: rows(12).len() as u64,
        mime_type: "application/jsonl".to_owned(),
        expires_after: None,
    };
    let upload = client.uploads().create(new()).await.unwrap();
    let part = AddUploadPartRequest { data: input(rows(12)) };
    let part = client.uploads().add_part(&upload.id, part).await.unwrap();
    let complete = CompleteUploadRequest { part_ids: vec![part.id], md5: None };
    let completed = client.uploads().complete(&upload.id, complete).await.unwrap();
    assert!(matches!(completed.status, UploadStatus::Completed));
    let content = client.files().content(&completed.file.unwrap().id).await.unwrap();
    assert_eq!(content, rows(12));
    let upload = client.uploads().create(new()).await.unwrap();
    let cancelled = client.uploads().cancel(&upload.id).await.unwrap();
    assert!(matches!(cancelled.status, UploadStatus::Cancelled));
}

#[tokio::test]
async fn a_job_ends_in_a_model_that_others_may_use() {
    let (server, client) = start().await;
    let jobs = client.fine_tuning();
    let training_file = file(&client, rows(12), FilePurpose::FineTune).await;
    let supervised = FineTuneSupervisedMethod::default();
    let request = CreateFineTuningJobRequest {
        model: MODEL.to_owned(),
        training_file,
        method: Some(FineTuneMethod::Supervised { supervised }),
        seed: Some(1),
        ..CreateFineTuningJobRequest::default()
    };
    let paused = jobs.create(request.clone()).await.unwrap().id;
    server.job_when(&paused, "queued").await;
    assert_eq!(jobs.pause(&paused).await.unwrap().status, FineTuningJobStatus::Paused);
    assert_eq!(jobs.resume(&paused).await.unwrap().status, FineTuningJobStatus::Queued);
    assert_eq!(jobs.cancel(&paused).await.unwrap().status, FineTuningJobStatus::Cancelled);

    let id = jobs.create(request).await.unwrap().id;
    let run = Worker::of(&server).claim(20).await.expect("a job waits");
    // The client takes checkpoints of jobs with a validation file alone.
    let (loss, accuracy) = (Some(0.6), Some(0.4));
    let measured = StepMetrics {
        valid_loss: loss,
        valid_mean_token_accuracy: accuracy,
        full_valid_loss: loss,
        full_valid_mean_token_accuracy: accuracy,
        ..metrics(4, 4)
    };
    let last = run.checkpoint(CheckpointKind::Final, &measured).await;
    run.post("/finish", &json!({"checkpoint_id": last, "trained_tokens": 120})).await;
    let job = jobs.retrieve(&id).await.unwrap();
    assert_eq!(job.status, FineTuningJobStatus::Succeeded);
    let model = job.fine_tuned_model.unwrap();
    assert_eq!(jobs.list_paginated().await.unwrap().data.len(), 2);
    assert!(!jobs.list_events(&id).await.unwrap().data.is_empty());
    let checkpoints = jobs.list_checkpoints(&id).await.unwrap().data;
    assert_eq!(checkpoints[0].fine_tuned_model_checkpoint, model);

    let (db, project) = (&server.data.store.db, &server.data.project);
    let other = projects::create(db, project, "Other").await.unwrap().id.to_string();
    let request = CreateFineTuningCheckpointPermissionRequest { project_ids: vec![other.clone()] };
    let given = jobs.create_checkpoint_permissions(&model, request).await.unwrap().data;
    assert_eq!(given[0].project_id, other);
    let listed = jobs.list_checkpoint_permissions(&model).await.unwrap().data;
    assert_eq!(listed[0].id, given[0].id);
    let gone = jobs.delete_checkpoint_permissions(&model, &given[0].id).await.unwrap();
    assert!(gone.deleted);

    let names = client.models().list().await.unwrap().data;
    assert!(names.iter().any(|listed| listed.id == model), "{names:?}");
    assert_eq!(client.models().retrieve(&model).await.unwrap().id, model);
    assert!(client.models().delete(&model).await.unwrap().deleted);
}

fn chat() -> CreateChatCompletionRequest {
    let message = ChatCompletionRequestUserMessageArgs::default().content("hi").build().unwrap();
    CreateChatCompletionRequestArgs::default()
        .model(MODEL)
        .messages([message.into()])
        .store(true)
        .build()
        .unwrap()
}

/// Answers the next question with "Hello".
async fn say_hello(server: &TestServer) {
    let task = take(server).await;
    let answering = Answering::open(server, &task);
    answering.send(GenerationEvent::Started { prompt_tokens: 7 }).await;
    for text in ["Hel", "lo"] {
        let (text, logprobs) = (text.to_owned(), Vec::new());
        answering.send(GenerationEvent::Delta { index: 0, text, logprobs }).await;
    }
    let reason = FinishReason::Stop;
    answering.send(GenerationEvent::Finished { index: 0, reason }).await;
    answering.send(DONE).await;
    answering.end().await;
}

#[tokio::test]
async fn models_answer_whole_and_streamed_and_are_kept() {
    let (server, client) = start().await;
    let chats = client.chat();
    let (answer, ()) = tokio::join!(chats.create(chat()), say_hello(&server));
    let answer = answer.unwrap();
    assert_eq!(answer.choices[0].message.content.as_deref(), Some("Hello"));

    let streaming = async {
        let mut stream = chats.create_stream(chat()).await.unwrap();
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            for choice in chunk.unwrap().choices {
                text += choice.delta.content.as_deref().unwrap_or_default();
            }
        }
        text
    };
    let (text, ()) = tokio::join!(streaming, say_hello(&server));
    assert_eq!(text, "Hello");

    let completion =
        CreateCompletionRequestArgs::default().model(MODEL).prompt("Say").build().unwrap();
    let completions = client.completions();
    let (completion, ()) = tokio::join!(completions.create(completion), say_hello(&server));
    assert_eq!(completion.unwrap().choices[0].text, "Hello");

    let kept =
        until("the completion is kept", async || chats.retrieve(&answer.id).await.ok()).await;
    assert_eq!(kept.id, answer.id);
    assert!(!chats.messages(&answer.id).await.unwrap().data.is_empty());
    assert!(chats.list().await.unwrap().data.iter().any(|one| one.id == answer.id));
    assert!(chats.delete(&answer.id).await.unwrap().deleted);
}

#[tokio::test]
async fn errors_arrive_with_their_field() {
    let (_server, client) = start().await;
    let error = client.fine_tuning().retrieve("ftjob-unknown").await.unwrap_err();
    let OpenAIError::ApiError(error) = error else { panic!("{error:?}") };
    let words = format!("{error:?}");
    assert!(words.contains("fine_tune_not_found") && words.contains("ftjob-unknown"), "{words}");
}
