//! Whole records and runs: what is missing, unknown, repeated, too much, or around the payload.

use super::*;
use arrow::datatypes::Int64Type;

fn two_columns() -> Vec<Column> {
    vec![
        not_null(column("id", ColumnType::Int64)),
        column("name", ColumnType::Text),
    ]
}

fn offsets(batch: &Option<RecordBatch>, column: &str) -> Vec<i64> {
    let numbers = |b: &RecordBatch| b.column_by_name(column).unwrap().as_primitive::<Int64Type>().clone();
    batch.as_ref().map_or(vec![], |b| numbers(b).values().to_vec())
}

#[test]
fn every_record_is_a_row_or_filtered_or_a_reject() {
    let payloads: Vec<Option<&[u8]>> = vec![
        Some(br#"{"id":1,"name":"a"}"#),
        Some(br#"{"id":"x"}"#),                // wrong type
        Some(br#"{"id":2,"unknown":[1,{}]}"#), // unknown field: ignored
        None,                                  // tombstone: filtered
        Some(br#"{"name":"no id"}"#),          // missing and not nullable
        Some(b""),
        Some(b"  "),
        Some(br#"{"id":3}{"id":4}"#), // two objects
        Some(br#"{"id":5,"#),         // cut
        Some(br#""name":"b"}"#),      // would complete the one before
        Some(b"null"),
        Some(b"[1]"),
        Some(b"\xff\xfe"),
        Some(b"{\"id\":7,\"name\":\"\xff\"}"),
        Some(b" {\"id\": 6 }\n"),
    ];
    let decoded = decoder(two_columns(), &[]).decode(3, &run(&payloads)).unwrap();
    assert_eq!(offsets(&decoded.rows, "_offset"), [100, 102, 114]);
    assert_eq!(offsets(&decoded.rows, "id"), [1, 2, 6]);
    assert_eq!(values(&decoded.rows, "name"), ["a", "NULL", "NULL"]);
    assert_eq!(values(&decoded.rows, "_partition"), ["3", "3", "3"]);
    assert_eq!(values(&decoded.rows, "_topic"), ["topic", "topic", "topic"]);
    assert_eq!(values(&decoded.rows, "_timestamp"), ["1970-01-01T00:00:00.005"; 3]);
    assert_eq!((decoded.stored(), decoded.filtered(), decoded.rows_count()), (3, 1, 3));
    let rejects: Vec<_> = offsets(&decoded.rejects, "offset")
        .into_iter()
        .zip(values(&decoded.rejects, "error"))
        .collect();
    let expected = [
        (101, "field \"id\": expected BIGINT NOT NULL, found \"x\""),
        (104, "field \"id\": expected BIGINT NOT NULL, found nothing"),
        (105, "the payload is empty"),
        (106, "the payload is empty"),
        (
            107,
            "more follows the object (line 1 column 9); with records = 'many' the pipe takes several",
        ),
        (108, "not JSON: EOF while parsing a value at line 1 column 8"),
        (109, "expected an object, found \"name\""),
        (110, "expected an object, found null"),
        (
            111,
            "expected an object, found an array; with records = 'many' the pipe takes arrays of objects",
        ),
        (112, "the payload is not UTF-8 at byte 0"),
        (113, "the payload is not UTF-8 at byte 16"),
    ];
    for ((offset, why), (expected_offset, expected)) in rejects.iter().zip(expected) {
        assert_eq!((*offset, why.as_str()), (expected_offset, expected));
    }
    assert_eq!(rejects.len(), expected.len());
    assert_eq!(
        decoded.stored() + decoded.rejected() + decoded.filtered(),
        payloads.len() as u64
    );
}

#[test]
fn a_reject_keeps_the_bytes() {
    let payload: &[u8] = br#"{"id":"x"}"#;
    let decoded = decoder(two_columns(), &[]).decode(0, &run(&[Some(payload)])).unwrap();
    let rejects = decoded.rejects.unwrap();
    let payloads = rejects.column_by_name("payload").unwrap();
    assert_eq!(payloads.as_binary::<i32>().value(0), payload);
}

#[test]
fn a_failing_record_leaves_no_trace() {
    let columns = || {
        let tag = structure(&[("k", ColumnType::Text), ("v", array(ColumnType::Int32))]);
        vec![
            column("text", ColumnType::Text),
            column("flag", ColumnType::Boolean),
            column("tags", array(tag)),
            column("by", map(array(ColumnType::Text))),
            column("money", ColumnType::Decimal { precision: 9, scale: 2 }),
            column("last", ColumnType::Int8),
        ]
    };
    let good = |n: i32| {
        format!(
            r#"{{"text":"t{n}","flag":true,"tags":[{{"k":"a","v":[{n},2]}},null],"by":{{"x":["y",null]}},"money":{n}.5,"last":1}}"#
        )
    };
    let (one, two) = (good(1), good(2));
    let bad = [
        good(3).replace("\"last\":1", "\"last\":1000"),
        good(3).replace("[3,2]", "[3,2.5]"),
        good(3).replace("[\"y\",null]", "[\"y\",1,{}"),
        good(3).replace("\"money\":3.5", "\"money\":3.555"),
        good(3) + "}",
        good(3).replace("\"y\"", "\"y"),
        good(3).replace("\"x\":", "\"x\":[\"z\"],\"x\":"),
    ];
    let decoder = decoder(columns(), &[]);
    let alone = decode(&decoder, &[&one, &two]).rows.unwrap();
    let mut mixed: Vec<&str> = bad.iter().map(String::as_str).collect();
    mixed.insert(2, &one);
    mixed.push(&two);
    let decoded = decode(&decoder, &mixed);
    assert_eq!(decoded.rejected(), bad.len() as u64);
    let rows = decoded.rows.unwrap();
    for column in ["text", "flag", "tags", "by", "money", "last", "_key", "_timestamp"] {
        assert_eq!(rows.column_by_name(column), alone.column_by_name(column), "{column}");
    }
}

#[test]
fn what_is_missing_has_its_default_and_null_is_null() {
    let number = Literal::Number("7".into());
    let columns = vec![
        or(column("a", ColumnType::Int32), number.clone()),
        or(not_null(column("b", ColumnType::Int32)), number),
        or(column("c", ColumnType::Text), Literal::Text("none".into())),
        or(
            column("d", ColumnType::Timestamp),
            Literal::Text("2026-01-31T08:00:00Z".into()),
        ),
        or(column("e", ColumnType::Boolean), Literal::Boolean(true)),
        or(
            column("f", ColumnType::Decimal { precision: 4, scale: 2 }),
            Literal::Number("1.5".into()),
        ),
        column("g", array(ColumnType::Int8)),
    ];
    let decoder = decoder(columns, &[]);
    let decoded = decode(
        &decoder,
        &["{}", r#"{"a":null,"b":1,"c":null,"g":[1]}"#, r#"{"b":null}"#],
    );
    assert_eq!(values(&decoded.rows, "a"), ["7", "NULL"]);
    assert_eq!(values(&decoded.rows, "b"), ["7", "1"]);
    assert_eq!(values(&decoded.rows, "c"), ["none", "NULL"]);
    assert_eq!(values(&decoded.rows, "d"), ["2026-01-31T08:00:00"; 2]);
    assert_eq!(values(&decoded.rows, "e"), ["true", "true"]);
    assert_eq!(values(&decoded.rows, "f"), ["1.50", "1.50"]);
    assert_eq!(values(&decoded.rows, "g"), ["NULL", "[1]"]);
    assert_eq!(
        values(&decoded.rejects, "error"),
        ["field \"b\": expected INT NOT NULL, found null"]
    );
}

#[test]
fn names_are_exact_and_come_once() {
    let mut columns = two_columns();
    columns.push(column("a\"b", map(ColumnType::Int8)));
    let decoder = decoder(columns, &[]);
    // In any order, and written with escapes.
    let rows = decode(
        &decoder,
        &[r#"{"name":"x","id":1}"#, r#"{"\u0069d":2,"ID":3,"a\"b":{"k":1}}"#],
    )
    .rows;
    assert_eq!(values(&rows, "id"), ["1", "2"]);
    assert_eq!(values(&rows, "a\"b"), ["NULL", "{k: 1}"]);
    let twice = |payload: &str| why(&decode(&decoder, &[payload]));
    assert_eq!(twice(r#"{"id":1,"id":1}"#), "field \"id\": the object has it twice");
    assert_eq!(
        twice(r#"{"id":1,"a\"b":{"k":1,"k":2}}"#),
        "field \"a\"b.k\": the object has it twice"
    );
    let many: String = (0..40).map(|i| format!("\"k{i}\":1,")).collect();
    assert_eq!(
        twice(&format!("{{\"id\":1,\"a\\\"b\":{{{many}\"k7\":1}}}}")),
        "field \"a\"b.k7\": the object has it twice"
    );
    assert_eq!(decode(&decoder, &[r#"{"id":1,"no":1,"no":2}"#]).stored(), 1);
}

#[test]
fn unknown_fields_are_ignored_captured_or_refused() {
    let columns = || {
        vec![
            column("id", ColumnType::Int64),
            column("user", structure(&[("name", ColumnType::Text)])),
            column("items", array(structure(&[("n", ColumnType::Int8)]))),
            column("_extra", ColumnType::Text),
            column("rest", ColumnType::Text),
        ]
    };
    let payload =
        r#"{"id":1,"a \"b":[1, 2],"user":{"name":"x","age":{"y": 1}},"items":[{"n":1},{"m":2.50}],"_extra":"own"}"#;
    let ignored = decode(&decoder(columns(), &[]), &[payload]);
    assert_eq!(values(&ignored.rows, "_extra"), ["own"]);

    let capture = [("on_unknown_field", None, "capture")];
    let captured = decode(&decoder(columns(), &capture), &[payload, r#"{"id":2}"#]);
    let expected = r#"{"a \"b":[1, 2],"user.age":{"y": 1},"items[1].m":2.50,"_extra":"own"}"#;
    assert_eq!(values(&captured.rows, "_extra"), [expected, "NULL"]);
    assert!(serde_json::from_str::<serde_json::Value>(expected).is_ok());
    let elsewhere = [capture[0], ("capture_column", None, "rest")];
    let captured = decode(
        &decoder(columns(), &elsewhere),
        &[r#"{"_extra":"own","rest":1,"new":null}"#],
    );
    assert_eq!(values(&captured.rows, "_extra"), ["own"]);
    assert_eq!(values(&captured.rows, "rest"), [r#"{"rest":1,"new":null}"#]);

    let decoder = decoder(columns(), &[("on_unknown_field", None, "reject")]);
    let refused = |payload: &str| why(&decode(&decoder, &[payload]));
    assert_eq!(
        refused(r#"{"id":1,"new":2}"#),
        "field \"new\": there is no such column or field"
    );
    assert_eq!(
        refused(r#"{"items":[{},{"m":1}]}"#),
        "field \"items[1].m\": there is no such column or field"
    );
}

#[test]
fn a_record_may_hold_many_objects() {
    let decoder = decoder(two_columns(), &[("records", None, "many")]);
    let payloads = [
        r#"[{"id":1},{"id":2}]"#,
        "{\"id\":3}\n{\"id\":4}\n",
        "{\"id\":5} [{\"id\":6}, {\"id\":7}]{\"id\":8}",
        "[]",
        r#"{"id":9}"#,
        r#"[{"id":10},{"id":"x"},{"id":11}]"#,
        "{\"id\":12}\n{\"id\":",
        r#"[{"id":13},4]"#,
        "5",
        "",
        r#"[[{"id":1}]]"#,
    ];
    let decoded = decode(&decoder, &payloads);
    assert_eq!(offsets(&decoded.rows, "id"), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(
        offsets(&decoded.rows, "_offset"),
        [100, 100, 101, 101, 102, 102, 102, 102, 104]
    );
    assert_eq!((decoded.stored(), decoded.filtered(), decoded.rows_count()), (4, 1, 9));
    let errors = values(&decoded.rejects, "error");
    let expected = [
        "object 2: field \"id\": expected BIGINT NOT NULL, found \"x\"",
        "not JSON: EOF while parsing a value at line 2 column 6",
        "object 2: expected an object, found 4",
        "object 1: expected an object, found 5",
        "the payload is empty",
        "object 1: expected an object, found an array",
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn tombstones_can_be_refused() {
    let decoder = decoder(two_columns(), &[("tombstones", None, "reject")]);
    let decoded = decoder.decode(0, &run(&[None])).unwrap();
    assert_eq!(why(&decoded), "the record has no payload (a tombstone)");
}

#[test]
fn headers_and_keys_fill_columns() {
    let columns = vec![
        column("id", ColumnType::Int64),
        column("trace", ColumnType::Text),
        not_null(or(column("retry", ColumnType::Int8), Literal::Number("0".into()))),
        column("test", ColumnType::Boolean),
        column("sent", ColumnType::Timestamp),
        column("k", ColumnType::Int32),
    ];
    let options = [
        ("header", Some("trace-id"), "trace"),
        ("header", Some("retry"), "retry"),
        ("header", Some("test"), "test"),
        ("header", Some("sent"), "sent"),
        ("key_column", None, "k"),
    ];
    let decoder = decoder(columns, &options);
    let with = |offset: i64, headers: Option<&'static str>, key: Option<&'static [u8]>| SourceRecord {
        headers,
        key,
        ..record(offset, Some(br#"{"id":1,"trace":"of the payload"}"#))
    };
    let all = r#"{"trace-id":"abc","retry":"3","test":"true","sent":"1769846400000","other":null}"#;
    let records = [
        with(0, Some(all), Some(b"42")),
        with(1, None, None),
        with(2, Some(r#"{"trace-id":null}"#), None),
        with(3, Some(r#"{"retry":"often"}"#), None),
        with(4, Some(r#"{"retry":null}"#), None),
        with(5, None, Some(b"\xff")),
        with(6, None, Some(b"x")),
    ];
    let decoded = decoder.decode(0, &records).unwrap();
    assert_eq!(values(&decoded.rows, "trace"), ["abc", "NULL", "NULL"]);
    assert_eq!(values(&decoded.rows, "retry"), ["3", "0", "0"]);
    assert_eq!(values(&decoded.rows, "test"), ["true", "NULL", "NULL"]);
    assert_eq!(values(&decoded.rows, "sent"), ["2026-01-31T08:00:00", "NULL", "NULL"]);
    assert_eq!(values(&decoded.rows, "k"), ["42", "NULL", "NULL"]);
    assert_eq!(values(&decoded.rows, "_key"), ["42", "NULL", "NULL"]);
    assert_eq!(
        values(&decoded.rejects, "error"),
        [
            "header \"retry\" for column \"retry\": expected TINYINT NOT NULL, found \"often\": it is no number",
            "header \"retry\" for column \"retry\": expected TINYINT NOT NULL, found null",
            "key for column \"k\": it is not UTF-8 at byte 0",
            "key for column \"k\": expected INT, found \"x\": it is no number",
        ]
    );
}

#[test]
fn nesting_has_a_limit_and_takes_no_stack() {
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let columns = || vec![column("x", ColumnType::Text), column("_extra", ColumnType::Text)];
    let plain = decoder(columns(), &[]);
    let capture = decoder(columns(), &[("on_unknown_field", None, "capture")]);
    let in_field = |field: &str, depth: usize| format!("{{\"{field}\":{}}}", deep(depth));
    assert_eq!(decode(&plain, &[&in_field("x", 128)]).stored(), 1);
    let too_deep = "found an array that is nested more than 128 deep";
    assert_eq!(
        why(&decode(&plain, &[&in_field("x", 129)])),
        format!("field \"x\": {too_deep}")
    );
    for depth in [129, 200_000] {
        assert_eq!(decode(&plain, &[&in_field("ignored", depth)]).stored(), 1);
        let said = why(&decode(&capture, &[&in_field("unknown", depth)]));
        assert_eq!(
            said,
            "field \"unknown\": found a value that is nested more than 128 deep"
        );
        assert_eq!(decode(&plain, &[&deep(depth)]).rejected(), 1);
        assert_eq!(decode(&plain, &[&"{\"x\":".repeat(depth)]).rejected(), 1);
    }
    let typed = decoder(vec![column("x", array(array(ColumnType::Int8)))], &[]);
    let said = why(&decode(&typed, &[&in_field("x", 100_000)]));
    assert!(
        said.starts_with("field \"x[0][0]\": expected TINYINT, found an array"),
        "{said}"
    );
}

#[test]
fn a_long_text_is_a_value_like_any_other() {
    let long = "x".repeat(30 << 20);
    let payload = format!(r#"{{"id":1,"name":"{long}"}}"#);
    let decoded = decode(&decoder(two_columns(), &[]), &[&payload]);
    let rows = decoded.rows.unwrap();
    assert_eq!(
        rows.column_by_name("name").unwrap().as_string::<i32>().value(0).len(),
        long.len()
    );
}

#[test]
fn a_run_that_does_not_fit_one_batch_is_split() {
    let mut decoder = decoder(two_columns(), &[]);
    decoder.limits = Limits { text: 100, ..LIMITS };
    let forty = format!(r#"{{"id":1,"name":"{}"}}"#, "x".repeat(40));
    let too_long = format!(r#"{{"id":1,"name":"{}"}}"#, "x".repeat(101));
    let payloads = [&forty, &forty, &forty, &too_long, &too_long, &forty].map(|text| Some(text.as_bytes()));
    let records = run(&payloads);
    assert!(
        decoder
            .decode(0, &records)
            .unwrap_err()
            .to_string()
            .contains("only 2 of 6 records")
    );
    let (mut rest, mut seen, mut rejected) = (&records[..], Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (decoded, taken) = decoder.decode_some(0, rest).unwrap();
        assert_eq!(decoded.stored() + decoded.rejected(), taken as u64);
        seen.extend(offsets(&decoded.rows, "_offset"));
        rejected.extend(offsets(&decoded.rejects, "offset"));
        rest = &rest[taken..];
    }
    assert_eq!((seen, rejected), (vec![100, 101, 102, 105], vec![103, 104]));

    decoder.limits = Limits { rows: 2, ..LIMITS };
    assert_eq!(decoder.decode_some(0, &records).unwrap().1, 2);
    decoder.limits = Limits { bytes: 1, ..LIMITS };
    assert_eq!(decoder.decode_some(0, &records).unwrap().1, 1);
}

#[test]
fn a_record_may_not_hold_endlessly_many_objects() {
    let mut decoder = decoder(vec![column("x", ColumnType::Int8)], &[("records", None, "many")]);
    decoder.limits = Limits {
        rows_of_record: 3,
        ..LIMITS
    };
    assert_eq!(decode(&decoder, &["{}{}[{}]"]).rows_count(), 3);
    assert_eq!(
        why(&decode(&decoder, &["{}{}[{},{}]"])),
        "the record holds more than 3 objects"
    );
}

#[test]
fn a_long_run_of_bad_records_is_rejected_whole() {
    let bad: Vec<Option<&[u8]>> = vec![Some(b"{broken"); 5000];
    let decoded = decoder(two_columns(), &[]).decode(0, &run(&bad)).unwrap();
    assert_eq!((decoded.stored(), decoded.rejected()), (0, 5000));
}
