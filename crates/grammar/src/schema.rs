//! JSON Schema → nodes of a grammar.
//!
//! Held to: `type`, `properties`, `required`, `additionalProperties`, `enum`, `const`, `items`, `minItems`,
//! `maxItems`, `anyOf`, `$ref` within the document, `nullable`. Where `properties` are named and nothing is
//! said about others, there are no others: such answers satisfy the schema too, and end. What else limits
//! values (lengths, ranges, patterns, …) is refused where the schema must be held to, else passed over.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::grammar::{ANY, Node, NodeId, Object, Property, bare, json_text, push};

/// Nodes that a schema may have; more is no description of an answer but an attack.
const MAX_NODES: usize = 10_000;
/// Nesting of a schema's text.
const MAX_DEPTH: usize = 64;
/// Properties of one object that may come in any order; beyond, they come in the schema's.
const ANY_ORDER: usize = 64;

/// Says nothing about values, or nothing that must be held to.
const ANNOTATIONS: [&str; 13] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "deprecated",
    "readOnly",
    "writeOnly",
];
const HELD: [&str; 11] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "enum",
    "const",
    "items",
    "minItems",
    "maxItems",
    "anyOf",
    "nullable",
];

/// What is done about parts of a schema that cannot be held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// They are refused.
    Strict,
    /// They are passed over.
    Lenient,
}

/// A part of a schema that cannot be held to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SchemaError {
    /// Where in the schema, such as `properties.name.pattern`; empty for the schema itself.
    pub path: String,
    pub message: String,
}

fn join(path: &str, part: &str) -> String {
    if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") }
}

/// Reads one document's schemas into nodes.
pub(crate) struct Compiler<'a> {
    document: &'a Value,
    strictness: Strictness,
    pub nodes: Vec<Node>,
    /// What a reference stands for, by its text: a schema may refer to itself.
    references: HashMap<String, NodeId>,
}

impl<'a> Compiler<'a> {
    pub fn new(document: &'a Value, strictness: Strictness, nodes: Vec<Node>) -> Self {
        Self { document, strictness, nodes, references: HashMap::new() }
    }

