//! Whole files through the checker: real rows, faults of every kind, limits, memory, speed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dataset::{
    ChatTokenizer, Checked, Checker, Cursor, Expected, FileRole, Format, Limits, LoadError, Shape,
    TokenizerParts, code, load,
};
use proptest::prelude::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn parts_of(template: Option<&str>) -> Result<ChatTokenizer, LoadError> {
    let read = |name: &str| std::fs::read(root().join("tests/golden/dataset").join(name)).unwrap();
    ChatTokenizer::from_parts(TokenizerParts {
        tokenizer_json: &read("tokenizer.json"),
        tokenizer_config_json: Some(&read("tokenizer_config.json")),
        chat_template: template,
    })
}

fn tokenizer() -> ChatTokenizer {
    let path = root().join("tests/golden/dataset/chat_ml.jinja");
    parts_of(Some(&std::fs::read_to_string(path).unwrap())).unwrap()
}

fn data(name: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/data").join(name)).unwrap()
}

fn limits() -> Limits {
    Limits::new(FileRole::Training, Format::Chat, 512)
}

fn check_with(bytes: &[u8], limits: Limits) -> Checked {
    let tokenizer = tokenizer();
    let mut checker = Checker::new(&tokenizer, limits);
    bytes.chunks(1000).for_each(|chunk| checker.push(chunk));
    checker.finish()
}

fn check(bytes: &[u8]) -> Checked {
    check_with(bytes, limits())
}

const ROW: &str =
    r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

/// Ten good rows with `row` as the fourth.
fn with_row(row: impl AsRef<[u8]>) -> Vec<u8> {
    let mut rows: Vec<&[u8]> = vec![ROW.as_bytes(); 10];
    rows[3] = row.as_ref();
    rows.join(&b'\n')
}

/// Code and line of every problem.
fn found(checked: &Checked) -> Vec<(&str, Option<u64>)> {
    checked.problems.iter().map(|problem| (problem.code, problem.line)).collect()
}

#[test]
fn real_files_are_good() {
    for (name, rows) in [("sentiment_train.jsonl", 512), ("address_train.jsonl", 256)] {
        let checked = check(&data(name));
        assert_eq!(found(&checked), [], "{name}");
        let stats = checked.stats;
        assert_eq!(stats.n_examples, rows);
        assert!(stats.target_tokens >= 2 * rows && stats.target_tokens < stats.tokens);
        assert_eq!(stats.tokens, stats.tokens_after_truncation);
        assert_eq!(stats.lengths.iter().map(|bucket| bucket.examples).sum::<u64>(), rows);
    }
}

