//! Who goes next: one thread takes commands and hands out turns.
//!
//! A turn is one token of an answer or one micro-batch of a run, so nothing waits longer than that
//! for its own. Answers go first, because somebody is waiting for them; a run still gets a turn
//! every [`RUN_WAITS_AT_MOST`]. Without work the thread sleeps on its channel. A turn that panics
//! ends its own run or answer and nothing else, unless the device itself is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dataset::ChatTokenizer;
use domain::engine::{Command, GenerateRequest, GenerationEvent, GenerationFailure, Reply};
use domain::id::JobId;
use domain::plan::TrainingPlan;
use domain::report::RunFailure;
use model::Decoder;

use crate::failure::{Fault, guard};
use crate::generate::{AdapterCache, Generation, Words, shared_turn};
use crate::protocol::{Input, Replies};
use crate::room::Room;
use crate::train::{Happened, Prepared, Run, admit, prepare};

/// Answers may keep a run waiting this long before it gets a micro-batch.
const RUN_WAITS_AT_MOST: Duration = Duration::from_secs(2);
/// Answers that take turns; further ones wait, so that the memory of their caches stays bounded.
const ANSWERS_AT_ONCE: usize = 8;
/// Adapters kept in memory for answers.
const ADAPTERS_KEPT: usize = 4;

/// Everything that one engine process is doing.
pub struct Scheduler<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Arc<ChatTokenizer>,
    room: Room,
    /// For the threads that prepare runs.
    inputs: Sender<Input>,
    replies: Replies,
    /// Runs whose data is being read, with the number of the attempt that counts.
    preparing: Vec<(JobId, u64)>,
    attempts: u64,
    /// The front one is next.
    runs: VecDeque<Run>,
    last_run_turn: Instant,
    generations: VecDeque<Generation<'a>>,
    adapters: AdapterCache,
    words: Words,
}

impl<'a> Scheduler<'a> {
    pub fn new(
        decoder: &'a Decoder,
        tokenizer: &'a Arc<ChatTokenizer>,
        room: Room,
        inputs: Sender<Input>,
        replies: Replies,
    ) -> Self {
        Self {
            decoder,
            tokenizer,
            room,
            inputs,
            replies,
            preparing: Vec::new(),
            attempts: 0,
            runs: VecDeque::new(),
            last_run_turn: Instant::now(),
            generations: VecDeque::new(),
            adapters: AdapterCache::new(ADAPTERS_KEPT),
            words: Words::default(),
        }
    }

    /// Works until the input ends.
    ///
    /// # Errors
    /// A device that is lost, and a worker that no longer reads: the process is of no more use.
    pub fn run(mut self, received: &Receiver<Input>) -> Result<()> {
        loop {
            let idle = self.runs.is_empty() && self.generations.is_empty();
            let input = if idle {
                Some(received.recv().context("the input thread ended")?)
            } else {
                match received.try_recv() {
                    Ok(input) => Some(input),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => bail!("the input thread ended"),
                }
            };
            match input {
                Some(Input::End) => return Ok(()),
                Some(input) => self.take(input)?,
                None if self.answers_go_first() => self.generation_turn()?,
                None => self.run_turn()?,
            }
        }
    }

    fn answers_go_first(&self) -> bool {
        let patient = self.runs.is_empty() || self.last_run_turn.elapsed() < RUN_WAITS_AT_MOST;
        !self.generations.is_empty() && patient
    }

