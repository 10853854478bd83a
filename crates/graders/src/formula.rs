//! `calculate_output`: `+ - * / ^`, parentheses, numbers, the names of graders, and
//! `min max abs floor ceil exp sqrt log`.
//!
//! `^` binds tightest and to the right, then the unary minus, as in mathematics: `-2^2` is -4. A parsed formula
//! is a list of operations for a stack, so that depth costs no recursion when it is computed.

/// Bytes of one formula.
pub const MAX_BYTES: usize = 16 << 10;
/// Parentheses, powers and signs inside one another.
const MAX_DEPTH: usize = 128;

const FUNCTIONS: [(&str, Function); 8] = [
    ("min", Function::Min),
    ("max", Function::Max),
    ("abs", Function::Abs),
    ("floor", Function::Floor),
    ("ceil", Function::Ceil),
    ("exp", Function::Exp),
    ("sqrt", Function::Sqrt),
    ("log", Function::Log),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Exp,
    Sqrt,
    /// The natural logarithm.
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    Number(f64),
    /// The value of the name at this place of the list.
    Name(usize),
    Negate,
    Add,
    Subtract,
    Multiply,
    Divide,
    Power,
    /// With its number of arguments.
    Call(Function, usize),
}

/// A formula that has been read.
#[derive(Debug, Clone, PartialEq)]
pub struct Formula {
    operations: Vec<Operation>,
}

impl Formula {
    /// Reads a formula over `names`.
    ///
    /// # Errors
    /// What stands where, and what was expected.
    pub fn parse(text: &str, names: &[&str]) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("the formula is longer than {MAX_BYTES} bytes"));
        }
        let mut parser = Parser { text, at: 0, depth: 0, names, operations: Vec::new() };
        parser.sum()?;
        match parser.peek() {
            None => Ok(Self { operations: parser.operations }),
            Some(other) => Err(parser.unexpected(other, "an operator or the end")),
        }
    }

    /// The value for `values`, in the order of the names. It may be infinite or no number.
    pub fn value(&self, values: &[f64]) -> f64 {
        let mut stack: Vec<f64> = Vec::new();
        for operation in &self.operations {
            let result = match *operation {
                Operation::Number(number) => number,
                Operation::Name(place) => values.get(place).copied().unwrap_or(f64::NAN),
                Operation::Negate => -pop(&mut stack),
                Operation::Call(function, count) => {
                    let arguments = stack.split_off(stack.len().saturating_sub(count));
                    function.value(&arguments)
                }
                binary => {
                    let (right, left) = (pop(&mut stack), pop(&mut stack));
                    match binary {
                        Operation::Add => left + right,
                        Operation::Subtract => left - right,
                        Operation::Multiply => left * right,
                        Operation::Divide => left / right,
                        _ => left.powf(right),
                    }
                }
            };
            stack.push(result);
        }
        pop(&mut stack)
    }
}

fn pop(stack: &mut Vec<f64>) -> f64 {
    stack.pop().unwrap_or(f64::NAN)
}

impl Function {
    fn value(self, arguments: &[f64]) -> f64 {
        let first = arguments.first().copied().unwrap_or(f64::NAN);
        // Unlike f64::min, a value that is no number must not vanish.
        let fold = |better: fn(f64, f64) -> bool| {
            arguments.iter().fold(first, |best, value| {
                if value.is_nan() || better(*value, best) { *value } else { best }
            })
        };
        match self {
            Self::Min => fold(|a, b| a < b),
            Self::Max => fold(|a, b| a > b),
            Self::Abs => first.abs(),
            Self::Floor => first.floor(),
            Self::Ceil => first.ceil(),
            Self::Exp => first.exp(),
            Self::Sqrt => first.sqrt(),
            Self::Log => first.ln(),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    names: &'a [&'a str],
    operations: Vec<Operation>,
}

impl Parser<'_> {
    fn sum(&mut self) -> Result<(), String> {
        self.product()?;
        loop {
            let operation = match self.peek() {
                Some('+') => Operation::Add,
                Some('-') => Operation::Subtract,
                _ => return Ok(()),
            };
            self.at += 1;
            self.product()?;
            self.operations.push(operation);
        }
    }

    fn product(&mut self) -> Result<(), String> {
        self.signed()?;
        loop {
            let operation = match self.peek() {
                Some('*') => Operation::Multiply,
                Some('/') => Operation::Divide,
                _ => return Ok(()),
            };
            self.at += 1;
            self.signed()?;
            self.operations.push(operation);
        }
    }

    fn signed(&mut self) -> Result<(), String> {
        self.deeper(|parser| match parser.peek() {
            Some(sign @ ('-' | '+')) => {
                parser.at += 1;
                parser.signed()?;
                if sign == '-' {
                    parser.operations.push(Operation::Negate);
                }
                Ok(())
            }
            _ => parser.power(),
        })
    }

    fn power(&mut self) -> Result<(), String> {
        self.operand()?;
        if self.peek() == Some('^') {
            self.at += 1;
            // The exponent may have a sign and be a power itself.
            self.signed()?;
            self.operations.push(Operation::Power);
        }
        Ok(())
    }

