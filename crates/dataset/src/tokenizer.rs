//! A model's tokenizer and chat template: conversations in, token ids out.
//!
//! Files are read once; the template is compiled once. Nothing here decides what a row may contain
//! (`row.rs`, `check.rs`) or which tokens are trained (`mask.rs`).

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::calls::{self, Calls};
use crate::chat;
use crate::control::{ControlTokens, Marks};
use crate::error::{LoadError, TemplateError};
use crate::mask::Header;
use crate::stream::{self, TextStream};
use crate::template::{ChatTemplate, Scene};
use crate::text::TextEnds;

/// The files of a tokenizer, as bytes.
#[derive(Debug, Clone, Copy)]
pub struct TokenizerParts<'a> {
    pub tokenizer_json: &'a [u8],
    pub tokenizer_config_json: Option<&'a [u8]>,
    /// The text of `chat_template.jinja`; it wins over `chat_template` of the configuration.
    pub chat_template: Option<&'a str>,
}

/// Tokenizer, special tokens and compiled chat template of one model. `Send + Sync`.
pub struct ChatTokenizer {
    pub(crate) tokenizer: Tokenizer,
    template: ChatTemplate,
    /// A second template for conversations with tools, which some models have.
    tool_template: Option<ChatTemplate>,
    pub(crate) special_tokens: Vec<(String, String)>,
    pub(crate) control: ControlTokens,
    pub(crate) special_ids: Vec<u32>,
    stop_ids: Vec<u32>,
    pub(crate) header: Header,
    pub(crate) text_ends: TextEnds,
    pub(crate) calls: Calls,
    /// Whether a token stands for bytes directly (GPT-2's scheme), as most vocabularies of today.
    pub(crate) byte_level: bool,
}

/// A conversation in the form that templates take.
pub(crate) struct Prepared {
    pub messages: Vec<minijinja::Value>,
    pub tools: Option<minijinja::Value>,
    pub now: i64,
}

