//! Chat templates with the semantics that Hugging Face's transformers gives them.
//!
//! A template is somebody else's program, so it runs on a budget: instructions and data (fuel),
//! depth of recursion, and length of the output. It sees only the values that are passed in: no
//! files, no other templates, no environment.

mod json_filter;
mod python;

use std::error::Error as _;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};

use crate::error::TemplateError;

/// What one rendering may cost. One unit is about one instruction or 64 bytes of data, so this is a
/// dozen copies of the longest row, spent in well under a second. The one operation that costs more
/// than it pays for is a character of a string by its index: a malicious template can take seconds
/// with it, when it is also given a conversation of megabytes.
const FUEL: u64 = 1_000_000;
const MAX_RECURSION: usize = 64;
/// Longest rendered text in bytes: four of the longest rows.
pub(crate) const MAX_OUTPUT: usize = 16 << 20;
const NAME: &str = "chat_template";
/// The context variable that holds the moment `strftime_now` tells.
const NOW: &str = "__now";

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
}

/// What a template is rendered from.
pub(crate) struct Scene<'a> {
    pub messages: &'a [Value],
    /// None where there are none, as transformers passes it.
    pub tools: Option<Value>,
    pub add_generation_prompt: bool,
    /// `bos_token`, `eos_token` and the like.
    pub special_tokens: &'a [(String, String)],
    /// Seconds since 1970. Fixed for all renderings of one row, or their texts could differ.
    pub now: i64,
}

impl ChatTemplate {
    /// Compiles a template; the error says where the template is wrong.
    pub fn compile(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| error.to_string())?;
        environment.set_syntax(syntax);
        environment.set_debug(false);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(python::call_method);
        environment.add_filter("tojson", json_filter::tojson);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(|error| describe(&error))?;
        Ok(Self { environment })
    }

    pub fn render(&self, scene: &Scene<'_>) -> Result<String, TemplateError> {
        let mut context = vec![
            ("messages", Value::from(scene.messages)),
            ("tools", scene.tools.clone().unwrap_or_else(|| Value::from(()))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(scene.add_generation_prompt)),
            (NOW, Value::from(scene.now)),
        ];
        let tokens = scene.special_tokens.iter();
        context.extend(tokens.map(|(name, text)| (name.as_str(), Value::from(text))));
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TemplateError::Render(describe(&error)))?;
        let mut out = Capped { bytes: Vec::new(), over: false };
        let outcome = template.render_captured_to(Value::from_pairs(context), &mut out).map(|_| ());
        match outcome {
            _ if out.over => Err(TemplateError::OutputTooLong { limit: MAX_OUTPUT }),
            Err(error) => Err(classify(&error)),
            Ok(()) => {
                String::from_utf8(out.bytes).map_err(|e| TemplateError::Render(e.to_string()))
            }
        }
    }
}

/// Takes bytes up to [`MAX_OUTPUT`].
struct Capped {
    bytes: Vec<u8>,
    over: bool,
}

impl Write for &mut Capped {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + buffer.len() > MAX_OUTPUT {
            self.over = true;
            return Err(io::Error::other("output too long"));
        }
        self.bytes.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn classify(error: &minijinja::Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooExpensive;
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<python::Raised>() {
            return TemplateError::Raised(raised.0.clone());
        }
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::TooExpensive;
        }
        cause = inner.source();
    }
    TemplateError::Render(describe(error))
}

fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

