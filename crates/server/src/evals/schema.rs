//! JSON Schema, as far as item schemas of evaluations use it: the assertions of draft 2020-12 that look at one
//! value, and references within the schema.
//!
//! Our own, because the schema and the rows are a stranger's: references can be nested so that a few lines ask
//! for more work than anybody has. Here every step costs fuel, and patterns are matched in linear time. What it
//! does not do: `unevaluated…`, dynamic references, references to other documents (refused when the schema is
//! given), patterns with look-around (not checked), and `format` (an annotation).

mod rules;

use std::collections::{HashMap, HashSet};

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use self::rules::{check_names, check_types, plain_fault};
use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;

/// Steps that one row may take.
const FUEL: u32 = 200_000;
const MAX_DEPTH: usize = 200;
const PATTERN_BYTES: usize = 1 << 20;

/// A schema that has been checked.
pub(crate) struct Schema<'a> {
    root: &'a Value,
    patterns: HashMap<&'a str, Option<Regex>>,
}

/// What one row's check has left and found.
struct Search {
    fuel: u32,
    /// Faults that are looked for at most.
    most: usize,
    found: Vec<String>,
}

impl<'a> Schema<'a> {
    /// Reads a schema; `path` names it in refusals.
    pub(crate) fn new(root: &'a Value, path: &str) -> ApiResult<Self> {
        let mut schema = Self { root, patterns: HashMap::new() };
        schema.check(root, path)?;
        Ok(schema)
    }

    /// The first faults of a value, each as a sentence that begins with the path; empty when it fits.
    pub(crate) fn faults(&self, value: &Value, path: &str, most: usize) -> Vec<String> {
        let mut search = Search { fuel: FUEL, most, found: Vec::new() };
        self.look(self.root, value, path, 0, &mut search);
        if search.fuel == 0 {
            return vec![format!("{path}: the schema asks for more work than one row may take")];
        }
        search.found
    }