impl ChatTokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and
    /// `generation_config.json` (all but the first may be missing) from a model folder.
    pub fn from_folder(dir: &Path) -> Result<Self, LoadError> {
        let optional = |name: &str| match std::fs::read(dir.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LoadError::Io { path: dir.join(name), source }),
        };
        let path = dir.join("tokenizer.json");
        let tokenizer = std::fs::read(&path).map_err(|source| LoadError::Io { path, source })?;
        let config = optional("tokenizer_config.json")?;
        let template = match optional("chat_template.jinja")? {
            None => None,
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|error| LoadError::Config {
                file: "chat_template.jinja",
                message: error.to_string(),
            })?),
        };
        let mut loaded = Self::from_parts(TokenizerParts {
            tokenizer_json: &tokenizer,
            tokenizer_config_json: config.as_deref(),
            chat_template: template.as_deref(),
        })?;
        if let Some(bytes) = optional("generation_config.json")? {
            let config = parse_config("generation_config.json", &bytes)?;
            let ids = match config.get("eos_token_id") {
                Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
                Some(id) => id.as_u64().into_iter().collect(),
                None => Vec::new(),
            };
            for id in ids {
                loaded.add_stop_id(u32::try_from(id).ok());
            }
        }
        Ok(loaded)
    }

    pub fn from_parts(parts: TokenizerParts<'_>) -> Result<Self, LoadError> {
        let mut tokenizer = Tokenizer::from_bytes(parts.tokenizer_json)
            .map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        let config = match parts.tokenizer_config_json {
            Some(bytes) => parse_config("tokenizer_config.json", bytes)?,
            None => Value::Null,
        };
        let (default, for_tools) = templates(parts.chat_template, &config)?;
        let compile = |source: &str| ChatTemplate::compile(source).map_err(LoadError::Template);
        let added = tokenizer.get_added_tokens_decoder();
        let special = || added.iter().filter(|(_, token)| token.special);
        let texts: Vec<String> = special().map(|(_, token)| token.content.clone()).collect();
        let mut special_ids: Vec<u32> = special().map(|(id, _)| *id).collect();
        special_ids.sort_unstable();
        let mut loaded = Self {
            template: compile(&default)?,
            tool_template: for_tools.as_deref().map(compile).transpose()?,
            special_tokens: special_tokens(&config),
            control: ControlTokens::new(&texts).map_err(LoadError::Tokenizer)?,
            special_ids,
            stop_ids: Vec::new(),
            header: Header::default(),
            text_ends: TextEnds::default(),
            calls: Calls::default(),
            byte_level: is_byte_level(&tokenizer),
            tokenizer,
        };
        loaded.learn_from_probe();
        let eos = loaded.special_tokens.iter().find(|(name, _)| name == "eos_token");
        let eos = eos.and_then(|(_, text)| loaded.tokenizer.token_to_id(text));
        loaded.add_stop_id(eos);
        if loaded.stop_ids.is_empty() {
            return Err(LoadError::NoEndOfTurn);
        }
        loaded.learn_text_ends(&config);
        loaded.learn_calls();
        Ok(loaded)
    }

    /// Renders a conversation as text.
    ///
    /// Special tokens that the messages spell are not told apart here; ids come from
    /// [`Self::encode_prompt`] and [`Self::encode_example`], which do.
    pub fn render(
        &self,
        messages: &[Value],
        tools: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let prepared = self.prepare(messages, tools)?;
        self.render_prepared(&prepared, prepared.messages.len(), add_generation_prompt)
    }

    /// The ids of a conversation with the header of the answer. Text of special tokens inside the
    /// messages stays plain text.
    pub fn encode_prompt(
        &self,
        messages: &[Value],
        tools: &[Value],
    ) -> Result<Vec<u32>, TemplateError> {
        self.encode_chat(messages, tools, true)
    }

    /// The ids of a whole conversation, as a training row has them. Text of special tokens inside the
    /// messages stays plain text.
    pub fn encode_conversation(
        &self,
        messages: &[Value],
        tools: &[Value],
    ) -> Result<Vec<u32>, TemplateError> {
        self.encode_chat(messages, tools, false)
    }

    fn encode_chat(
        &self,
        messages: &[Value],
        tools: &[Value],
        with_header: bool,
    ) -> Result<Vec<u32>, TemplateError> {
        let spelled = |list: &[Value]| list.iter().any(|v| self.control.find_in(v).is_some());
        if !spelled(messages) && !spelled(tools) {
            let text = self.render(messages, tools, with_header)?;
            return Ok(self.encode(&text)?.ids);
        }
        let marks = Marks::absent_from(&[messages, tools]).ok_or_else(|| {
            TemplateError::Render("the messages use up all private-use characters".to_owned())
        })?;
        let mark = |list: &[Value]| -> Vec<Value> {
            list.iter().map(|value| self.control.mark(value, marks)).collect()
        };
        let text = self.render(&mark(messages), &mark(tools), with_header)?;
        self.encode_marked(&text, marks)
    }

    /// The ids of a text by itself, without anything of the template around it.
    pub fn ids_of(&self, text: &str) -> Result<Vec<u32>, TemplateError> {
        Ok(self.encode(text)?.ids)
    }

    /// The ids that end an assistant's turn; the template's own end-of-turn token comes first.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// A stream that turns generated ids into text piece by piece.
    pub fn text_stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// The same for text that goes on after these ids.
    pub fn text_stream_after(&self, ids: &[u32]) -> TextStream<'_> {
        TextStream::after(self, ids)
    }

    /// The bytes that a token stands for; none for special tokens and ids that are no token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        stream::token_bytes(self, id)
    }

    /// The same, and for special tokens what they are called.
    pub fn token_text(&self, id: u32) -> Vec<u8> {
        let name = || self.tokenizer.id_to_token(id).unwrap_or_default().into_bytes();
        self.token_bytes(id).unwrap_or_else(name)
    }

    /// The ids of a text that a model shall go on with: as training has it, special tokens that it spells
    /// included. And how many ids the tokenizer puts before the text.
    pub fn encode_text_prompt(&self, text: &str) -> Result<(Vec<u32>, usize), TemplateError> {
        let mut ids = self.text_ends.start.clone();
        let own = ids.len();
        ids.extend(self.encode(text)?.ids);
        Ok((ids, own))
    }

    /// The token that ends texts.
    pub fn end_of_text(&self) -> u32 {
        self.text_ends.end
    }

    /// Ids that a vocabulary has room for: one more than the highest.
    pub fn id_space(&self) -> usize {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.text_stream();
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.finish());
        text
    }

    /// Tokens in the vocabulary, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    pub(crate) fn add_stop_id(&mut self, id: Option<u32>) {
        if let Some(id) = id
            && !self.stop_ids.contains(&id)
        {
            self.stop_ids.push(id);
        }
    }

    pub(crate) fn prepare(
        &self,
        messages: &[Value],
        tools: &[Value],
    ) -> Result<Prepared, TemplateError> {
        if messages.is_empty() {
            return Err(TemplateError::Empty);
        }
        let plain = messages.iter().enumerate().map(|(at, m)| chat::for_template(at, m));
        let mut plain = plain.collect::<Result<Vec<_>, _>>()?;
        let ours = self.writes_calls(&plain, tools);
        if ours {
            calls::in_content(&mut plain, tools);
        } else if self.needs_short_ids() {
            plain.iter_mut().for_each(chat::shorten_ids);
        }
        let for_tools = !tools.is_empty() && !ours;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Ok(Prepared {
            messages: plain.iter().map(chat::template_value).collect(),
            tools: for_tools.then(|| tools.iter().map(chat::template_value).collect()),
            now: i64::try_from(now).unwrap_or(0),
        })
    }

    /// Renders the first `count` messages.
    pub(crate) fn render_prepared(
        &self,
        prepared: &Prepared,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let template = match &self.tool_template {
            Some(template) if prepared.tools.is_some() => template,
            _ => &self.template,
        };
        template.render(&Scene {
            messages: &prepared.messages[..count],
            tools: prepared.tools.clone(),
            add_generation_prompt,
            special_tokens: &self.special_tokens,
            now: prepared.now,
        })
    }
}