    fn operand(&mut self) -> Result<(), String> {
        match self.peek() {
            Some('(') => {
                self.at += 1;
                self.sum()?;
                self.expect(')')
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_alphabetic() || c == '_' => self.word(),
            Some(other) => Err(self.unexpected(other, "a number, a grader's name or '('")),
            None => {
                Err("the formula ends where a number or a grader's name was expected".to_owned())
            }
        }
    }

    fn number(&mut self) -> Result<(), String> {
        let rest = &self.text[self.at..];
        let digits = |from: usize| {
            let end = rest[from..].find(|c: char| !c.is_ascii_digit());
            end.map_or(rest.len(), |end| from + end)
        };
        let mut end = digits(0);
        if rest[end..].starts_with('.') {
            end = digits(end + 1);
        }
        if rest[end..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
            let exponent = digits(end + 1 + sign);
            if exponent > end + 1 + sign {
                end = exponent;
            }
        }
        let number = rest[..end].parse();
        let number = number.map_err(|_| format!("'{}' is no number", &rest[..end]))?;
        self.operations.push(Operation::Number(number));
        self.at += end;
        Ok(())
    }

    /// A call of a function, or a grader's name.
    fn word(&mut self) -> Result<(), String> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let word = &rest[..end];
        let start = self.at;
        self.at += end;
        if self.peek() == Some('(') {
            let function = FUNCTIONS.iter().find(|(name, _)| *name == word);
            let (_, function) = function.ok_or_else(|| {
                let known: Vec<&str> = FUNCTIONS.iter().map(|(name, _)| *name).collect();
                format!("there is no function '{word}'; there are {}", known.join(", "))
            })?;
            return self.call(word, *function);
        }
        // Keys that are no plain words, such as `is-right`, are found by the longest that fits.
        let fitting = |(_, name): &(usize, &&str)| {
            let after = self.text[start..].strip_prefix(**name);
            after.is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        };
        let names = self.names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        let found = names.filter(fitting).max_by_key(|(_, name)| name.len());
        let Some((place, name)) = found else {
            let known = self.names.join(", ");
            return Err(format!("there is no grader '{word}'; there are {known}"));
        };
        self.operations.push(Operation::Name(place));
        self.at = start + name.len();
        Ok(())
    }

    fn call(&mut self, name: &str, function: Function) -> Result<(), String> {
        self.at += 1;
        let mut count = 1;
        self.sum()?;
        while self.peek() == Some(',') {
            self.at += 1;
            self.sum()?;
            count += 1;
        }
        self.expect(')')?;
        if count > 1 && !matches!(function, Function::Min | Function::Max) {
            return Err(format!("'{name}' takes one number, but got {count}"));
        }
        self.operations.push(Operation::Call(function, count));
        Ok(())
    }

    fn deeper(&mut self, part: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("the formula is nested more than {MAX_DEPTH} deep"));
        }
        let result = part(self);
        self.depth -= 1;
        result
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        match self.peek() {
            Some(found) if found == wanted => {
                self.at += 1;
                Ok(())
            }
            Some(other) => Err(self.unexpected(other, &format!("'{wanted}'"))),
            None => Err(format!("the formula ends where '{wanted}' was expected")),
        }
    }

    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        let spaces = rest.len() - rest.trim_start().len();
        self.at += spaces;
        self.text[self.at..].chars().next()
    }

    fn unexpected(&self, found: char, expected: &str) -> String {
        let column = self.text[..self.at].chars().count() + 1;
        format!("'{found}' at character {column}, where {expected} was expected")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<f64, String> {
        Formula::parse(text, &["a", "b", "is-right", "min"]).map(|f| f.value(&[2.0, 0.5, 1.0, 9.0]))
    }

    #[test]
    fn operators_bind_as_in_mathematics() {
        for (text, expected) in [
            ("1", 1.0),
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("8 / 4 / 2", 1.0),
            ("8 - 4 - 2", 2.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("-2 ^ 2", -4.0),
            ("2 ^ -1", 0.5),
            ("--2", 2.0),
            ("2 * -3", -6.0),
            (".5 + 1. + 1e1 + 1.5E-1", 11.65),
            ("0.5 * a + b", 1.5),
            ("min(a, b, 3) + max(1, 2)", 2.5),
            ("min", 9.0),
            ("min * 2", 18.0),
            ("abs(-3) + floor(1.7) + ceil(1.2) + exp(0) + sqrt(9) + log(1)", 10.0),
            ("is-right + 1", 2.0),
            ("a-b", 1.5),
            ("\ta\n*\r\n b ", 1.0),
        ] {
            assert_eq!(value(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (text, why) in [
            ("", "ends"),
            ("1 +", "ends"),
            ("(1", "ends"),
            ("0.5 * a + 0.5 * b)", "')' at character 18"),
            ("c", "no grader 'c'"),
            ("ab", "no grader 'ab'"),
            ("pow(1, 2)", "no function 'pow'"),
            ("sqrt(1, 2)", "takes one number"),
            ("sqrt()", "')'"),
            ("1 2", "'2' at character 3"),
            ("a = 1", "'='"),
            ("1 % 2", "'%'"),
            ("__import__('os')", "no function"),
            (".", "no number"),
        ] {
            let error = value(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        for deep in ["(", "-", "2^", "abs("] {
            let error = value(&deep.repeat(1000)).unwrap_err();
            assert!(error.contains("nested"), "{error}");
        }
        assert!(value(&"1+".repeat(MAX_BYTES)).is_err());
    }

    #[test]
    fn values_that_are_no_numbers_come_through() {
        assert_eq!(value("1 / 0"), Ok(f64::INFINITY));
        for text in ["0 / 0", "sqrt(-1)", "log(-1)", "max(1, 0/0)", "min(0/0, 1)", "(-8)^(1/3)"] {
            assert!(value(text).unwrap().is_nan(), "{text}");
        }
    }
}
