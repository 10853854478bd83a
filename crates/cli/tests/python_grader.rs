//! Python graders in their cage, through the program's own hidden command: what they can do, and that nothing else
//! is possible. The process under test is the one that servers start.

use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;

use sandbox::{Cage, Interpreter, Limits};
use serde_json::{Value, json};

/// As much of an answer as a server reads.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
const LIMITS: Limits = Limits { memory: 512 << 20, processor_seconds: 10 };

struct End {
    answer: Value,
    /// Not a line of JSON, or more than is read.
    text: String,
    status: ExitStatus,
}

impl End {
    fn error(&self) -> &str {
        self.answer["error"].as_str().unwrap_or_else(|| panic!("{} {}", self.text, self.status))
    }
}

fn interpreter() -> Interpreter {
    static FOUND: OnceLock<Interpreter> = OnceLock::new();
    FOUND.get_or_init(|| Interpreter::find("python3").unwrap()).clone()
}

fn graded_within(limits: Limits, source: &str, item: &Value) -> End {
    let launcher = Path::new(env!("CARGO_BIN_EXE_finetuned"));
    let mut child = Cage::new(interpreter(), limits)
        .command(launcher)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let request = json!({
        "source": source,
        "sample": {"output_text": "blue", "output_json": {"n": [1, 2]}},
        "item": item,
    });
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let mut text = String::new();
    let output = child.stdout.take().unwrap();
    output.take(MAX_ANSWER_BYTES).read_to_string(&mut text).unwrap();
    if text.len() as u64 == MAX_ANSWER_BYTES {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    End { answer: serde_json::from_str(&text).unwrap_or_default(), text, status }
}

fn graded(source: &str) -> End {
    graded_within(LIMITS, source, &json!({"label": "blue", "weight": 0.5}))
}

#[test]
fn graders_compute_with_the_whole_language_and_its_library() {
    for (source, reward) in [
        (
            "def grade(sample, item):\n    return 1.0 if sample['output_text'] == item['label'] else 0.0",
            1.0,
        ),
        ("def grade(sample, item): return item['weight'] + sample['output_json']['n'][1]", 2.5),
        ("grade = lambda s, i: True", 1.0),
        ("def grade(s, i): return 3", 3.0),
        (
            "import difflib, re, json, math, statistics, collections, random, datetime, threading\n\
             class A:\n    def score(self): return 1\n\
             class B(A):\n    def score(self): return super().score() + sum(n for n in range(3))\n\
             def grade(s, i):\n\
             \x20   done = []\n\
             \x20   thread = threading.Thread(target=done.append, args=(1,))\n\
             \x20   thread.start(); thread.join()\n\
             \x20   return B().score() + len(done) + difflib.SequenceMatcher(None, 'ab', 'ab').ratio()",
            6.0,
        ),
        ("def grade(s, i):\n    print('words' * 100000)\n    return 0.25", 0.25),
    ] {
        assert_eq!(graded(source).answer, json!({"reward": reward}), "{source}");
    }
}

#[test]
fn the_cage_passes_its_own_test() {
    assert_eq!(graded(sandbox::SELF_TEST).answer, json!({"reward": 1.0}));
}

#[test]
fn the_test_of_the_cage_finds_what_is_open() {
    // The same grader, outside. Becoming another program would end it.
    let program = format!("{}\nos.execv = print\ngrade({{}}, {{}})", sandbox::SELF_TEST);
    let output =
        std::process::Command::new("python3").args(["-I", "-c", &program]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    let open =
        "not closed: reading files, listing folders, writing files, the environment of the server";
    assert!(words.contains(open) && words.contains("network"), "{words}");
}

#[test]
fn wrong_programs_and_wrong_rewards_are_told() {
    for (source, error) in [
        ("def grade(s, i):\n    return 'high'", "grade returned str, not a number"),
        ("def grade(s, i): pass", "grade returned NoneType, not a number"),
        ("def grade(s, i): return [1.0]", "grade returned list, not a number"),
        ("def grade(s, i): return float('nan')", "grade returned nan"),
        ("def grade(s, i): return 10 ** 400", "OverflowError"),
        ("def grade(s, i):\n    x = {}\n    return x['gone']", "KeyError: 'gone' (line 3)"),
        ("def grade(s, i): raise ValueError('no')", "ValueError: no (line 1)"),
        ("def grade(s, i): return exit(3)", "SystemExit: 3"),
        ("def grade(s): return 1", "TypeError: grade() takes 1 positional"),
        ("def grade(s, i:\n    return 1", "SyntaxError"),
        ("x = 1", "no function grade(sample, item)"),
        ("grade = 1", "no function grade(sample, item)"),
        ("import numpy_that_is_not_there", "ModuleNotFoundError"),
        ("class E(Exception):\n    def __str__(self): raise E\ndef grade(s, i): raise E", "E:"),
        ("def grade(s, i): return grade(s, i)", "RecursionError"),
    ] {
        let end = graded(source);
        assert!(end.error().contains(error), "{source}: {}", end.text);
    }
}

/// Makes every attempt of the item, and tells which did not end as they must.
const ATTEMPTS: &str = "
def grade(sample, item):
    wrong = []
    for body, refusal in item['attempts']:
        try:
            exec(body, {})
            end = 'it worked'
        except BaseException as error:
            end = f'{type(error).__name__}: {error}'
        if refusal not in end:
            wrong.append(f'{body} -> {end}')
    if wrong:
        raise RuntimeError('; '.join(wrong))
    return len(item['attempts'])
";

#[test]
fn nothing_outside_can_be_reached() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let own = format!("open({own:?}).read()");
    let attempts = [
        (own.as_str(), "PermissionError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open('/proc/self/environ').read()", "PermissionError"),
        ("import os; open(f'/proc/{os.getppid()}/cmdline').read()", "PermissionError"),
        ("import os; os.listdir('/proc')", "PermissionError"),
        ("import os; os.listdir('/')", "PermissionError"),
        ("open('/etc/finetuned/config.toml').read()", "Error"),
        ("open('/tmp/grader-was-here-too', 'w')", "PermissionError"),
        ("import tempfile; tempfile.TemporaryFile()", "FileNotFoundError"),
        ("import os; os.unlink('/etc/hostname')", "PermissionError"),
        ("__import__('os').system('true') == 0 or 1/0", "ZeroDivisionError"),
        ("import subprocess; subprocess.run(['/bin/true'])", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.execv('/bin/sh', ['sh'])", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import os; os.kill(-1, 9)", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "PermissionError"),
        ("import socket; socket.socket(socket.AF_UNIX)", "PermissionError"),
        ("import socket; socket.socketpair()", "PermissionError"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')", "URLError"),
        (
            "import multiprocessing; multiprocessing.Process(target=print).start()",
            "PermissionError",
        ),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "Error"),
        ("import ctypes; ctypes.CDLL('/etc/passwd')", "OSError"),
        ("import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
        ("import ctypes; assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0", "AssertionError"),
        ("import ctypes; assert ctypes.CDLL(None).syscall(425, 1, 0) == 0", "AssertionError"),
        ("import os; assert set(os.environ) <= {'LC_CTYPE'}; 1/0", "ZeroDivisionError"),
        (
            "import gc; assert not [o for o in gc.get_objects() if isinstance(o, dict) and 'PATH' in o]; 1/0",
            "ZeroDivisionError",
        ),
    ];
    let end = graded_within(LIMITS, ATTEMPTS, &json!({ "attempts": attempts }));
    assert_eq!(end.answer, json!({"reward": attempts.len() as f64}), "{}", end.text);
}

#[test]
fn memory_time_and_output_are_bounded() {
    let memory =
        graded("def grade(s, i):\n    x = []\n    while True: x.append(bytearray(1 << 24))");
    assert!(memory.error().starts_with("MemoryError"), "{}", memory.text);
    let at_once = graded("def grade(s, i): return len(bytearray(1 << 40))");
    assert!(at_once.error().starts_with("MemoryError"), "{}", at_once.text);
    let short = Limits { processor_seconds: 1, ..LIMITS };
    for endless in [
        "def grade(s, i):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        "def grade(s, i): return 9 ** 9 ** 9",
        "import re\ndef grade(s, i): return bool(re.match('(a+)+$', 'a' * 64 + 'b'))",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    ] {
        let end = graded_within(short, endless, &json!({}));
        assert!(
            matches!(end.status.signal(), Some(24 | 9)),
            "{endless}: {} {}",
            end.text,
            end.status
        );
    }
    let flood = "import os\ndef grade(s, i):\n    while True: os.write(3, b'x' * 65536)";
    assert_eq!(graded(flood).text.len() as u64, MAX_ANSWER_BYTES);
}

#[test]
fn threads_cannot_be_started_without_end() {
    let bomb = "import threading, time\n\
                def grade(s, i):\n\
                \x20   while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()";
    let end = graded(bomb);
    assert!(end.error().contains("thread") || end.error().contains("Memory"), "{}", end.text);
}

#[test]
fn crashes_end_the_grader_alone() {
    for (crash, signals) in [
        ("import ctypes\ndef grade(s, i): return ctypes.string_at(0)", &[11, 7][..]),
        (
            "import sys\nsys.setrecursionlimit(10 ** 9)\nf = lambda n: [f(n) for _ in 'x']\ndef grade(s, i): return f(0)",
            &[11, 24, 9],
        ),
    ] {
        let end = graded(crash);
        let ended = end.status.signal().is_some_and(|signal| signals.contains(&signal));
        assert!(ended || end.answer["error"].is_string(), "{crash}: {} {}", end.text, end.status);
    }
    let silent = graded("import os\ndef grade(s, i): os._exit(0)");
    assert_eq!((silent.text.as_str(), silent.status.code()), ("", Some(0)));
}

#[test]
fn a_cage_closes_only_around_a_child_of_its_server() {
    let mut told = json!(Cage::new(interpreter(), LIMITS));
    told["parent"] = json!(1);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_finetuned"))
        .args([sandbox::COMMAND, &told.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(sandbox::NOT_LOCKED.into()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the parent has ended"));
    let missing = Interpreter::find("/nowhere/python3").unwrap_err().to_string();
    assert!(missing.contains("graders.python"), "{missing}");
}
