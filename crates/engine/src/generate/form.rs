//! What an answer must look like: grammars of a request, and the machine of one choice.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use dataset::{CallForm, ChatTokenizer};
use domain::engine::{AnswerForm, CallChoice, CallRules};
use grammar::{Function, Grammar, Mask, Masks, Matcher, SchemaError, Strictness, Vocabulary};
use serde_json::Value;

/// A model's vocabulary, arranged when it is needed first.
#[derive(Debug, Clone, Default)]
pub struct Words(Rc<OnceCell<Vocabulary>>);

impl Words {
    fn of(&self, tokenizer: &ChatTokenizer) -> &Vocabulary {
        self.0.get_or_init(|| {
            let ids = 0..tokenizer.id_space() as u32;
            let tokens: Vec<_> = ids.map(|id| tokenizer.token_bytes(id)).collect();
            Vocabulary::new(&tokens)
        })
    }
}

/// The grammars of one request.
pub struct Grammars {
    /// Of the content, if it is not free.
    pub content: Option<Arc<Grammar>>,
    /// Of calls, if functions are there and calls are read.
    pub call: Option<Arc<Grammar>>,
    pub calls: Option<CallForm>,
    /// The names of the functions.
    pub names: Vec<String>,
    /// The answer must begin with a call.
    pub must_call: bool,
    pub parallel: bool,
}

impl Grammars {
    /// # Errors
    /// A schema that cannot be held to, where it must be.
    pub fn new(
        form: &AnswerForm,
        rules: &CallRules,
        tools: &[Value],
        calls: Option<CallForm>,
    ) -> Result<Self, SchemaError> {
        let calls = calls.filter(|_| !tools.is_empty());
        let functions = functions(tools, &rules.choice);
        let call = match &calls {
            Some(form) => {
                let grammar = Grammar::call(&functions, &form.arguments_key)?;
                let most = (!rules.parallel).then_some(1);
                Some(Arc::new(if form.list { grammar.listed(most) } else { grammar }))
            }
            None => None,
        };
        let must_call = call.is_some() && rules.choice != CallChoice::Auto;
        let content = match form {
            AnswerForm::Free => None,
            AnswerForm::Object => Some(Grammar::object()),
            AnswerForm::Schema { schema, strict } => {
                let strictness = if *strict { Strictness::Strict } else { Strictness::Lenient };
                Some(Grammar::of_schema(schema, strictness)?)
            }
        };
        // A call may come instead of the content.
        let mark = calls.as_ref().filter(|form| !form.open.is_empty() && form.open_token.is_none());
        let content = content.map(|content| match mark {
            Some(form) => content.or_text(&form.open),
            None => content,
        });
        let names = functions.iter().map(|function| function.name.to_owned()).collect();
        let parallel = rules.parallel;
        Ok(Self { content: content.map(Arc::new), call, calls, names, must_call, parallel })
    }
}

impl Grammars {
    /// Whether calls stand in a list.
    pub fn lists(&self) -> bool {
        self.calls.as_ref().is_some_and(|form| form.list)
    }

    /// What a model writes before a call.
    pub fn lead(&self) -> &str {
        let Some(form) = &self.calls else { return "" };
        // The list's bracket is the grammar's.
        if form.list { form.lead.trim_end().trim_end_matches('[') } else { &form.lead }
    }
}

/// The functions that may be called.
fn functions<'a>(tools: &'a [Value], choice: &CallChoice) -> Vec<Function<'a>> {
    let of = |tool: &'a Value| {
        let function = tool.get("function")?;
        let name = function.get("name")?.as_str()?;
        let parameters = function.get("parameters").filter(|schema| schema.is_object());
        let is_strict = function.get("strict") == Some(&Value::Bool(true));
        let strictness = if is_strict { Strictness::Strict } else { Strictness::Lenient };
        Some(Function { name, parameters, strictness })
    };
    let is_meant = |function: &Function<'_>| match choice {
        CallChoice::Named(name) => function.name == name,
        _ => true,
    };
    tools.iter().filter_map(of).filter(is_meant).collect()
}

/// Where one choice stands.
#[derive(Default)]
pub struct Form {
    matcher: Option<Matcher>,
    /// It is a call's.
    pub is_call: bool,
    masks: Masks,
}

impl Form {
    pub fn begin(grammar: Option<&Arc<Grammar>>, is_call: bool) -> Self {
        let matcher = grammar.map(|grammar| Matcher::new(grammar.clone()));
        Self { matcher, is_call, masks: Masks::default() }
    }

    /// Goes on with a call of which `text` is written; freely, when that is no call.
    pub fn enter_call(&mut self, grammar: Option<&Arc<Grammar>>, text: &str) {
        *self = Self::begin(grammar, true);
        if self.matcher.as_mut().is_some_and(|matcher| !matcher.advance(text.as_bytes())) {
            self.matcher = None;
        }
    }

    /// From here on anything may come.
    pub fn free(&mut self) {
        *self = Self::default();
    }

    pub fn advance(&mut self, bytes: Option<&[u8]>) {
        if let (Some(matcher), Some(bytes)) = (&mut self.matcher, bytes) {
            matcher.advance(bytes);
        }
    }

    /// Whether all is written that may be.
    pub fn is_over(&self) -> bool {
        self.matcher.as_ref().is_some_and(Matcher::is_over)
    }

    /// The tokens that may come next, with `ends` where the answer may end and `also` in any case; none where
    /// all may.
    pub fn mask(
        &mut self,
        words: &Words,
        tokenizer: &ChatTokenizer,
        ends: &[u32],
        also: Option<u32>,
    ) -> Option<Rc<Mask>> {
        let matcher = self.matcher.as_ref()?;
        let mut mask = self.masks.of(matcher, words.of(tokenizer));
        if matcher.may_end() {
            mask = Rc::new(mask.with(ends));
        }
        if let Some(token) = also {
            mask = Rc::new(mask.with(&[token]));
        }
        Some(mask)
    }
}