    fn check(&mut self, schema: &'a Value, path: &str) -> ApiResult<()> {
        let fields = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(fields) => fields,
            other => return Err(ApiError::invalid_type(path, "an object", type_words(other))),
        };
        for (key, value) in fields {
            let path = format!("{path}.{key}");
            self.check_keyword(key, value, &path)?;
        }
        Ok(())
    }

    fn check_keyword(&mut self, key: &str, value: &'a Value, path: &str) -> ApiResult<()> {
        match key {
            "type" => check_types(value, path),
            "properties" | "$defs" | "definitions" | "dependentSchemas" => {
                let named = object(value, path)?;
                named
                    .iter()
                    .try_for_each(|(name, inner)| self.check(inner, &format!("{path}.{name}")))
            }
            "patternProperties" => {
                let named = object(value, path)?;
                named.iter().try_for_each(|(pattern, inner)| {
                    self.learn(pattern);
                    self.check(inner, &format!("{path}.{pattern}"))
                })
            }
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => self.check_all(value, path),
            "items" if value.is_array() => self.check_all(value, path),
            "items"
            | "additionalProperties"
            | "additionalItems"
            | "not"
            | "if"
            | "then"
            | "else"
            | "contains"
            | "propertyNames" => self.check(value, path),
            "required" => check_names(value, path),
            "dependentRequired" => {
                let named = object(value, path)?;
                named
                    .iter()
                    .try_for_each(|(name, names)| check_names(names, &format!("{path}.{name}")))
            }
            "enum" if !value.is_array() => {
                Err(ApiError::invalid_type(path, "an array", type_words(value)))
            }
            "pattern" => match value {
                Value::String(pattern) => {
                    self.learn(pattern);
                    Ok(())
                }
                other => Err(ApiError::invalid_type(path, "a string", type_words(other))),
            },
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf"
            | "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
            | "maxProperties" | "minContains" | "maxContains"
                if !value.is_number() =>
            {
                Err(ApiError::invalid_type(path, "a number", type_words(value)))
            }
            "$ref" => self.check_reference(value, path),
            _ => Ok(()),
        }
    }

    fn check_all(&mut self, value: &'a Value, path: &str) -> ApiResult<()> {
        let Value::Array(schemas) = value else {
            return Err(ApiError::invalid_type(path, "an array", type_words(value)));
        };
        let mut numbered = schemas.iter().enumerate();
        numbered.try_for_each(|(i, inner)| self.check(inner, &format!("{path}[{i}]")))
    }

    fn check_reference(&self, value: &Value, path: &str) -> ApiResult<()> {
        let Value::String(reference) = value else {
            return Err(ApiError::invalid_type(path, "a string", type_words(value)));
        };
        match self.resolve(reference) {
            Some(_) => Ok(()),
            None => Err(ApiError::invalid_value(
                path,
                format!(
                    "Invalid '{path}': '{reference}' is not within this schema. References look like \
                     '#/$defs/name'."
                ),
            )),
        }
    }

    fn resolve(&self, reference: &str) -> Option<&'a Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }

    fn learn(&mut self, pattern: &'a str) {
        // One that this engine cannot read (look-around, mostly) is not checked.
        self.patterns.entry(pattern).or_insert_with(|| {
            RegexBuilder::new(pattern)
                .size_limit(PATTERN_BYTES)
                .dfa_size_limit(PATTERN_BYTES)
                .build()
                .ok()
        });
    }

    fn matches(&self, pattern: &str, text: &str) -> bool {
        match self.patterns.get(pattern) {
            Some(Some(pattern)) => pattern.is_match(text),
            _ => true,
        }
    }

    /// Whether a value fits, whatever is wrong with it.
    fn fits(&self, schema: &Value, value: &Value, depth: usize, search: &mut Search) -> bool {
        let mut inner = Search { fuel: search.fuel, most: 1, found: Vec::new() };
        self.look(schema, value, "", depth, &mut inner);
        search.fuel = inner.fuel;
        inner.found.is_empty()
    }

    fn look(&self, schema: &Value, value: &Value, path: &str, depth: usize, search: &mut Search) {
        if !search.goes_on() || depth > MAX_DEPTH {
            search.fuel = if depth > MAX_DEPTH { 0 } else { search.fuel };
            return;
        }
        let fields = match schema {
            Value::Object(fields) => fields,
            Value::Bool(false) => return search.add(path, "nothing is allowed here"),
            _ => return,
        };
        for (key, rule) in fields {
            search.burn(1);
            if let Some(fault) = plain_fault(key, rule, value) {
                search.add(path, &fault);
            }
        }
        self.look_at_combinations(fields, value, path, depth, search);
        match value {
            Value::Object(named) => self.look_at_object(fields, named, path, depth, search),
            Value::Array(items) => self.look_at_array(fields, items, path, depth, search),
            Value::String(text) => {
                search.burn(text.len() as u32 / 16);
                if let Some(Value::String(pattern)) = fields.get("pattern")
                    && !self.matches(pattern, text)
                {
                    search.add(path, &format!("does not match the pattern '{pattern}'"));
                }
            }
            _ => {}
        }
    }

    fn look_at_combinations(
        &self,
        fields: &Map<String, Value>,
        value: &Value,
        path: &str,
        depth: usize,
        search: &mut Search,
    ) {
        let depth = depth + 1;
        if let Some(Value::String(reference)) = fields.get("$ref")
            && let Some(target) = self.resolve(reference)
        {
            self.look(target, value, path, depth, search);
        }
        for inner in list(fields, "allOf") {
            self.look(inner, value, path, depth, search);
        }
        let of = |key: &str, search: &mut Search| {
            let options = list(fields, key);
            let fitting = options.iter().filter(|option| self.fits(option, value, depth, search));
            (!options.is_empty()).then(|| fitting.count())
        };
        if of("anyOf", search) == Some(0) {
            search.add(path, "fits none of the schemas in 'anyOf'");
        }
        match of("oneOf", search) {
            None | Some(1) => {}
            Some(0) => search.add(path, "fits none of the schemas in 'oneOf'"),
            Some(count) => search.add(path, &format!("fits {count} of the schemas in 'oneOf'")),
        }
        if let Some(inner) = fields.get("not")
            && self.fits(inner, value, depth, search)
        {
            search.add(path, "fits the schema in 'not'");
        }
        if let Some(condition) = fields.get("if") {
            let branch = if self.fits(condition, value, depth, search) { "then" } else { "else" };
            if let Some(inner) = fields.get(branch) {
                self.look(inner, value, path, depth, search);
            }
        }
    }

    fn look_at_object(
        &self,
        fields: &Map<String, Value>,
        named: &Map<String, Value>,
        path: &str,
        depth: usize,
        search: &mut Search,
    ) {
        for name in list(fields, "required").iter().filter_map(Value::as_str) {
            search.burn(1);
            if !named.contains_key(name) {
                search.add(path, &format!("lacks '{name}'"));
            }
        }
        let part = |key: &str| fields.get(key).and_then(Value::as_object);
        let (properties, patterns) = (part("properties"), part("patternProperties"));
        for (name, inner) in named {
            search.burn(1);
            let path = format!("{path}.{name}");
            let mut is_known = false;
            if let Some(schema) = properties.and_then(|properties| properties.get(name)) {
                is_known = true;
                self.look(schema, inner, &path, depth + 1, search);
            }
            for (pattern, schema) in patterns.into_iter().flatten() {
                search.burn(1);
                if self.matches(pattern, name) {
                    is_known = true;
                    self.look(schema, inner, &path, depth + 1, search);
                }
            }
            match fields.get("additionalProperties") {
                Some(Value::Bool(false)) if !is_known => search.add(&path, "is not in the schema"),
                Some(schema) if !is_known => self.look(schema, inner, &path, depth + 1, search),
                _ => {}
            }
            if let Some(schema) = fields.get("propertyNames") {
                self.look(schema, &Value::from(name.as_str()), &path, depth + 1, search);
            }
        }
        for (name, needed) in part("dependentRequired").into_iter().flatten() {
            let needed = needed.as_array().into_iter().flatten().filter_map(Value::as_str);
            for other in
                needed.filter(|other| named.contains_key(name) && !named.contains_key(*other))
            {
                search.add(path, &format!("lacks '{other}', which goes with '{name}'"));
            }
        }
        for (name, schema) in part("dependentSchemas").into_iter().flatten() {
            if named.contains_key(name) {
                self.look(schema, &Value::Object(named.clone()), path, depth + 1, search);
            }
        }
    }

    fn look_at_array(
        &self,
        fields: &Map<String, Value>,
        items: &[Value],
        path: &str,
        depth: usize,
        search: &mut Search,
    ) {
        let first = match list(fields, "prefixItems") {
            [] => list(fields, "items"),
            some => some,
        };
        let rest = match fields.get("items") {
            Some(Value::Array(_)) => fields.get("additionalItems"),
            other => other,
        };
        for (i, item) in items.iter().enumerate() {
            search.burn(1);
            if let Some(schema) = first.get(i).or(rest) {
                self.look(schema, item, &format!("{path}[{i}]"), depth + 1, search);
            }
        }
        if fields.get("uniqueItems") == Some(&Value::Bool(true)) {
            let mut seen = HashSet::new();
            search.burn(items.len() as u32);
            if !items.iter().all(|item| seen.insert(item.to_string())) {
                search.add(path, "has equal items");
            }
        }
        if let Some(schema) = fields.get("contains") {
            let fitting = items.iter().filter(|item| self.fits(schema, item, depth + 1, search));
            let count = fitting.count() as f64;
            let bound = |key: &str| fields.get(key).and_then(Value::as_f64);
            if count < bound("minContains").unwrap_or(1.0) {
                search.add(path, "has too few items that fit the schema in 'contains'");
            }
            if bound("maxContains").is_some_and(|most| count > most) {
                search.add(path, "has too many items that fit the schema in 'contains'");
            }
        }
    }
}