    fn take(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Command(Command::Train { plan }) => self.begin_run(*plan),
            Input::Command(Command::StopRun { job_id, checkpoint }) => {
                self.stop_run(job_id, checkpoint)?;
            }
            Input::Command(Command::Generate { request }) => self.begin_generation(*request)?,
            Input::Command(Command::CancelGenerate { id }) => {
                self.generations.retain(|generation| generation.id() != id);
            }
            Input::Garbage { reason, answer } => {
                eprintln!("input ignored: {reason}");
                if let Some(reply) = answer {
                    self.replies.send(&reply)?;
                }
            }
            Input::Prepared { job_id, attempt, result } => {
                self.set_up_run(job_id, attempt, *result)?;
            }
            Input::End => {}
        }
        Ok(())
    }

    /// Reads a new run's data in a thread of its own. A second plan of a job replaces the first:
    /// the worker knows which lease is the valid one.
    fn begin_run(&mut self, plan: TrainingPlan) {
        let job_id = plan.job_id.clone();
        self.forget_run(&job_id);
        self.attempts += 1;
        let attempt = self.attempts;
        self.preparing.push((job_id.clone(), attempt));
        let (inputs, tokenizer) = (self.inputs.clone(), Arc::clone(self.tokenizer));
        let context_length = self.context_length();
        thread::spawn(move || {
            let result = guard(|| prepare(plan, &tokenizer, context_length))
                .unwrap_or_else(|fault| Err(RunFailure::from(&fault)));
            // Without a receiver the process is about to end.
            let _ = inputs.send(Input::Prepared { job_id, attempt, result: Box::new(result) });
        });
    }

    fn set_up_run(
        &mut self,
        job_id: JobId,
        attempt: u64,
        result: Result<Prepared, RunFailure>,
    ) -> Result<()> {
        let Some(at) = self.preparing.iter().position(|entry| *entry == (job_id.clone(), attempt))
        else {
            return Ok(());
        };
        self.preparing.swap_remove(at);
        let decoder = self.decoder;
        let free = self.room.free(decoder.device());
        let run = result.and_then(|mut prepared| {
            let made_smaller = match free {
                Some(free) => admit(&mut prepared, decoder, free)?,
                None => None,
            };
            let run = guard(|| Run::new(prepared, decoder))
                .unwrap_or_else(|fault| Err(RunFailure::from(&fault)))?;
            Ok((run, made_smaller))
        });
        match run {
            Ok((run, made_smaller)) => {
                self.runs.push_back(run);
                made_smaller.map_or(Ok(()), |warning| self.report(&job_id, warning))
            }
            Err(failure) => self.report(&job_id, Happened::Failed(failure)),
        }
    }

    fn stop_run(&mut self, job_id: JobId, checkpoint: bool) -> Result<()> {
        let active = self.runs.iter_mut().find(|run| *run.job_id() == job_id);
        match active {
            // It answers by itself, once its step is done.
            Some(run) if checkpoint => run.stop(),
            _ => {
                if !self.forget_run(&job_id) {
                    eprintln!("{job_id}: not active here, so there is nothing to stop");
                }
                self.replies.send(&Reply::RunStopped { job_id })?;
            }
        }
        Ok(())
    }

    /// Drops a run wherever it stands; true if there was one.
    fn forget_run(&mut self, job_id: &JobId) -> bool {
        let before = self.runs.len() + self.preparing.len();
        self.runs.retain(|run| run.job_id() != job_id);
        self.preparing.retain(|(preparing, _)| preparing != job_id);
        self.runs.len() + self.preparing.len() < before
    }

    fn run_turn(&mut self) -> Result<()> {
        let Some(mut run) = self.runs.pop_front() else { return Ok(()) };
        let turn = guard(|| run.turn(self.decoder));
        self.last_run_turn = Instant::now();
        let job_id = run.job_id().clone();
        match turn {
            Ok(happened) => {
                if !happened.last().is_some_and(Happened::ends_run) {
                    self.runs.push_back(run);
                }
                happened.into_iter().try_for_each(|event| self.report(&job_id, event))
            }
            Err(fault) => self.recover(run, &fault),
        }
    }

    /// After a panic in a run's turn: with less memory, or not at all.
    fn recover(&mut self, mut run: Run, fault: &Fault) -> Result<()> {
        let job_id = run.job_id().clone();
        if matches!(fault, Fault::OutOfMemory(_))
            && let Ok(Some(warning)) = guard(|| run.relieve())
        {
            self.runs.push_back(run);
            return self.report(&job_id, warning);
        }
        self.report(&job_id, Happened::Failed(RunFailure::from(fault)))?;
        still_usable(fault)
    }

    fn report(&mut self, job_id: &JobId, happened: Happened) -> Result<()> {
        let job_id = job_id.clone();
        let reply = match happened {
            Happened::Report(report) => Reply::Run { job_id, report },
            Happened::Checkpoint(checkpoint) => Reply::Checkpoint { job_id, checkpoint },
            Happened::Finished => Reply::RunFinished { job_id },
            Happened::Stopped => Reply::RunStopped { job_id },
            Happened::Failed(failure) => {
                eprintln!("{job_id}: failed: {}: {}", failure.code, failure.message);
                Reply::RunFailed { job_id, failure }
            }
        };
        Ok(self.replies.send(&reply)?)
    }

    fn begin_generation(&mut self, request: GenerateRequest) -> Result<()> {
        let id = request.id.clone();
        let (decoder, tokenizer, adapters) = (self.decoder, self.tokenizer, &mut self.adapters);
        let words = self.words.clone();
        let begun = guard(|| {
            let folder = request.adapter.as_deref();
            let adapter = folder.map(|folder| adapters.get(folder, decoder)).transpose()?;
            Generation::new(request, adapter, decoder, tokenizer, words)
        });
        match begun {
            Ok(Ok(generation)) => {
                self.generations.push_back(generation);
                Ok(())
            }
            Ok(Err(failure)) => self.tell(&id, GenerationEvent::Failed { failure }),
            Err(fault) => self.fail_generation(&id, &fault),
        }
    }

    fn generation_turn(&mut self) -> Result<()> {
        let Some(front) = self.generations.pop_front() else { return Ok(()) };
        let mut together = self.companions(&front);
        together.insert(0, front);
        if together.len() > 1
            && let Ok(told) = guard(|| shared_turn(&mut together, self.decoder))
        {
            return together
                .into_iter()
                .zip(told)
                .try_for_each(|(g, events)| self.pass_on(g, events));
        }
        // Alone, or each by itself after a fault, so that it ends only the answer that it is about.
        for mut generation in together {
            match guard(|| generation.turn(self.decoder)) {
                Ok(events) => self.pass_on(generation, events)?,
                Err(fault) => self.fail_generation(generation.id(), &fault)?,
            }
        }
        Ok(())
    }

    /// Takes out of the line those that can make their next token in one pass with `front`.
    fn companions(&mut self, front: &Generation<'a>) -> Vec<Generation<'a>> {
        let mut companions = Vec::new();
        if front.reads_tokens() {
            for index in (0..self.generations.len().min(ANSWERS_AT_ONCE - 1)).rev() {
                let other = &self.generations[index];
                if other.reads_tokens() && other.shares_weights(front) {
                    companions.extend(self.generations.remove(index));
                }
            }
            companions.reverse();
        }
        companions
    }

    /// Tells what an answer's turn led to, and lines it up again if it has not ended.
    fn pass_on(&mut self, generation: Generation<'a>, events: Vec<GenerationEvent>) -> Result<()> {
        let ends = |event: &GenerationEvent| {
            matches!(event, GenerationEvent::Done { .. } | GenerationEvent::Failed { .. })
        };
        let over = events.iter().any(ends);
        for event in events {
            self.tell(generation.id(), event)?;
        }
        if !over {
            // Behind the others that take turns, before those that wait.
            let at = self.generations.len().min(ANSWERS_AT_ONCE - 1);
            self.generations.insert(at, generation);
        }
        Ok(())
    }

    fn fail_generation(&mut self, id: &str, fault: &Fault) -> Result<()> {
        eprintln!("{id}: failed: {}", fault.message());
        let message = format!("The engine could not answer: {}", fault.message());
        let failure = GenerationFailure { code: "internal_error".to_owned(), message };
        self.tell(id, GenerationEvent::Failed { failure })?;
        still_usable(fault)
    }

    fn tell(&mut self, id: &str, event: GenerationEvent) -> Result<()> {
        Ok(self.replies.send(&Reply::Generation { id: id.to_owned(), event })?)
    }

    fn context_length(&self) -> u64 {
        self.decoder.spec().max_position_embeddings as u64
    }
}

/// A lost device poisons the process; the worker starts another and every run resumes from its
/// checkpoint.
fn still_usable(fault: &Fault) -> Result<()> {
    match fault {
        Fault::DeviceLost(_) => bail!("the device is lost: {}", fault.message()),
        Fault::OutOfMemory(_) | Fault::Internal(_) => Ok(()),
    }
}