    /// A schema that is nothing but itself again has no first byte.
    pub fn check_loops(&self) -> Result<(), SchemaError> {
        // 0: not seen, 1: being walked, 2: done.
        let mut marks = vec![0u8; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let mut path = vec![(start, 0)];
            while let Some((node, next)) = path.pop() {
                let Node::AnyOf(nodes) = &self.nodes[node] else {
                    marks[node] = 2;
                    continue;
                };
                if next == 0 && marks[node] == 2 {
                    continue;
                }
                marks[node] = 1;
                let Some(&inner) = nodes.get(next) else {
                    marks[node] = 2;
                    continue;
                };
                path.push((node, next + 1));
                match marks[inner as usize] {
                    0 => path.push((inner as usize, 0)),
                    1 => {
                        let message = "a '$ref' refers to itself alone".to_owned();
                        return Err(SchemaError { path: "$ref".to_owned(), message });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub fn node(
        &mut self,
        schema: &'a Value,
        path: &str,
        depth: usize,
    ) -> Result<NodeId, SchemaError> {
        let fault = |message: String| SchemaError { path: path.to_owned(), message };
        if self.nodes.len() >= MAX_NODES || depth > MAX_DEPTH {
            return Err(fault("the schema is too large or nested too deeply".to_owned()));
        }
        let fields = match schema {
            Value::Bool(true) => return Ok(ANY),
            Value::Object(fields) => fields,
            Value::Bool(false) => return Err(fault("no value satisfies 'false'".to_owned())),
            _ => return Err(fault("a schema must be an object".to_owned())),
        };
        if let Some(reference) = fields.get("$ref") {
            return self.reference(reference, path, depth);
        }
        self.check_keywords(fields, path)?;
        let node = self.described(fields, path, depth)?;
        if fields.get("nullable") == Some(&Value::Bool(true)) {
            let node = push(&mut self.nodes, node);
            let null = push(&mut self.nodes, Node::Null);
            return Ok(push(&mut self.nodes, Node::AnyOf(vec![node, null])));
        }
        Ok(push(&mut self.nodes, node))
    }

    /// A strict schema holds nothing that is not held to.
    fn check_keywords(&self, fields: &Map<String, Value>, path: &str) -> Result<(), SchemaError> {
        if self.strictness == Strictness::Lenient {
            return Ok(());
        }
        let known = |key: &str| HELD.contains(&key) || ANNOTATIONS.contains(&key);
        match fields.keys().find(|key| !known(key)) {
            None => Ok(()),
            Some(keyword) => Err(SchemaError {
                path: join(path, keyword),
                message: format!("the keyword '{keyword}' is not supported"),
            }),
        }
    }

    fn described(
        &mut self,
        fields: &'a Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Node, SchemaError> {
        if let Some(value) = fields.get("const") {
            return Ok(Node::Literals(vec![json_text(value)]));
        }
        if let Some(values) = fields.get("enum") {
            let values = values.as_array().filter(|values| !values.is_empty());
            let values = values.ok_or_else(|| SchemaError {
                path: join(path, "enum"),
                message: "'enum' must be a list of at least one value".to_owned(),
            })?;
            let mut texts: Vec<Vec<u8>> = values.iter().map(json_text).collect();
            texts.sort();
            texts.dedup();
            return Ok(Node::Literals(texts));
        }
        for (keyword, alone) in [("anyOf", false), ("oneOf", false), ("allOf", true)] {
            let Some(list) = fields.get(keyword) else { continue };
            let list = list.as_array().filter(|list| !list.is_empty()).ok_or_else(|| {
                let message = format!("'{keyword}' must be a list of at least one schema");
                SchemaError { path: join(path, keyword), message }
            })?;
            if alone && list.len() > 1 {
                return Ok(Node::Any);
            }
            let mut nodes = Vec::new();
            for (index, schema) in list.iter().enumerate() {
                let path = format!("{}[{index}]", join(path, keyword));
                nodes.push(self.node(schema, &path, depth + 1)?);
            }
            return Ok(Node::AnyOf(nodes));
        }
        match fields.get("type") {
            Some(Value::String(kind)) => self.of_type(kind, fields, path, depth),
            Some(Value::Array(kinds)) if !kinds.is_empty() => {
                let mut nodes = Vec::new();
                for kind in kinds {
                    let kind = kind.as_str().unwrap_or_default();
                    let node = self.of_type(kind, fields, path, depth)?;
                    nodes.push(push(&mut self.nodes, node));
                }
                Ok(Node::AnyOf(nodes))
            }
            Some(_) => Err(SchemaError {
                path: join(path, "type"),
                message: "'type' must be a string or a list of strings".to_owned(),
            }),
            None if fields.contains_key("properties") => self.object(fields, path, depth),
            None if fields.contains_key("items") => self.array(fields, path, depth),
            None => Ok(Node::Any),
        }
    }

    fn of_type(
        &mut self,
        kind: &str,
        fields: &'a Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Node, SchemaError> {
        Ok(match kind {
            "string" => Node::String,
            "integer" => Node::Integer,
            "number" => Node::Number,
            "boolean" => Node::Boolean,
            "null" => Node::Null,
            "object" => self.object(fields, path, depth)?,
            "array" => self.array(fields, path, depth)?,
            _ if self.strictness == Strictness::Lenient => Node::Any,
            other => {
                let message = format!("'{other}' is not a type of JSON");
                return Err(SchemaError { path: join(path, "type"), message });
            }
        })
    }

    fn object(
        &mut self,
        fields: &'a Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Node, SchemaError> {
        let named = match fields.get("properties") {
            None => None,
            Some(Value::Object(named)) => Some(named),
            Some(_) => {
                let message = "'properties' must be an object".to_owned();
                return Err(SchemaError { path: join(path, "properties"), message });
            }
        };
        let required: Vec<&str> = match fields.get("required") {
            None => Vec::new(),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            Some(_) => {
                let message = "'required' must be a list of names".to_owned();
                return Err(SchemaError { path: join(path, "required"), message });
            }
        };
        let mut properties = Vec::new();
        for (place, (name, schema)) in named.into_iter().flatten().enumerate() {
            let path = join(&join(path, "properties"), name);
            let value = self.node(schema, &path, depth + 1)?;
            let required = required.contains(&name.as_str());
            properties.push(Property { key: bare(name), value, required, place: place as u32 });
        }
        let unnamed = |name: &&&str| named.is_none_or(|named| !named.contains_key(**name));
        if self.strictness == Strictness::Strict
            && let Some(name) = required.iter().find(unnamed)
        {
            let message = format!("'{name}' is required, but not one of the properties");
            return Err(SchemaError { path: join(path, "required"), message });
        }
        let additional = match fields.get("additionalProperties") {
            Some(Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(ANY),
            Some(schema) => {
                Some(self.node(schema, &join(path, "additionalProperties"), depth + 1)?)
            }
            None if named.is_some() => None,
            None => Some(ANY),
        };
        let ordered = properties.len() > ANY_ORDER;
        properties.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Node::Object(Box::new(Object { properties, additional, ordered })))
    }

    fn array(
        &mut self,
        fields: &'a Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Node, SchemaError> {
        let items = match fields.get("items") {
            Some(schema) => self.node(schema, &join(path, "items"), depth + 1)?,
            None => ANY,
        };
        let count = |keyword: &str| match fields.get(keyword) {
            None => Ok(None),
            Some(value) => match value.as_u64().map(u32::try_from) {
                Some(Ok(count)) => Ok(Some(count)),
                _ => Err(SchemaError {
                    path: join(path, keyword),
                    message: format!("'{keyword}' must be a small integer"),
                }),
            },
        };
        let (least, most) = (count("minItems")?.unwrap_or(0), count("maxItems")?);
        if most.is_some_and(|most| most < least) {
            let message = "'maxItems' is below 'minItems'".to_owned();
            return Err(SchemaError { path: join(path, "maxItems"), message });
        }
        Ok(Node::Array { items, least, most })
    }

    fn reference(
        &mut self,
        reference: &Value,
        path: &str,
        depth: usize,
    ) -> Result<NodeId, SchemaError> {
        let fault = |message: String| SchemaError { path: join(path, "$ref"), message };
        let text = reference.as_str().ok_or_else(|| fault("'$ref' must be a string".into()))?;
        if let Some(&id) = self.references.get(text) {
            return Ok(id);
        }
        let pointer = text.strip_prefix('#').filter(|p| p.is_empty() || p.starts_with('/'));
        let document = self.document;
        let Some(target) = pointer.and_then(|pointer| document.pointer(pointer)) else {
            if self.strictness == Strictness::Lenient {
                return Ok(ANY);
            }
            let message = "names nothing in this schema (such as '#/$defs/name')";
            return Err(fault(format!("'{text}' {message}")));
        };
        // The place is taken before it is filled, for references from within.
        let id = push(&mut self.nodes, Node::Any);
        self.references.insert(text.to_owned(), id);
        let inner = self.node(target, path, depth + 1)?;
        self.nodes[id as usize] = Node::AnyOf(vec![inner]);
        Ok(id)
    }
}
