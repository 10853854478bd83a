//! A request's functions and what is to be done with them, checked; what OpenAI called functions before
//! becomes tools.

use domain::engine::{CallChoice, CallRules};
use grammar::{Function, Grammar, Strictness};
use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::wire::completion::CreateCompletion;

const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;
const CHOICES: [&str; 3] = ["none", "auto", "required"];

/// What the engine is told about functions.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tooling {
    pub tools: Vec<Value>,
    pub rules: CallRules,
    /// The request speaks of functions, so the answer does.
    pub is_legacy: bool,
}

pub(crate) fn tooling(request: &CreateCompletion) -> ApiResult<Tooling> {
    let is_legacy = request.tools.is_none() && request.functions.is_some();
    let (mut tools, choice, choice_name) = match (&request.tools, &request.functions) {
        (Some(tools), _) => (checked(tools, "tools")?, request.tool_choice.as_ref(), "tool_choice"),
        (None, Some(functions)) => {
            let wrapped: Vec<Value> = functions
                .iter()
                .map(|function| json!({"type": "function", "function": function}))
                .collect();
            (checked(&wrapped, "functions")?, request.function_call.as_ref(), "function_call")
        }
        (None, None) => (Vec::new(), request.tool_choice.as_ref(), "tool_choice"),
    };
    let parallel = request.parallel_tool_calls.unwrap_or(true) && !is_legacy;
    let choice = match choice {
        None | Some(Value::Null) => Some(CallChoice::Auto),
        Some(Value::String(word)) if word == "none" || word == "auto" => {
            (word == "auto").then_some(CallChoice::Auto)
        }
        Some(_) if tools.is_empty() => {
            let message = format!(
                "Invalid value for '{choice_name}': it is only allowed when functions are given."
            );
            return Err(ApiError::invalid_value(choice_name, message));
        }
        Some(given) => Some(chosen(given, choice_name, &mut tools)?),
    };
    // A model that sees no functions calls none.
    let Some(choice) = choice else { return Ok(Tooling { is_legacy, ..Tooling::default() }) };
    Ok(Tooling { tools, rules: CallRules { choice, parallel }, is_legacy })
}

/// A choice that is more than a word for "as you like"; may leave fewer tools.
fn chosen(choice: &Value, param: &str, tools: &mut Vec<Value>) -> ApiResult<CallChoice> {
    let fields = match choice {
        Value::String(word) if word == "required" => return Ok(CallChoice::Required),
        Value::String(word) => return Err(ApiError::unsupported_value(param, word, &CHOICES)),
        Value::Object(fields) => fields,
        other => {
            let expected = "one of a string or an object";
            return Err(ApiError::invalid_type(param, expected, type_words(other)));
        }
    };
    match fields.get("type").and_then(Value::as_str) {
        Some("allowed_tools") => {
            // The SDK's types nest the rest; the documentation once did not.
            let inner = fields.get("allowed_tools").and_then(Value::as_object).unwrap_or(fields);
            let allowed = inner.get("tools").and_then(Value::as_array);
            let allowed: Vec<&str> = allowed.into_iter().flatten().filter_map(name_of).collect();
            tools.retain(|tool| name_of(tool).is_some_and(|name| allowed.contains(&name)));
            match inner.get("mode").and_then(Value::as_str) {
                Some("required") if !tools.is_empty() => Ok(CallChoice::Required),
                _ => Ok(CallChoice::Auto),
            }
        }
        None | Some("function") => {
            let function = fields.get("function").and_then(Value::as_object).unwrap_or(fields);
            let name = function.get("name").and_then(Value::as_str);
            let name = name.ok_or_else(|| ApiError::missing(format!("{param}.function.name")))?;
            if !tools.iter().any(|tool| name_of(tool) == Some(name)) {
                let message = format!(
                    "Invalid value for '{param}': there is no function '{name}' in the request."
                );
                return Err(ApiError::invalid_value(param, message));
            }
            Ok(CallChoice::Named(name.to_owned()))
        }
        Some(other) => {
            let supported = ["function", "allowed_tools"];
            Err(ApiError::unsupported_value(format!("{param}.type"), other, &supported))
        }
    }
}

fn name_of(tool: &Value) -> Option<&str> {
    tool.get("function").unwrap_or(tool).get("name")?.as_str()
}

fn checked(tools: &[Value], param: &str) -> ApiResult<Vec<Value>> {
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::Parameter {
            code: Some("array_above_max_length"),
            param: param.to_owned(),
            message: format!(
                "Invalid '{param}': array too long. Expected an array with maximum length \
                 {MAX_TOOLS}, but got an array with length {} instead.",
                tools.len()
            ),
        });
    }
    for (index, tool) in tools.iter().enumerate() {
        check(tool, &format!("{param}[{index}]"), param == "tools")?;
    }
    Ok(tools.to_vec())
}