fn parse_config(file: &'static str, bytes: &[u8]) -> Result<Value, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LoadError::Config { file, message: error.to_string() })
}

/// The default template, and the one for tools if there is one.
fn templates(
    own_file: Option<&str>,
    config: &Value,
) -> Result<(String, Option<String>), LoadError> {
    if let Some(source) = own_file.filter(|source| !source.trim().is_empty()) {
        return Ok((source.to_owned(), None));
    }
    match config.get("chat_template") {
        Some(Value::String(source)) => Ok((source.clone(), None)),
        Some(Value::Array(list)) => {
            let named = |wanted: &str| {
                let found = list
                    .iter()
                    .find(|entry| entry.get("name").and_then(Value::as_str) == Some(wanted))?;
                Some(found.get("template")?.as_str()?.to_owned())
            };
            Ok((named("default").ok_or(LoadError::NoChatTemplate)?, named("tool_use")))
        }
        _ => Err(LoadError::NoChatTemplate),
    }
}

/// `bos_token` and the like, given as text or as an object with `content`.
fn special_tokens(config: &Value) -> Vec<(String, String)> {
    const NAMES: [&str; 7] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    ];
    let text = |name: &str| {
        let value = config.get(name)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    };
    NAMES.iter().filter_map(|name| Some(((*name).to_owned(), text(name)?.to_owned()))).collect()
}

fn is_byte_level(tokenizer: &Tokenizer) -> bool {
    tokenizer
        .get_decoder()
        .is_some_and(|decoder| matches!(decoder, tokenizers::DecoderWrapper::ByteLevel(_)))
}
