//! Tool definitions of other shapes, as OpenAI writes them.

use serde_json::{Map, Value, json};

use super::turns::Turns;
use crate::problem::code;

impl Turns<'_> {
    /// Takes `tools`: a list, or JSON text of one, of OpenAI's definitions, of bare functions
    /// (`{"name", "parameters"}`), or of Anthropic's (`{"name", "input_schema"}`).
    pub fn take_tools(&mut self, row: &mut Map<String, Value>) {
        let list = match row.remove("tools") {
            None | Some(Value::Null) => return,
            Some(Value::String(text)) if text.trim().is_empty() => return,
            Some(Value::String(text)) => match serde_json::from_str(&text) {
                Ok(Value::Array(list)) => list,
                _ => {
                    let what = "is a text, but not the JSON of a list of tools";
                    return self.fault(code::DATA_TYPE, "tools", what);
                }
            },
            Some(Value::Array(list)) => list,
            Some(other) => return self.wrong_type("tools", &other, "a list"),
        };
        for (index, tool) in list.into_iter().enumerate() {
            match as_openais(tool) {
                Some(tool) => self.tools.push(tool),
                None => {
                    let what = "is no tool that can be called: it needs a 'name', and \
                                'input_schema' (Anthropic's form) or 'parameters' where it has \
                                arguments";
                    self.fault(code::INVALID_TOOL, &format!("tools[{index}]"), what);
                }
            }
        }
    }
}

fn as_openais(tool: Value) -> Option<Value> {
    let Value::Object(mut tool) = tool else { return None };
    if tool.get("function").is_some_and(|function| function.get("name").is_some()) {
        let is_function = tool.get("type").and_then(Value::as_str) == Some("function");
        let is_named = tool["function"]["name"].is_string();
        return (is_function && is_named).then_some(Value::Object(tool));
    }
    let kind = tool.get("type").and_then(Value::as_str);
    if !matches!(kind, None | Some("custom" | "function")) || !tool.get("name")?.is_string() {
        return None;
    }
    let parameters = tool.remove("input_schema").or_else(|| tool.remove("parameters"));
    let mut function = Map::new();
    for key in ["name", "description"] {
        function.extend(tool.remove(key).map(|value| (key.to_owned(), value)));
    }
    function.extend(parameters.map(|value| ("parameters".to_owned(), value)));
    Some(json!({"type": "function", "function": function}))
}