fn check(tool: &Value, path: &str, is_tool: bool) -> ApiResult<()> {
    let Some(fields) = tool.as_object() else {
        return Err(ApiError::invalid_type(path, "an object", type_words(tool)));
    };
    match fields.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(other) => {
            return Err(ApiError::unsupported_value(format!("{path}.type"), other, &["function"]));
        }
        None => return Err(ApiError::missing(format!("{path}.type"))),
    }
    let inner = if is_tool { format!("{path}.function") } else { path.to_owned() };
    let function = fields.get("function").ok_or_else(|| ApiError::missing(inner.as_str()))?;
    let Some(function) = function.as_object() else {
        return Err(ApiError::invalid_type(inner, "an object", type_words(function)));
    };
    let name_path = format!("{inner}.name");
    let name = match function.get("name") {
        None => return Err(ApiError::missing(name_path)),
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(ApiError::invalid_type(name_path, "a string", type_words(other)));
        }
    };
    if name.len() > MAX_NAME {
        return Err(ApiError::too_long(&name_path, MAX_NAME, name.len()));
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || !name.chars().all(is_plain) {
        let message = format!(
            "Invalid '{name_path}': string does not match pattern. Expected a string that matches \
             the pattern '^[a-zA-Z0-9_-]+$'."
        );
        return Err(ApiError::invalid_value(name_path, message));
    }
    let parameters = function.get("parameters").filter(|schema| !schema.is_null());
    if let Some(other) = parameters.filter(|schema| !schema.is_object()) {
        let path = format!("{inner}.parameters");
        return Err(ApiError::invalid_type(path, "an object", type_words(other)));
    }
    let is_strict = function.get("strict") == Some(&Value::Bool(true));
    let strictness = if is_strict { Strictness::Strict } else { Strictness::Lenient };
    let call = Function { name, parameters, strictness };
    Grammar::call(&[call], "arguments").map(|_| ()).map_err(|error| {
        let path = format!("{inner}.parameters");
        let message = format!(
            "Invalid schema for function '{name}': {error}, at '{}' of the parameters.",
            error.path
        );
        ApiError::invalid_value(path, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: Value) -> ApiResult<Tooling> {
        let mut body = body;
        body["model"] = "m".into();
        body["messages"] = json!([]);
        tooling(&serde_json::from_value(body).unwrap())
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn choices_become_rules() {
        let tools = json!([tool("a"), tool("b")]);
        let with = |choice: Value| of(json!({"tools": tools, "tool_choice": choice})).unwrap();
        assert_eq!(with(json!("auto")).rules, CallRules::default());
        assert_eq!(with(json!("none")).tools, Vec::<Value>::new());
        assert_eq!(with(json!("required")).rules.choice, CallChoice::Required);
        let named = with(json!({"type": "function", "function": {"name": "b"}}));
        assert_eq!(named.rules.choice, CallChoice::Named("b".to_owned()));
        let allowed = with(json!({"type": "allowed_tools", "allowed_tools":
            {"mode": "required", "tools": [{"type": "function", "function": {"name": "a"}}]}}));
        assert_eq!((allowed.tools.len(), allowed.rules.choice), (1, CallChoice::Required));
        let one = of(json!({"tools": tools, "parallel_tool_calls": false})).unwrap();
        assert!(!one.rules.parallel);
        assert_eq!(of(json!({})).unwrap(), Tooling::default());
    }

    #[test]
    fn functions_of_old_become_tools() {
        let body = json!({"functions": [{"name": "f"}], "function_call": {"name": "f"}});
        let tooling = of(body).unwrap();
        assert_eq!(tooling.tools, [json!({"type": "function", "function": {"name": "f"}})]);
        assert_eq!(tooling.rules.choice, CallChoice::Named("f".to_owned()));
        assert!(tooling.is_legacy && !tooling.rules.parallel);
        assert!(
            of(json!({"functions": [{"name": "f"}], "function_call": "none"}))
                .unwrap()
                .tools
                .is_empty()
        );
    }

    #[test]
    fn faulty_tools_are_refused_by_path() {
        let strict = json!({"type": "function", "function": {"name": "f", "strict": true,
            "parameters": {"type": "object", "properties": {"x": {"type": "string", "format": "date"}}}}});
        for (body, code, param) in [
            (json!({"tools": [{"type": "custom"}]}), "invalid_value", "tools[0].type"),
            (
                json!({"tools": [{"type": "function"}]}),
                "missing_required_parameter",
                "tools[0].function",
            ),
            (json!({"tools": [tool("a b")]}), "invalid_value", "tools[0].function.name"),
            (
                json!({"tools": [tool(&"a".repeat(65))]}),
                "string_above_max_length",
                "tools[0].function.name",
            ),
            (json!({"functions": [{}]}), "missing_required_parameter", "functions[0].name"),
            (json!({"tools": [strict]}), "invalid_value", "tools[0].function.parameters"),
            (json!({"tool_choice": "required"}), "invalid_value", "tool_choice"),
            (json!({"tools": [tool("a")], "tool_choice": "must"}), "invalid_value", "tool_choice"),
            (
                json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "invalid_value",
                "tool_choice",
            ),
        ] {
            let error = of(body.clone()).expect_err("refused").envelope().error;
            assert_eq!(
                (error.code.as_deref(), error.param.as_deref()),
                (Some(code), Some(param)),
                "{body}"
            );
        }
    }
}
