//! The machine: takes an answer byte by byte, and knows after each what it may become.
//!
//! Where a schema leaves several ways open (`anyOf`), the machine is on all of them at once, each a
//! thread with a stack of its own; a way that a byte closes is dropped.

use std::sync::Arc;

use crate::frame::{ArrayAt, Frame, NumberAt, ObjectAt, StringAt, StringStep, Word};
use crate::grammar::{Grammar, Node, NodeId, Object, Property};

/// White space in one gap: enough for deep indentation, and an end to a model that prints nothing else.
const MOST_SPACE: u8 = 64;
/// Levels of nesting; readers of JSON give up somewhat later.
const MOST_LEVELS: usize = 64;
/// Ways that may be open at once; further ones are dropped.
const MOST_THREADS: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Thread {
    pub stack: Vec<Frame>,
    /// White space since the last other byte.
    space: u8,
}

/// One answer under a grammar.
#[derive(Debug, Clone)]
pub struct Matcher {
    grammar: Arc<Grammar>,
    pub(crate) threads: Vec<Thread>,
}

impl Matcher {
    pub fn new(grammar: Arc<Grammar>) -> Self {
        let stack = vec![Frame::Value(grammar.root)];
        Self { grammar, threads: vec![Thread { stack, space: 0 }] }
    }

    /// Takes the answer's next bytes. False when no answer goes on so: then nothing has changed.
    pub fn advance(&mut self, bytes: &[u8]) -> bool {
        let mut threads = self.threads.clone();
        for &byte in bytes {
            threads = self.after(&threads, byte);
            if threads.is_empty() {
                return false;
            }
        }
        self.threads = threads;
        true
    }

    /// Whether the answer may end here.
    pub fn may_end(&self) -> bool {
        self.threads.iter().any(|thread| match thread.stack.as_slice() {
            [] => true,
            [Frame::Number { at, .. }] => at.may_end(),
            [Frame::Literal { node, lo, at, .. }] => self.literal_ends(*node, *lo, *at),
            _ => false,
        })
    }

    /// Whether the answer must end here.
    pub fn is_over(&self) -> bool {
        self.threads.iter().all(|thread| thread.stack.is_empty())
    }

    /// What the machine becomes with one more byte; empty when the byte cannot follow.
    pub(crate) fn after(&self, threads: &[Thread], byte: u8) -> Vec<Thread> {
        let mut out = Vec::with_capacity(threads.len());
        for thread in threads {
            self.step(thread.clone(), byte, &mut out);
        }
        if out.len() > 1 {
            let mut unique: Vec<Thread> = Vec::with_capacity(out.len());
            for thread in out {
                if unique.len() < MOST_THREADS && !unique.contains(&thread) {
                    unique.push(thread);
                }
            }
            return unique;
        }
        out
    }

    fn step(&self, mut thread: Thread, byte: u8, out: &mut Vec<Thread>) {
        let Some(top) = thread.stack.last_mut() else { return };
        match top {
            Frame::String(at) => match at.next(byte) {
                StringStep::Stays(next) => *at = next,
                StringStep::Ends => drop(thread.stack.pop()),
                StringStep::Breaks => return,
            },
            Frame::Word { word, at } => {
                if word.text().get(usize::from(*at)) != Some(&byte) {
                    return;
                }
                *at += 1;
                if usize::from(*at) == word.text().len() {
                    thread.stack.pop();
                }
            }
            Frame::Number { at, integer, len } => match at.next(byte, *integer, *len) {
                Some(next) => (*at, *len) = (next, *len + 1),
                None if at.may_end() => {
                    thread.stack.pop();
                    return self.step(thread, byte, out);
                }
                None => return,
            },
            Frame::Literal { node, lo, hi, at } => {
                let (node, lo, hi, at) = (*node, *lo, *hi, *at);
                thread.stack.pop();
                return self.literal(thread, node, (lo, hi), at, byte, out);
            }
            Frame::Key { .. } => return self.key(thread, byte, out),
            _ => return self.between(thread, byte, out),
        }
        out.push(thread);
    }