impl Search {
    fn goes_on(&self) -> bool {
        self.fuel > 0 && self.found.len() < self.most
    }

    fn burn(&mut self, steps: u32) {
        self.fuel = self.fuel.saturating_sub(steps);
    }

    fn add(&mut self, path: &str, problem: &str) {
        if self.found.len() < self.most {
            self.found.push(format!("{path}: {problem}"));
        }
    }
}

fn list<'v>(fields: &'v Map<String, Value>, key: &str) -> &'v [Value] {
    fields.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn object<'v>(value: &'v Value, path: &str) -> ApiResult<&'v Map<String, Value>> {
    value.as_object().ok_or_else(|| ApiError::invalid_type(path, "an object", type_words(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(schema: &Value, value: &Value) -> Vec<String> {
        Schema::new(schema, "schema").unwrap().faults(value, "item", 10)
    }

    #[test]
    fn values_that_fit_have_no_faults_and_others_are_named_by_path() {
        let schema = json!({
            "$defs": {"Label": {"enum": ["a", "b", 1]}},
            "type": "object", "title": "Row", "format": "odd",
            "properties": {
                "text": {"type": "string", "minLength": 2, "pattern": "^[a-z]+$"},
                "n": {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": 10, "multipleOf": 2},
                "label": {"$ref": "#/$defs/Label"},
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2, "uniqueItems": true},
                "either": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["x"]}]},
            },
            "required": ["text"], "additionalProperties": false,
        });
        for fitting in [
            json!({"text": "ab", "n": 4, "label": "a", "tags": ["x", "y"], "either": {"x": 1}}),
            json!({"text": "ab", "n": null, "label": 1.0}),
        ] {
            assert_eq!(faults(&schema, &fitting), Vec::<String>::new());
        }
        for (value, expected) in [
            (json!([]), "item: expected object, got an array"),
            (json!({}), "item: lacks 'text'"),
            (json!({"text": "A"}), "item.text: characters: 1, and the least is 2"),
            (json!({"text": "ABC"}), "item.text: does not match the pattern '^[a-z]+$'"),
            (
                json!({"text": "ab", "n": 1.5}),
                r#"item.n: expected ["integer","null"], got a decimal"#,
            ),
            (json!({"text": "ab", "n": 3}), "item.n: must be a multiple of 2"),
            (json!({"text": "ab", "n": 10}), "item.n: must be below 10"),
            (json!({"text": "ab", "label": "c"}), r#"item.label: must be one of ["a","b",1]"#),
            (
                json!({"text": "ab", "tags": ["x", 1]}),
                "item.tags[1]: expected string, got an integer",
            ),
            (json!({"text": "ab", "tags": ["x", "x"]}), "item.tags: has equal items"),
            (
                json!({"text": "ab", "either": {}}),
                "item.either: fits none of the schemas in 'anyOf'",
            ),
            (json!({"text": "ab", "more": 1}), "item.more: is not in the schema"),
        ] {
            assert_eq!(
                faults(&schema, &value).first().map(String::as_str),
                Some(expected),
                "{value}"
            );
        }
    }

    #[test]
    fn combinations_and_conditions_hold() {
        let schema = json!({
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]},
            "if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["d"]},
            "else": {"maxProperties": 1},
            "dependentRequired": {"d": ["e"]}, "propertyNames": {"maxLength": 1},
            "patternProperties": {"^e": {"contains": {"const": 5}}},
        });
        assert!(faults(&schema, &json!({"a": 1, "d": 1, "e": [4, 5]})).is_empty());
        assert!(faults(&schema, &json!({"b": 1})).is_empty());
        for odd in [
            json!({}),
            json!({"a": 2, "b": 2}),
            json!({"b": 1, "c": 1}),
            json!({"a": 1}),
            json!({"a": 1, "d": 1}),
            json!({"a": 1, "d": 1, "e": [4]}),
            json!({"b": 1, "x": 1}),
            json!({"a": 1, "d": 1, "e": [5], "long": 1}),
        ] {
            assert!(!faults(&schema, &odd).is_empty(), "{odd}");
        }
    }

    #[test]
    fn a_recursive_schema_follows_the_value() {
        let schema = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": false});
        assert!(faults(&schema, &json!({"next": {"next": {}}})).is_empty());
        assert_eq!(
            faults(&schema, &json!({"next": {"x": 1}})),
            ["item.next.x: is not in the schema"]
        );
    }

    #[test]
    fn no_schema_takes_more_than_its_fuel() {
        let mut definitions = Map::new();
        for i in 0..60 {
            let next = json!({"$ref": format!("#/$defs/a{}", i + 1)});
            definitions
                .insert(format!("a{i}"), json!({"allOf": [next, next], "anyOf": [next, next]}));
        }
        definitions.insert("a60".to_owned(), json!(true));
        let bomb = json!({"$defs": definitions, "$ref": "#/$defs/a0"});
        for schema in [bomb, json!({"$ref": "#"}), json!({"not": {"$ref": "#"}})] {
            assert!(faults(&schema, &json!({}))[0].contains("more work"), "{schema}");
        }
    }

    #[test]
    fn what_is_no_schema_is_refused_by_path() {
        let of = |schema: Value| match Schema::new(&schema, "s") {
            Ok(_) => panic!("{schema} was accepted"),
            Err(error) => error.envelope().error.param.unwrap(),
        };
        assert_eq!(of(json!("object")), "s");
        assert_eq!(of(json!({"type": "text"})), "s.type");
        assert_eq!(of(json!({"properties": []})), "s.properties");
        assert_eq!(of(json!({"properties": {"a": 5}})), "s.properties.a");
        assert_eq!(
            of(json!({"items": {"anyOf": [{"required": [1]}]}})),
            "s.items.anyOf[0].required"
        );
        assert_eq!(of(json!({"$ref": "https://example.org/schema"})), "s.$ref");
        assert_eq!(of(json!({"$ref": "#/$defs/missing"})), "s.$ref");
        assert!(Schema::new(&json!({"pattern": "(?=x)", "anything": {"type": 5}}), "s").is_ok());
    }
}
