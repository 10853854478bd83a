//! A grammar: nodes that say what a value may be, and where to begin.

use serde_json::{Map, Value};

use crate::schema::{Compiler, SchemaError, Strictness};

pub(crate) type NodeId = u32;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Any,
    Null,
    Boolean,
    String,
    Integer,
    Number,
    Object(Box<Object>),
    Array {
        items: NodeId,
        least: u32,
        most: Option<u32>,
    },
    /// Exactly one of these texts; sorted.
    Literals(Vec<Vec<u8>>),
    AnyOf(Vec<NodeId>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object {
    /// Sorted by `key`.
    pub properties: Vec<Property>,
    pub additional: Option<NodeId>,
    /// Properties come in the schema's order.
    pub ordered: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Property {
    /// As JSON writes it, without the quotes.
    pub key: Vec<u8>,
    pub value: NodeId,
    pub required: bool,
    /// Place in the schema.
    pub place: u32,
}

/// What an answer may look like.
#[derive(Debug, Clone, PartialEq)]
pub struct Grammar {
    pub(crate) nodes: Vec<Node>,
    pub(crate) root: NodeId,
}

impl Grammar {
    /// Any JSON object.
    pub fn object() -> Self {
        Self { nodes: first_nodes(), root: ANY_OBJECT }
    }

    /// Whatever satisfies the schema.
    ///
    /// # Errors
    /// A schema that is none, that nothing satisfies, or that cannot be held to where it must be.
    pub fn of_schema(schema: &Value, strictness: Strictness) -> Result<Self, SchemaError> {
        let mut compiler = Compiler::new(schema, strictness, first_nodes());
        let root = compiler.node(schema, "", 0)?;
        compiler.check_loops()?;
        Ok(Self { nodes: compiler.nodes, root })
    }

    /// A call of one of these functions: an object of the name and, under `arguments_key`, the arguments,
    /// which satisfy the function's schema as far as it can be held to.
    ///
    /// # Errors
    /// As [`of_schema`](Self::of_schema); schemas of functions that are strict are held to.
    pub fn call(functions: &[Function<'_>], arguments_key: &str) -> Result<Self, SchemaError> {
        let mut nodes = first_nodes();
        let mut calls = Vec::new();
        for function in functions {
            let open = Value::Object(Map::from_iter([("type".to_owned(), "object".into())]));
            let schema = function.parameters.unwrap_or(&open);
            let mut compiler = Compiler::new(schema, function.strictness, nodes);
            let arguments = compiler.node(schema, "", 0)?;
            compiler.check_loops()?;
            nodes = compiler.nodes;
            let name = push(&mut nodes, Node::Literals(vec![json_text(&function.name.into())]));
            let property = |key: &str, value, place| {
                let key = bare(key);
                Property { key, value, required: true, place }
            };
            let mut properties =
                vec![property("name", name, 0), property(arguments_key, arguments, 1)];
            properties.sort_by(|a, b| a.key.cmp(&b.key));
            let object = Object { properties, additional: None, ordered: true };
            calls.push(push(&mut nodes, Node::Object(Box::new(object))));
        }
        let root = push(&mut nodes, Node::AnyOf(calls));
        Ok(Self { nodes, root })
    }

    /// A list of such values: at least one, `most` at most.
    pub fn listed(mut self, most: Option<u32>) -> Self {
        self.root = push(&mut self.nodes, Node::Array { items: self.root, least: 1, most });
        self
    }

    /// The same, or this text and nothing else.
    pub fn or_text(mut self, text: &str) -> Self {
        let text = push(&mut self.nodes, Node::Literals(vec![text.as_bytes().to_vec()]));
        self.root = push(&mut self.nodes, Node::AnyOf(vec![self.root, text]));
        self
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The node of an object of which nothing is known.
    pub(crate) fn any_object(&self) -> NodeId {
        ANY_OBJECT
    }

    /// The same for an array.
    pub(crate) fn any_array(&self) -> NodeId {
        ANY_ARRAY
    }
}

/// The first nodes of every grammar.
pub(crate) const ANY: NodeId = 0;
const ANY_OBJECT: NodeId = 1;
const ANY_ARRAY: NodeId = 2;

fn first_nodes() -> Vec<Node> {
    let object = Object { properties: Vec::new(), additional: Some(ANY), ordered: false };
    let array = Node::Array { items: ANY, least: 0, most: None };
    vec![Node::Any, Node::Object(Box::new(object)), array]
}

/// A function that may be called.
#[derive(Debug, Clone, Copy)]
pub struct Function<'a> {
    pub name: &'a str,
    pub parameters: Option<&'a Value>,
    pub strictness: Strictness,
}

pub(crate) fn push(nodes: &mut Vec<Node>, node: Node) -> NodeId {
    nodes.push(node);
    (nodes.len() - 1) as NodeId
}

pub(crate) fn json_text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// A key as JSON writes it, without the quotes.
pub(crate) fn bare(key: &str) -> Vec<u8> {
    let text = json_text(&key.into());
    text[1..text.len() - 1].to_vec()
}