#[test]
fn each_fault_is_named_with_its_line() {
    let deep = format!(r#"{{"messages":[],"x":{}{}}}"#, "[".repeat(9999), "]".repeat(9999));
    let special = ROW.replace('q', "<|im_start|>system");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"{\"messages\":[".to_vec(), code::INVALID_JSON),
        (b"hello".to_vec(), code::INVALID_JSON),
        (b"[1]".to_vec(), code::DATA_TYPE),
        (br#"{"text":"x"}"#.to_vec(), code::MISSING_MESSAGES_LIST),
        (br#"{"prompt":"x","completion":"y"}"#.to_vec(), code::UNEXPECTED_FORMAT),
        (ROW.replace("\"user\"", "\"bot\"").into_bytes(), code::UNRECOGNIZED_ROLE),
        (
            ROW.replace("\"assistant\"", "\"user\"").into_bytes(),
            code::EXAMPLE_MISSING_ASSISTANT_MESSAGE,
        ),
        (b"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}".to_vec(), code::INVALID_UTF8),
        (deep.into_bytes(), code::NESTING_TOO_DEEP),
        (ROW.replace("\"q\"", "\"a\\u0000\"").into_bytes(), code::NUL_CHARACTER),
        (ROW.replace("\"q\"", "\"\\ud800\"").into_bytes(), code::INVALID_JSON),
        (ROW.replace("\"q\"", "1e400").into_bytes(), code::INVALID_JSON),
        (ROW.replace("\"q\"", "\"q\",\"content\":\"r\"").into_bytes(), code::DUPLICATE_KEY),
        (special.into_bytes(), code::SPECIAL_TOKEN),
        (ROW.replace("\"q\"", "\"\\u003c|im_end|>\"").into_bytes(), code::SPECIAL_TOKEN),
    ];
    for (row, expected) in cases {
        let checked = check(&with_row(&row));
        let row = String::from_utf8_lossy(&row[..row.len().min(100)]).into_owned();
        assert_eq!(found(&checked), [(expected, Some(4))], "{row}");
        assert_eq!(checked.total_problems, 1);
        assert!(checked.problems[0].message.starts_with("Example 4"), "{:?}", checked.problems);
    }
}

#[test]
fn the_special_token_is_named_with_message_and_path() {
    let checked = check(&with_row(ROW.replace('q', "x <|im_start|>system")));
    let problem = &checked.problems[0];
    assert_eq!(
        problem.message,
        "Example 4 message contains an invalid token: <|im_start|> (message 1, key 'content')"
    );
    assert_eq!(problem.path.as_deref(), Some("messages[0].content"));
}

#[test]
fn bad_utf8_is_named_with_its_byte() {
    let mut bytes = with_row(b"{\"\xc3\xa9\": \"\xff\"}");
    let expected = bytes.iter().position(|&byte| byte == 0xff).unwrap();
    bytes.splice(0..0, *b"\xef\xbb\xbf");
    let message = check(&bytes).problems[0].message.clone();
    assert!(message.contains("0xFF at byte 8 of the line"), "{message}");
    assert!(message.contains(&format!("byte {} of the file", expected + 3)), "{message}");
}

#[test]
fn all_faults_are_found_not_only_the_first() {
    let mut bytes = with_row("{");
    bytes.extend(b"\n{}\n\n[]\n");
    let expected = [
        (code::INVALID_JSON, Some(4)),
        (code::MISSING_MESSAGES_LIST, Some(11)),
        (code::DATA_TYPE, Some(13)),
    ];
    assert_eq!(found(&check(&bytes)), expected);
}

#[test]
fn a_file_needs_ten_examples() {
    let three = [ROW; 3].join("\n");
    let checked = check(three.as_bytes());
    assert_eq!(found(&checked), [(code::INVALID_N_EXAMPLES, None)]);
    assert_eq!(
        checked.problems[0].message,
        "Training file has 3 example(s), but must have at least 10 examples"
    );
    let limits = Limits::new(FileRole::Validation, Format::Chat, 512);
    assert_eq!(found(&check_with(three.as_bytes(), limits)), []);
}

#[test]
fn a_file_without_examples_is_empty() {
    for bytes in [&b""[..], b"\n", b"\xef\xbb\xbf", b" \r\n\n\t\n"] {
        assert_eq!(found(&check(bytes)), [(code::EMPTY_FILE, None)]);
    }
}

#[test]
fn byte_order_mark_carriage_returns_and_blank_lines_are_accepted() {
    let mut bytes = b"\xef\xbb\xbf".to_vec();
    bytes.extend([ROW; 10].join("\r\n").as_bytes());
    bytes.extend(b"\r\n\r\n\n  \n");
    let checked = check(&bytes);
    assert_eq!(found(&checked), []);
    assert_eq!(checked.stats.n_examples, 10);
}

#[test]
fn other_formats_are_recognised_and_said_once() {
    let preference = r#"{"input":{"messages":[]},"preferred_output":[],"non_preferred_output":[]}"#;
    let labelled = r#"{"prompt":"p","completion":"c","label":true}"#;
    let chosen = r#"{"prompt":"p","chosen":"c","rejected":"d"}"#;
    for (row, name) in [
        (preference, "preference pairs"),
        (labelled, "labelled answers"),
        (chosen, "chosen/rejected pairs"),
    ] {
        let checked = check([row; 12].join("\n").as_bytes());
        assert_eq!(found(&checked), [(code::UNEXPECTED_FORMAT, Some(1))]);
        let message = &checked.problems[0].message;
        assert!(message.contains(name) && message.contains("expected chat messages"), "{message}");
    }
}

const TEXT: &str = r#"{"text":"It was the best of times."}"#;

fn supervised(rows: &[&str]) -> Checked {
    let limits = Limits::new(FileRole::Training, Expected::Supervised, 64);
    check_with(rows.join("\n").as_bytes(), limits)
}

#[test]
fn the_first_row_decides_what_a_supervised_file_holds() {
    for (row, format) in [(TEXT, Format::Text), (ROW, Format::Chat)] {
        let checked = supervised(&[row; 12]);
        assert_eq!((found(&checked), checked.format), (vec![], format));
        assert_eq!((checked.stats.n_examples, checked.stats.n_sequences), (12, 12));
    }
    // A row that cannot be read decides nothing.
    let checked = supervised(&[&["{"; 1][..], &[TEXT; 12]].concat());
    assert_eq!(checked.format, Format::Text);
    assert_eq!(found(&checked), [(code::INVALID_JSON, Some(1))]);
}

#[test]
fn rows_of_another_kind_are_refused_by_line() {
    for (row, other, name) in [(TEXT, ROW, "chat messages"), (ROW, TEXT, "plain text")] {
        let mut rows = [row; 12];
        (rows[4], rows[9]) = (other, other);
        let checked = supervised(&rows);
        let code = code::UNEXPECTED_FORMAT;
        assert_eq!(found(&checked), [(code, Some(5)), (code, Some(10))]);
        let message = &checked.problems[0].message;
        assert!(message.starts_with(&format!("Example 5 looks like {name}")), "{message}");
    }
    let pair = r#"{"input":{},"preferred_output":[],"non_preferred_output":[]}"#;
    let checked = supervised(&[pair; 12]);
    assert_eq!(found(&checked), [(code::UNEXPECTED_FORMAT, Some(1))]);
    let message = &checked.problems[0].message;
    assert!(message.contains("or plain text") && message.contains("method 'dpo'"), "{message}");
}

#[test]
fn rows_that_show_no_shape_stand_beside_those_of_openai_and_of_anthropic() {
    let openais =
        ROW.replace(r#"[{"role":"user""#, r#"[{"role":"system","content":"s"},{"role":"user""#);
    let anthropics = ROW.replace(r#"{"messages""#, r#"{"system":"s","messages""#);
    for (rows, shape) in [([ROW; 12], Shape::Messages), ([&*openais; 12], Shape::Chat)] {
        assert_eq!(supervised(&rows).shape, shape);
    }
    let mut rows = [ROW; 12];
    (rows[4], rows[7]) = (&anthropics, &anthropics);
    let checked = supervised(&rows);
    assert_eq!((found(&checked), checked.shape), (vec![], Shape::Anthropic));
    assert_eq!(checked.format, Format::Chat);
    rows[7] = &openais;
    let checked = supervised(&rows);
    assert_eq!(found(&checked), [(code::UNEXPECTED_FORMAT, Some(8))]);
    let message = &checked.problems[0].message;
    assert!(message.contains("the file are Anthropic messages"), "{message}");
}

#[test]
fn faults_of_texts_are_named_with_their_lines() {
    let mut rows = [TEXT; 14];
    rows[1] = r#"{"text":" \n"}"#;
    rows[3] = r#"{"text":7}"#;
    rows[5] = r#"{"text":"a <|im_end|> b"}"#;
    rows[7] = r#"{"text":"a","meta":{}}"#;
    rows[9] = r#"{"txt":"a"}"#;
    rows[11] = r#"{"text":"a\u0000"}"#;
    let expected = [
        (code::MISSING_CONTENT, 2),
        (code::DATA_TYPE, 4),
        (code::SPECIAL_TOKEN, 6),
        (code::UNRECOGNIZED_KEY, 8),
        (code::UNRECOGNIZED_KEY, 10),
        (code::MISSING_KEY, 10),
        (code::NUL_CHARACTER, 12),
    ];
    let expected = expected.map(|(code, line)| (code, Some(line)));
    assert_eq!(found(&supervised(&rows)), expected);
}

#[test]
fn long_texts_are_split_and_counted() {
    let long = TEXT.replace("times", &"word ".repeat(100));
    let mut rows = [TEXT; 12];
    rows[2] = &long;
    let checked = supervised(&rows);
    assert_eq!(found(&checked), []);
    let stats = checked.stats;
    assert_eq!((stats.n_split, &stats.split_lines[..], stats.n_truncated), (1, &[3][..], 0));
    assert_eq!(stats.n_examples, 12);
    let pieces = stats.n_sequences - 11;
    assert_eq!(pieces, (stats.max_tokens - 1).div_ceil(63));
    // Each later piece has one token of the piece before it as context; each row's first token is no target.
    assert_eq!(stats.tokens_after_truncation, stats.tokens + pieces - 1);
    assert_eq!(stats.target_tokens, stats.tokens - 12);
    // One long text alone is many examples.
    let book = TEXT.replace("times", &"word ".repeat(1000));
    assert_eq!(found(&supervised(&[&book])), []);
}

#[test]
fn load_gives_every_piece_of_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("texts.jsonl");
    let long = TEXT.replace("times", &"word ".repeat(100));
    std::fs::write(&path, format!("{TEXT}\n{long}\n")).unwrap();
    let data = load(&path, Expected::Supervised, &tokenizer(), 64).unwrap();
    assert_eq!(data.format, Format::Text);
    assert!(data.rows() > 2 && data.examples.iter().all(|e| e.input_ids.len() <= 64));
    let problems = load(&path, Format::Chat, &tokenizer(), 64).unwrap_err();
    assert_eq!(problems[0].code, code::UNEXPECTED_FORMAT);
}

#[test]
fn a_long_line_is_skipped_and_the_rest_is_checked() {
    let mut bytes = with_row("");
    let tokenizer = tokenizer();
    let mut checker = Checker::new(&tokenizer, limits());
    checker.push(&bytes);
    checker.push(b"\n{\"messages\":\"");
    let chunk = vec![b'x'; 1 << 16];
    for _ in 0..(100 << 20) / chunk.len() {
        checker.push(&chunk);
    }
    bytes.clear();
    checker.push(b"\"}\n{}\n");
    let expected = [(code::LINE_TOO_LONG, Some(11)), (code::MISSING_MESSAGES_LIST, Some(12))];
    assert_eq!(found(&checker.finish()), expected);
}

#[test]
fn problems_are_capped_and_counted() {
    let checked = check("{}\n".repeat(2500).as_bytes());
    assert_eq!((checked.problems.len(), checked.total_problems), (1000, 2500));
    assert_eq!(checked.problems[999].line, Some(1000));
}

#[test]
fn cut_examples_are_named() {
    let long = ROW.replace("\"q\"", &format!("\"{}\"", "word ".repeat(2000)));
    let checked = check(&with_row(&long));
    assert_eq!(found(&checked), []);
    let stats = checked.stats;
    assert_eq!((stats.n_truncated, &stats.truncated_lines[..]), (1, &[4][..]));
    assert_eq!((stats.n_targets_cut, &stats.lines_targets_cut[..]), (1, &[4][..]));
    assert_eq!(stats.n_without_targets, 0);
    assert!(stats.max_tokens > 2000);
    assert_eq!(stats.tokens - stats.tokens_after_truncation, stats.max_tokens - 512);
}

#[test]
fn a_file_with_nothing_to_train_on_is_a_problem() {
    let masked = ROW.replace("\"a\"", "\"a\",\"weight\":0");
    let checked = check([masked.as_str(); 10].join("\n").as_bytes());
    assert_eq!(found(&checked), [(code::NO_TARGET_TOKENS, None)]);
}

#[test]
fn a_row_that_the_template_refuses_is_a_problem_of_that_row() {
    let template = "{% for m in messages %}{% if m.role == 'system' %}\
                    {{ raise_exception('System role not supported') }}{% endif %}\
                    {{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}";
    let tokenizer = parts_of(Some(template)).unwrap();
    let mut checker = Checker::new(&tokenizer, limits());
    checker.push(&with_row(ROW.replace("user", "system")));
    let checked = checker.finish();
    assert_eq!(found(&checked), [(code::CHAT_TEMPLATE, Some(4))]);
    let message = &checked.problems[0].message;
    assert!(message.contains("System role not supported"), "{message}");
}

#[test]
fn a_tokenizer_without_chat_template_says_so() {
    assert!(matches!(parts_of(None), Err(LoadError::NoChatTemplate)));
}

#[test]
fn load_gives_the_rows_in_order_and_resumable_batches() {
    let path = root().join("tests/data/sentiment_train.jsonl");
    let data = load(&path, Format::Chat, &tokenizer(), 64).unwrap();
    assert_eq!(data.examples.len(), 512);
    assert!(data.examples.iter().all(|example| example.input_ids.len() <= 64));
    assert!(data.examples.iter().any(|example| example.truncated));
    let mut cursor = Cursor::default();
    let first = data.next_batch(7, &mut cursor, 8);
    assert_eq!(first, data.epoch_order(7, 0)[..8]);
    assert_eq!(cursor, Cursor { epoch: 0, index: 8 });
}

#[test]
fn load_of_a_bad_file_gives_its_problems() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    std::fs::write(&path, with_row("{")).unwrap();
    let problems = load(&path, Format::Chat, &tokenizer(), 64).unwrap_err();
    assert_eq!((problems[0].code, problems[0].line), (code::INVALID_JSON, Some(4)));
    let missing = load(&folder.path().join("none"), Format::Chat, &tokenizer(), 64).unwrap_err();
    assert_eq!(missing[0].code, code::UNREADABLE_FILE);
}

/// The best of a few runs, so that a busy machine does not fail the test.
#[test]
fn a_hundred_rows_are_checked_in_less_than_100_ms() {
    let tokenizer = tokenizer();
    let bytes = data("sentiment_train.jsonl");
    let end = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(99).unwrap().0;
    let run = || {
        let start = Instant::now();
        let mut checker = Checker::new(&tokenizer, limits());
        checker.push(&bytes[..end]);
        assert_eq!(checker.finish().stats.n_examples, 100);
        start.elapsed()
    };
    let best = (0..5).map(|_| run()).min().unwrap();
    assert!(best < Duration::from_millis(100), "{best:?}");
}

#[test]
#[ignore = "a measurement: needs FINETUNED_SMOLLM2, a folder of an imported SmolLM2-135M-Instruct"]
fn speed() {
    let folder = std::env::var_os("FINETUNED_SMOLLM2").expect("FINETUNED_SMOLLM2 names a folder");
    let start = Instant::now();
    let tokenizer = ChatTokenizer::from_folder(Path::new(&folder)).unwrap();
    println!("load tokenizer {:?}", start.elapsed());
    let bytes = data("sentiment_train.jsonl");
    let hundred = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(99).unwrap().0;
    for (name, part, times) in
        [("100 rows", &bytes[..hundred], 1), ("102,400 rows", &bytes[..], 200)]
    {
        let start = Instant::now();
        let mut checker = Checker::new(&tokenizer, limits());
        (0..times).for_each(|_| checker.push(part));
        let stats = checker.finish().stats;
        println!("{name}: {:?}, {} tokens", start.elapsed(), stats.tokens);
    }
}

#[test]
#[ignore = "a measurement: prints the peak memory of hostile rows and the time of a long prompt"]
fn memory() {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned()
    };
    println!("start: {}", peak());
    let fill = |text: &str| text.repeat((4 << 20) / text.len() - 50);
    let content = |text: &str| ROW.replace("\"q\"", &format!("\"{}\"", fill(text)));
    let rows = [
        ("[]", format!("{{\"messages\":[{}0]}}", fill("[],"))),
        ("words", content("some words ")),
        ("one letter", content("a")),
        ("emoji", content("\u{1f600}")),
    ];
    let rows = rows.into_iter().chain([("digits", content("1234567890"))]);
    for (name, row) in rows {
        let start = Instant::now();
        let checked = check(row.as_bytes());
        let (n, tokens) = (checked.total_problems, checked.stats.max_tokens);
        println!("{name}: {}, {n} problems, {tokens} tokens, {:?}", peak(), start.elapsed());
    }
    let message = serde_json::json!({"role": "user", "content": "a".repeat(1 << 20)});
    let start = Instant::now();
    let ids = tokenizer().encode_prompt(&[message], &[]).unwrap();
    println!("prompt of 1 MiB: {} tokens, {:?}", ids.len(), start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(b'"'), Just(b'{'), Just(b'\n')],
            0..300,
        ),
        chunk in 1usize..100,
    ) {
        let tokenizer = tokenizer();
        let mut checker = Checker::new(&tokenizer, Limits { max_line_bytes: 64, ..limits() });
        bytes.chunks(chunk).for_each(|part| checker.push(part));
        let checked = checker.finish();
        prop_assert!(checked.total_problems > 0);
    }

    #[test]
    fn a_damaged_row_is_reported_or_still_good(at in 0usize..ROW.len(), byte: u8) {
        let mut row = ROW.as_bytes().to_vec();
        row[at] = byte;
        let checked = check(&with_row(&row));
        let lines = checked.problems.iter().map(|problem| problem.line.unwrap_or_default());
        prop_assert!(lines.into_iter().all(|line| (4..=5).contains(&line)));
    }
}