/// `{% generation %}` … `{% endgeneration %}` is transformers' own extension, which marks what the
/// assistant says. It changes nothing in the text; the loss mask is found another way (`mask.rs`).
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let inner = &rest[start + 2..start + length];
        let word = inner.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start + 2]);
        match word {
            "generation" => out.push_str(&inner.replacen("generation", " if true ", 1)),
            "endgeneration" => out.push_str(&inner.replacen("endgeneration", " endif ", 1)),
            _ => out.push_str(inner),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn render(source: &str, messages: &[Value]) -> Result<String, TemplateError> {
        let scene = Scene {
            messages,
            tools: None,
            add_generation_prompt: true,
            special_tokens: &[("eos_token".to_owned(), "</s>".to_owned())],
            now: 0,
        };
        ChatTemplate::compile(source).unwrap().render(&scene)
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let source = "  {% if true %}\na\n  {% endif %}\nb{{ eos_token }}\n";
        assert_eq!(render(source, &[]).unwrap(), "a\nb</s>");
    }

    #[test]
    fn generation_blocks_leave_the_text_alone() {
        let source =
            "a {% generation %}b{%- endgeneration -%} c{%-generation-%} d {% endgeneration %}e";
        assert_eq!(render(source, &[]).unwrap(), "a bcd e");
    }

    #[test]
    fn a_template_can_refuse() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let error = render(source, &[]).unwrap_err();
        assert!(matches!(&error, TemplateError::Raised(text) if text == "roles must alternate"));
        let nested = "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}";
        assert!(matches!(render(nested, &[]).unwrap_err(), TemplateError::Raised(_)));
    }

    #[test]
    fn loop_controls_and_namespaces_work() {
        let source = "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 1 %}\
                      {% continue %}{% elif i == 4 %}{% break %}{% endif %}\
                      {% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}";
        assert_eq!(render(source, &[]).unwrap(), "5");
    }

    #[test]
    fn endless_templates_fail_within_a_second() {
        let content = Value::from("ab ".repeat(1 << 20));
        let message = Value::from_pairs([("content", content)]);
        let bombs = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
            "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}\
             {{ m(60) }}",
            "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99999) %}\
             {% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{% for i in range(99999) %}{{ 'x' * 1000000 }}{% endfor %}",
            "{% for i in range(99999) %}{{ messages[0].content.count('zz') }}{% endfor %}",
            "{% for i in range(99999) %}{% set x = messages[0].content.find('zz') %}{% endfor %}",
            "{% for i in range(9999) %}{% set x=messages[0].content.partition('z') %}{% endfor %}",
            "{% for i in range(99999) %}{% set x = messages[0].content | tojson %}{% endfor %}",
            "{% for i in range(99999) %}{% set x = 'zz' in messages[0].content %}{% endfor %}",
            "{% for i in range(99999) %}{% set x = messages[0].content.split('b') %}{% endfor %}",
            "{% for i in range(99999) %}{% set x = messages[0].content | length %}{% endfor %}",
        ];
        for source in bombs {
            let start = Instant::now();
            let error = render(source, std::slice::from_ref(&message)).map(|s| s.len());
            let took = start.elapsed();
            assert!(error.is_err(), "{source}: {error:?}");
            assert!(took < Duration::from_secs(1), "{source} took {took:?}: {error:?}");
        }
    }

    #[test]
    fn output_is_capped() {
        let source = "{% for i in range(40) %}{{ 'x' * 1000000 }}{% endfor %}";
        assert!(matches!(render(source, &[]), Err(TemplateError::OutputTooLong { .. })));
    }

    #[test]
    fn a_template_reaches_no_other_template() {
        for source in ["{% include 'x' %}", "{% import '/etc/passwd' as x %}"] {
            assert!(render(source, &[]).is_err());
        }
    }

    #[test]
    fn errors_name_the_line_of_the_template() {
        let Err(error) = ChatTemplate::compile("a\n{% if %}") else { panic!("must not compile") };
        assert!(error.contains("line 2"), "{error}");
        let error = render("a\n{{ 'a' + messages }}", &[]).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn deeply_nested_templates_are_refused_without_overflow() {
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(ChatTemplate::compile(&deep).is_err());
        let lists = format!("{{{{ {} }}}}", "[".repeat(100_000));
        assert!(ChatTemplate::compile(&lists).is_err());
    }
}
