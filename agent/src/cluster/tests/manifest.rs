//! Text to objects, and fields back to lines.

use crate::cluster::field::{FieldPath, Segment};
use crate::cluster::manifest::{Format, RawObject, documents};

fn objects(text: &str, format: Format) -> Vec<RawObject> {
    let documents = documents(text, format);
    let objects = documents
        .iter()
        .flat_map(|document| document.objects().unwrap());
    objects.collect()
}

/// Names and lines of the objects.
#[track_caller]
fn check(text: &str, format: Format, expected: &[(&str, usize)]) {
    let objects = objects(text, format);
    let found: Vec<(&str, usize)> = objects
        .iter()
        .map(|object| (object.value["name"].as_str().unwrap(), object.line))
        .collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn check_line(text: &str, format: Format, path: &[&str], expected: usize) {
    let documents = documents(text, format);
    let segments = path.iter().map(|step| match step.parse() {
        Ok(index) => Segment::Index(index),
        Err(_) => Segment::Key((*step).to_owned()),
    });
    let path = FieldPath(segments.collect());
    assert_eq!(documents.last().unwrap().line_of(&path), expected, "{path}");
}

#[test]
fn documents_of_a_stream() {
    check("name: a\n", Format::Yaml, &[("a", 1)]);
    check(
        "name: a\n---\nname: b\n",
        Format::Yaml,
        &[("a", 1), ("b", 3)],
    );
    let text = "# about\n---\n# more\nname: a\n--- # b\nname: b\n---\n---\n";
    check(text, Format::Yaml, &[("a", 4), ("b", 6)]);
    check(
        "name: a\r\n---\r\nname: b\r\n",
        Format::Yaml,
        &[("a", 1), ("b", 3)],
    );
    check("", Format::Yaml, &[]);
    check("# nothing\n", Format::Yaml, &[]);
    check("", Format::Json, &[]);
    check("{\"name\": \"a\"}", Format::Json, &[("a", 1)]);
    check("{\"name\":\t\"a\"}", Format::Yaml, &[("a", 1)]);
}

#[test]
fn a_marker_in_a_line_is_none() {
    check(
        "name: a\nx: '---'\ny: |\n  ---\n",
        Format::Yaml,
        &[("a", 1)],
    );
    check("name: a\n---x: 1\n", Format::Yaml, &[("a", 1)]);
}

#[test]
fn lists_are_taken_apart() {
    let text = "kind: List\nitems:\n- name: a\n- name: b\n  x: 1\n";
    check(text, Format::Yaml, &[("a", 3), ("b", 4)]);
    let text = "apiVersion: v1\nkind: PodList\nitems:\n- name: a\n";
    let object = &objects(text, Format::Yaml)[0].value;
    assert_eq!(
        (&object["kind"], &object["apiVersion"]),
        (&"Pod".into(), &"v1".into())
    );
    check("kind: List\nitems: []\n", Format::Yaml, &[]);
}

#[test]
fn anchors_merges_and_other_keys() {
    let text =
        "base: &base {x: 1, name: no}\nname: a\nspec:\n  <<: *base\n  8080: {y: 2}\n  true: 1\n";
    let object = &objects(text, Format::Yaml)[0].value;
    assert_eq!(object["spec"]["x"], 1);
    assert_eq!(object["spec"]["8080"]["y"], 2);
    assert_eq!(object["spec"]["true"], 1);
}

/// As kubectl sends them, so that a directory and an API server take the same for a port.
#[test]
fn whole_numbers_are_whole_however_they_are_written() {
    let object = &objects("a: 80.0\nb: 1e3\nc: 1.5\nd: -2.0\n", Format::Yaml)[0].value;
    assert_eq!(
        *object,
        serde_json::json!({"a": 80, "b": 1000, "c": 1.5, "d": -2})
    );
}

#[test]
fn fields_have_lines() {
    let text = "name: a\n---\nname: b\nspec:\n  rules:\n  - from: 1\n  - to:\n      ports: [80,\n        x]\n";
    let line = |path: &[&str], line| check_line(text, Format::Yaml, path, line);
    line(&[], 3);
    line(&["name"], 3);
    line(&["spec"], 4);
    line(&["spec", "rules", "0"], 6);
    line(&["spec", "rules", "1", "to", "ports"], 8);
    line(&["spec", "rules", "1", "to", "ports", "1"], 9);
    // What isn't there is where it should be.
    line(&["spec", "rules", "1", "when"], 7);
    line(&["spec", "rules", "7"], 6);
    line(&["name", "x"], 3);
    let text = "{\n  \"spec\": {\n    \"ports\": [\n      1,\n      2\n    ]\n  }\n}\n";
    check_line(text, Format::Json, &["spec", "ports"], 3);
    check_line(text, Format::Json, &["spec", "ports", "1"], 5);
}

#[track_caller]
fn check_error(text: &str, format: Format, line: usize, message: &str) {
    let documents = documents(text, format);
    let error = documents
        .iter()
        .find_map(|document| document.objects().err())
        .unwrap();
    assert_eq!(error.line, line, "{}", error.message);
    assert!(error.message.contains(message), "{}", error.message);
}

#[test]
fn syntax_errors_have_lines_of_the_file() {
    check_error("a: 1\n---\nb: [1\nc: 2\n", Format::Yaml, 4, "line 4");
    check_error(
        "a: 1\n---\nb: 1\nb: 2\n",
        Format::Yaml,
        3,
        "duplicate entry",
    );
    check_error("{\n\"a\": 1,\n}", Format::Json, 3, "line 3");
    check_error("a: !secret x\n", Format::Yaml, 1, "tag");
    check_error("? [a]\n: b\n", Format::Yaml, 1, "a key must be a string");
    check_error("a: .nan\n", Format::Yaml, 1, "not-a-number");
    check_error("a: *nowhere\n", Format::Yaml, 1, "unknown anchor");
    check_error("a: \"\u{1}\"\n", Format::Yaml, 1, "control characters");
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let level = |level: usize| match level {
        0 => format!("a0: &a0 [{}]\n", "x, ".repeat(10)),
        _ => format!(
            "a{level}: &a{level} [{}]\n",
            format!("*a{}, ", level - 1).repeat(10)
        ),
    };
    let text: String = (0..12).map(level).collect();
    check_error(&text, Format::Yaml, 1, "repetition limit");
    let deep = "[".repeat(10_000);
    check_error(&deep, Format::Yaml, 1, "");
    check_error(&deep, Format::Json, 1, "recursion limit");
}

#[test]
fn aliases_are_followed_and_may_not_repeat_too_much() {
    check(
        "x: &x a\nname: *x\n---\ny: &y {name: b, z: 1.5, t: true}\n<<: *y\n",
        Format::Yaml,
        &[("a", 1), ("b", 4)],
    );
    // Some kilobytes that come to a terabyte.
    let items = "x,".repeat(1 << 13);
    let bomb = format!(
        "a: &a [{items}]\nb: &b [{}]\nc: [{}]\n",
        "*a,".repeat(1 << 13),
        "*b,".repeat(1 << 13)
    );
    let text = "x".repeat(1 << 14);
    let strings = format!("a: &a {text}\nb: [{}]\n", "*a,".repeat(1 << 13));
    for bomb in [bomb, strings] {
        for document in documents(&bomb, Format::Yaml) {
            let error = document.objects().unwrap_err();
            assert!(error.message.contains("aliases"), "{}", error.message);
        }
    }
}
