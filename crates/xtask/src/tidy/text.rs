//! Rules on the text of one file.

use std::path::Path;

/// Lines of a source file, tests not counted: what one sitting can read.
const FILE_LINES_MAX: usize = 450;
/// rustfmt keeps code at 100; this bound is for what it does not break (long words, strings).
const LINE_CHARS_MAX: usize = 120;
/// Names that say nothing about what a file holds, so that everything ends up in it.
const VAGUE_NAMES: [&str; 8] =
    ["utils", "util", "helpers", "helper", "manager", "misc", "common", "shared"];
/// Crates that may hold `unsafe`, and in how many places.
const UNSAFE_BUDGET: [(&str, usize); 2] = [("crates/kernels", usize::MAX), ("crates/weights", 1)];

pub fn problems(path: &Path, text: &str) -> Vec<String> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let mut problems = Vec::new();
    let mut report = |line: usize, problem: &str| {
        problems.push(format!("{}:{line}: {problem}", path.display()));
    };
    let tested_from = if is_test(path) { 0 } else { lines_without_tests(text) };
    if is_prose_or_code(extension) {
        if !text.is_empty() && !text.ends_with('\n') {
            report(text.lines().count(), "no line end at the end of the file");
        }
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            if line.ends_with([' ', '\t', '\r']) {
                report(number, "space or carriage return at the end of the line");
            }
            // Tests may hold a long row of data, and a row of a table cannot be broken.
            let is_table = line.starts_with("//! |") || line.starts_with("/// |");
            let is_counted = is_code(extension) && number <= tested_from && !is_table;
            if is_counted && line.chars().count() > LINE_CHARS_MAX {
                report(number, &format!("more than {LINE_CHARS_MAX} characters"));
            }
            if names_a_machine_path(line) {
                report(number, "names a path of one machine");
            }
        }
    }
    if is_code(extension) {
        if tested_from > FILE_LINES_MAX {
            report(
                1,
                &format!("{tested_from} lines without tests; at most {FILE_LINES_MAX}: split it"),
            );
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if VAGUE_NAMES.contains(&stem) && !is_test(path) {
            report(1, "this file name says nothing: name what it holds");
        }
    }
    if extension == "rs" {
        if !text.starts_with("//!") && !path.ends_with("tests.rs") {
            report(1, "starts without a header (//!) that says what the file is for");
        }
        let budget = UNSAFE_BUDGET.iter().find(|(krate, _)| path.starts_with(krate));
        let budget = budget.map_or(0, |(_, places)| *places);
        for (number, _) in unsafe_places(text).skip(budget) {
            report(number, "`unsafe` outside the kernels crate");
        }
    }
    problems
}

fn is_code(extension: &str) -> bool {
    matches!(extension, "rs" | "py" | "cpp" | "h" | "cu" | "sql")
}

fn is_prose_or_code(extension: &str) -> bool {
    is_code(extension) || matches!(extension, "md" | "toml" | "yaml" | "yml" | "txt")
}

/// A path that exists on one machine alone. Spelled in two parts, or this file would name one.
fn names_a_machine_path(line: &str) -> bool {
    let places = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];
    places.iter().any(|place| {
        line.match_indices(place).any(|(at, _)| {
            let before = line[..at].chars().next_back().unwrap_or(' ');
            !before.is_alphanumeric() && !"_-.}~/".contains(before)
        })
    })
}

/// Tests that stand in files of their own.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
}

fn lines_without_tests(text: &str) -> usize {
    let tests = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..tests].lines().count()
}

/// Lines that use the keyword, outside comments and strings.
fn unsafe_places(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.lines().enumerate().map(|(index, line)| (index + 1, line)).filter(move |(_, line)| {
        let code = line.split("//").next().unwrap_or_default();
        // What stands between quotation marks: every second piece.
        let code: String = code.split('"').step_by(2).collect();
        code.split(|c| !is_word(c)).any(|word| word == concat!("un", "safe"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        problems(Path::new(path), text)
    }

    #[test]
    fn a_plain_file_is_fine() {
        let text = "//! What it is for.\n\nfn main() {}\n";
        assert_eq!(found("crates/server/src/main.rs", text), Vec::<String>::new());
    }

    #[test]
    fn each_rule_on_text_names_its_line() {
        for (text, problem) in [
            ("//! x\nfn a() {} \n", "2: space"),
            ("//! x\nfn a() {}", "no line end"),
            ("fn a() {}\n", "1: starts without a header"),
            (concat!("//! x\n// see /ho", "me/me/x\n"), "2: names a path"),
            (concat!("//! x\n// y\nun", "safe { x() }\n"), "3: `unsafe`"),
        ] {
            let problems = found("crates/server/src/a.rs", text);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            assert!(problems[0].contains(problem), "{problems:?}");
        }
    }

    #[test]
    fn the_keyword_in_comments_strings_and_kernels_is_fine() {
        let comment = "//! x\n// unsafe\nlet a = \"unsafe\";\nunsafe_code();\n";
        assert!(found("crates/server/src/a.rs", comment).is_empty());
        let block = concat!("//! x\nun", "safe { x() }\n");
        assert!(found("crates/kernels/src/a.rs", block).is_empty());
    }

    #[test]
    fn length_is_counted_without_tests() {
        let long = format!("//! x\n{}", "fn a() {}\n".repeat(FILE_LINES_MAX));
        assert_eq!(found("crates/server/src/a.rs", &long).len(), 1);
        let tested =
            format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn a() {}\n".repeat(500));
        assert!(found("crates/server/src/a.rs", &tested).is_empty());
    }

    #[test]
    fn a_vague_file_name_is_found() {
        assert_eq!(found("crates/server/src/utils.rs", "//! x\n").len(), 1);
    }
}