    /// Where white space may stand.
    fn between(&self, mut thread: Thread, byte: u8, out: &mut Vec<Thread>) {
        if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            if thread.space < MOST_SPACE {
                thread.space += 1;
                out.push(thread);
            }
            return;
        }
        thread.space = 0;
        match thread.stack.pop() {
            Some(Frame::Value(node)) => self.begin(node, thread, byte, out),
            Some(Frame::Object { node, seen, value, at }) => {
                let next = |at| Frame::Object { node, seen, value, at };
                let Node::Object(object) = self.grammar.node(node) else { return };
                match (at, byte) {
                    (ObjectAt::First, b'"') | (ObjectAt::AfterComma, b'"') => {
                        thread.stack.push(next(at));
                        let (hi, free) =
                            (object.properties.len() as u32, object.additional.is_some());
                        if free || any_allowed(object, seen, 0, hi) {
                            let text = StringAt::Free;
                            thread.stack.push(Frame::Key { lo: 0, hi, at: 0, text, free });
                            out.push(thread);
                        }
                        return;
                    }
                    (ObjectAt::AfterKey, b':') => {
                        thread.stack.push(next(ObjectAt::AfterValue));
                        thread.stack.push(Frame::Value(value));
                    }
                    (ObjectAt::AfterValue, b',') => {
                        let all = object.properties.len() as u32;
                        if object.additional.is_none() && !any_allowed(object, seen, 0, all) {
                            return;
                        }
                        thread.stack.push(next(ObjectAt::AfterComma));
                    }
                    (ObjectAt::First | ObjectAt::AfterValue, b'}') if may_close(object, seen) => {}
                    _ => return,
                }
                out.push(thread);
            }
            Some(Frame::Array { node, count, at }) => {
                let Node::Array { items, least, most } = *self.grammar.node(node) else { return };
                // Counting further than anybody asks would only make more states.
                let more = if count < least.max(most.unwrap_or(0)) { count + 1 } else { count };
                let may_grow = most.is_none_or(|most| count < most);
                let after = Frame::Array { node, count: more, at: ArrayAt::AfterValue };
                match (at, byte) {
                    (_, b']') if count >= least => out.push(thread),
                    (ArrayAt::AfterValue, b',') if may_grow => {
                        thread.stack.extend([after, Frame::Value(items)]);
                        out.push(thread);
                    }
                    (ArrayAt::First, _) if may_grow && byte != b']' => {
                        thread.stack.push(after);
                        self.begin(items, thread, byte, out);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The first byte of a value.
    fn begin(&self, node: NodeId, mut thread: Thread, byte: u8, out: &mut Vec<Thread>) {
        let has_room = thread.stack.len() < MOST_LEVELS;
        let string = (byte == b'"').then_some(Frame::String(StringAt::Free));
        let number =
            |integer| NumberAt::begin(byte).map(|at| Frame::Number { at, integer, len: 1 });
        let word = |word: Word| (word.text()[0] == byte).then_some(Frame::Word { word, at: 1 });
        let boolean = || word(Word::True).or_else(|| word(Word::False));
        let object = |node| Frame::Object { node, seen: 0, value: 0, at: ObjectAt::First };
        let array = |node| Frame::Array { node, count: 0, at: ArrayAt::First };
        let frame = match self.grammar.node(node) {
            Node::AnyOf(nodes) => {
                for &node in nodes {
                    self.begin(node, thread.clone(), byte, out);
                }
                return;
            }
            Node::Literals(texts) => {
                return self.literal(thread, node, (0, texts.len() as u32), 0, byte, out);
            }
            Node::Any => match byte {
                b'{' => Some(object(self.grammar.any_object())).filter(|_| has_room),
                b'[' => Some(array(self.grammar.any_array())).filter(|_| has_room),
                _ => string.or_else(|| number(false)).or_else(boolean).or_else(|| word(Word::Null)),
            },
            Node::Null => word(Word::Null),
            Node::Boolean => boolean(),
            Node::String => string,
            Node::Integer => number(true),
            Node::Number => number(false),
            Node::Object(_) => (byte == b'{' && has_room).then(|| object(node)),
            Node::Array { .. } => (byte == b'[' && has_room).then(|| array(node)),
        };
        if let Some(frame) = frame {
            thread.stack.push(frame);
            out.push(thread);
        }
    }

    /// A byte in one of the texts `range` of a node; the frame is not on the stack.
    fn literal(
        &self,
        mut thread: Thread,
        node: NodeId,
        (lo, hi): (u32, u32),
        at: u32,
        byte: u8,
        out: &mut Vec<Thread>,
    ) {
        let Node::Literals(texts) = self.grammar.node(node) else { return };
        // A text that is whole may be followed by what follows the value, beside going on as a longer one.
        if at > 0 && self.literal_ends(node, lo, at) {
            self.step(thread.clone(), byte, out);
        }
        let (lo, hi) = narrow(lo, hi, at, byte, |index| &texts[index as usize]);
        if lo == hi {
            return;
        }
        let at = at + 1;
        let is_last = hi - lo == 1 && self.literal_ends(node, lo, at);
        if !is_last {
            thread.stack.push(Frame::Literal { node, lo, hi, at });
        }
        out.push(thread);
    }

    fn literal_ends(&self, node: NodeId, lo: u32, at: u32) -> bool {
        let Node::Literals(texts) = self.grammar.node(node) else { return false };
        // The shortest of those that begin alike stands first.
        texts.get(lo as usize).is_some_and(|text| text.len() == at as usize)
    }

    fn key(&self, mut thread: Thread, byte: u8, out: &mut Vec<Thread>) {
        let Some(Frame::Key { lo, hi, at, text, free }) = thread.stack.pop() else { return };
        let Some(Frame::Object { node, seen, value, at: place }) = thread.stack.last_mut() else {
            return;
        };
        let Node::Object(object) = self.grammar.node(*node) else { return };
        let key = |index: u32| &object.properties[index as usize].key;
        if text == StringAt::Free && byte == b'"' {
            let named = (lo < hi && key(lo).len() == at as usize).then_some(lo);
            match (named, object.additional) {
                (Some(index), _) if is_allowed(object, *seen, index) => {
                    let property = &object.properties[index as usize];
                    let next = if object.ordered {
                        u64::from(property.place) + 1
                    } else {
                        *seen | 1 << index
                    };
                    (*seen, *value) = (next, property.value);
                }
                (None, Some(additional)) if free => *value = additional,
                _ => return,
            }
            *place = ObjectAt::AfterKey;
            return out.push(thread);
        }
        let StringStep::Stays(text) = text.next(byte) else { return };
        // An escape could write a named key in other words, and so go around its schema.
        if text == StringAt::Backslash && !object.properties.is_empty() {
            let named = |index| key(index).get(at as usize) == Some(&b'\\');
            if !(lo..hi).any(named) {
                return;
            }
        }
        let (lo, hi) = narrow(lo, hi, at, byte, key);
        if !free && !any_allowed(object, *seen, lo, hi) {
            return;
        }
        // Beyond all names the length of a free key says nothing.
        let at = if lo == hi { 0 } else { at + 1 };
        let (lo, hi) = if lo == hi { (0, 0) } else { (lo, hi) };
        thread.stack.push(Frame::Key { lo, hi, at, text, free });
        out.push(thread);
    }
}

/// Of the sorted texts `lo..hi`, which begin alike for `at` bytes, those with `byte` next.
fn narrow<'t>(
    lo: u32,
    hi: u32,
    at: u32,
    byte: u8,
    text: impl Fn(u32) -> &'t Vec<u8>,
) -> (u32, u32) {
    let next =
        |index: u32| text(index).get(at as usize).map(|&byte| u16::from(byte) + 1).unwrap_or(0);
    let wanted = u16::from(byte) + 1;
    let partition = |bound: u16| {
        let (mut low, mut high) = (lo, hi);
        while low < high {
            let middle = low.midpoint(high);
            if next(middle) < bound { low = middle + 1 } else { high = middle }
        }
        low
    };
    (partition(wanted), partition(wanted + 1))
}

fn is_allowed(object: &Object, seen: u64, index: u32) -> bool {
    if !object.ordered {
        return seen & (1 << index) == 0;
    }
    let place = u64::from(object.properties[index as usize].place);
    let skips_required = |p: &Property| p.required && (seen..place).contains(&u64::from(p.place));
    place >= seen && !object.properties.iter().any(skips_required)
}

fn any_allowed(object: &Object, seen: u64, lo: u32, hi: u32) -> bool {
    (lo..hi).any(|index| is_allowed(object, seen, index))
}

fn may_close(object: &Object, seen: u64) -> bool {
    let missing = |(index, property): (usize, &Property)| {
        let is_seen = if object.ordered {
            u64::from(property.place) < seen
        } else {
            seen & (1 << index) != 0
        };
        property.required && !is_seen
    };
    !object.properties.iter().enumerate().any(missing)
}
