use serde_json::{Value, json};

use super::*;
use crate::problem::code;

/// Number, and the row or what is wrong.
type Seen = (u64, Result<Value, String>);

const LIMIT: usize = 200;

/// What a file holds, pushed in chunks of this size; the same for every size.
fn read_in(chunk: usize, file: &[u8]) -> (ContainerKind, Vec<Seen>) {
    let mut rows = Vec::new();
    let mut emit = |row: Row<'_>| match row {
        Row::Whole { bytes, .. } if bytes.trim_ascii().is_empty() => {}
        Row::Whole { number, offset, bytes } => {
            let text = String::from_utf8_lossy(bytes);
            let json = serde_json::from_slice(bytes).map_err(|_| format!("no JSON: {text}"));
            if file.starts_with(b"[") {
                assert!(file[offset as usize..].starts_with(bytes), "row {number} at {offset}");
            }
            rows.push((number, json));
        }
        Row::TooLong { number } => rows.push((number, Err("too long".to_owned()))),
        Row::Faulty(problem) => {
            rows.push((problem.line.unwrap_or(0), Err(format!("{}: {problem}", problem.code))));
        }
    };
    let mut container = Container::new(LIMIT);
    file.chunks(chunk).for_each(|part| container.push(part, &mut emit));
    container.finish(&mut emit);
    (container.kind(), rows)
}

fn read(file: impl AsRef<[u8]>) -> (ContainerKind, Vec<Seen>) {
    let whole = read_in(usize::MAX, file.as_ref());
    for chunk in [1, 2, 3, 7] {
        assert_eq!(read_in(chunk, file.as_ref()), whole, "in chunks of {chunk}");
    }
    whole
}

/// The one fault of a file, which is in this row.
fn fault(file: impl AsRef<[u8]>, number: u64) -> String {
    let (_, rows) = read(file);
    let mut faults = rows.into_iter().filter_map(|(at, row)| Some((at, row.err()?)));
    let (at, fault) = faults.next().unwrap();
    assert_eq!((at, faults.next()), (number, None), "{fault}");
    fault
}

#[test]
fn every_container_gives_the_same_rows() {
    let (a, b) = (
        json!({"prompt": "a, \"b\"\nc", "completion": "]}"}),
        json!({"prompt": "ä", "completion": ""}),
    );
    let lines = format!("{a}\r\n\n{b}");
    assert_eq!(read(&lines), (ContainerKind::Lines, vec![(1, Ok(a.clone())), (3, Ok(b.clone()))]));
    let pretty = serde_json::to_string_pretty(&[&a, &b]).unwrap();
    for array in [format!("[{a},{b}]\n"), format!("\u{feff} [\n{a} ,\n\n {b},]"), pretty] {
        let rows = vec![(1, Ok(a.clone())), (2, Ok(b.clone()))];
        assert_eq!(read(&array), (ContainerKind::Array, rows), "{array}");
    }
    for separator in [",", ";", "\t"] {
        for newline in ["\n", "\r\n"] {
            let csv = ["prompt|completion", "\"a, \"\"b\"\"\nc\"|]}", "", "ä|\"\"", ""]
                .join(newline)
                .replace('|', separator);
            let rows = vec![(2, Ok(a.clone())), (5, Ok(b.clone()))];
            assert_eq!(read(&csv), (ContainerKind::Csv, rows), "{csv:?}");
        }
    }
}

#[test]
fn a_csv_names_its_columns_as_a_format_does_or_is_none() {
    for header in
        ["instruction,input,output", "\u{feff}\"question\",\"answer\"", "text", ",chosen,rejected"]
    {
        assert_eq!(read(format!("{header}\n")).0, ContainerKind::Csv, "{header}");
    }
    for other in ["", " ", "foo,bar\n1,2", "hello", "prompt", &"a,".repeat(100_000), "\u{feff}"] {
        assert_eq!(read_in(1000, other.as_bytes()).0, ContainerKind::Lines, "{other}");
    }
}

#[test]
fn columns_that_hold_json_are_read_as_it() {
    let csv = "messages,tools\n\"[{\"\"role\"\":\"\"user\"\"}]\",\n";
    assert_eq!(read(csv).1, [(2, Ok(json!({"messages": [{"role": "user"}]})))]);
    let csv = ",prompt,completion,label\n0,1,[],True\n1,null,true,false\n";
    let rows = [
        (2, Ok(json!({"prompt": "1", "completion": "[]", "label": true}))),
        (3, Ok(json!({"prompt": "null", "completion": "true", "label": false}))),
    ];
    assert_eq!(read(csv).1, rows);
    let fault = fault("messages\n\"[{'role': 'user'}]\"\n", 2);
    assert!(fault.contains("column 'messages' must hold JSON"), "{fault}");
    assert!(fault.contains("json.dumps"), "{fault}");
    // A cell's text cannot end its column.
    let injected = "messages\n\"[],\"\"x\"\":[]\"\n";
    assert!(read(injected).1[0].1.as_ref().unwrap_err().contains(code::INVALID_JSON));
}

#[test]
fn records_that_do_not_fit_the_header_are_named() {
    let fault = fault("prompt,completion\na,b\nc,d,e\nf,g\n", 3);
    assert!(fault.contains("3 column(s), but the header names 2"), "{fault}");
    let unclosed = read("prompt,completion\na,b\n\"c,d\ne,f\n").1;
    assert!(unclosed[1].1.as_ref().unwrap_err().contains("1 column(s)"), "{unclosed:?}");
}

#[test]
fn bytes_that_are_no_text_are_named_with_their_column() {
    let fault = fault(b"prompt,completion\na,b\xff\n", 2);
    assert!(fault.starts_with("invalid_utf8") && fault.contains("'completion'"), "{fault}");
    assert!(fault.contains("byte 0xFF"), "{fault}");
}

#[test]
fn rows_over_the_limit_are_named_and_not_held() {
    let long = "x".repeat(LIMIT);
    assert_eq!(fault(format!("[1,{{\"a\":\"{long}\"}},3]"), 2), "too long");
    assert_eq!(
        fault(
            format!("prompt,completion\na,b\n{long},d\ne,{long}{long}\nf,g").replace("d\ne,", ""),
            3
        ),
        "too long"
    );
    // Quotes and line breaks become longer as JSON.
    let quotes = "\"\"".repeat(LIMIT / 2);
    assert_eq!(fault(format!("text\na\n\"{quotes}\"\n"), 3), "too long");
    let many = ",".repeat(10_000);
    assert!(read(format!("text\n{}\n", &many[..150])).1[0].1.as_ref().unwrap_err().contains("151"));
}

#[test]
fn an_array_that_is_cut_off_or_goes_on_is_told() {
    for cut in ["[", "[1,", "[1,{\"a\":\"]\"}", "[1,\"a\\\"]"] {
        let fault = read(cut).1.pop().unwrap().1.unwrap_err();
        assert!(fault.contains("is cut off"), "{cut}: {fault}");
    }
    let fault = fault("[1]\n[2]\n[3]", 0);
    assert!(fault.contains("goes on behind the ']'") && fault.contains("byte 4"), "{fault}");
    // A bracket too many makes one element wrong, and the array none.
    assert_eq!(read("[1},2]").1[1], (2, Ok(json!(2))));
}
