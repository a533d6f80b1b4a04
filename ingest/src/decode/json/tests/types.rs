//! Which values each type takes, and what is said of the others.

use super::*;

const NONE: &[(&str, Option<&str>, &str)] = &[];

fn takes(data_type: &ColumnType, pairs: &[(&str, &str)]) {
    for (json, expected) in pairs {
        assert_eq!(
            value(data_type, json, NONE).as_deref(),
            Ok(*expected),
            "{json} as {data_type}"
        );
    }
    assert_eq!(value(data_type, "null", NONE).as_deref(), Ok("NULL"));
}

fn refuses(data_type: &ColumnType, pairs: &[(&str, &str)]) {
    for (json, expected) in pairs {
        let said = value(data_type, json, NONE).expect_err(json);
        assert_eq!(said, format!("field \"x\": {expected}"), "{json} as {data_type}");
    }
}

#[test]
fn whole_numbers() {
    use ColumnType as T;
    for data_type in [
        T::Int8,
        T::Int16,
        T::Int32,
        T::Int64,
        T::UInt8,
        T::UInt16,
        T::UInt32,
        T::UInt64,
    ] {
        let (least, most) = data_type.whole_range().unwrap();
        for value in [least, most, 0, 1, 100] {
            let text = value.to_string();
            takes(&data_type, &[(&text, &text)]);
        }
        for value in [least - 1, most + 1, i128::MAX] {
            refuses(
                &data_type,
                &[(
                    &value.to_string(),
                    &format!("expected {data_type}, found {value}: it is not in {least} to {most}"),
                )],
            );
        }
        takes(
            &data_type,
            &[("3.0", "3"), ("1e2", "100"), ("-0", "0"), ("1200E-2", "12")],
        );
        let expected = |found: &str| format!("expected {data_type}, found {found}");
        refuses(
            &data_type,
            &[
                ("3.5", &(expected("3.5") + ": it has a fraction")),
                (
                    "3.00000000000000000001",
                    &(expected("3.00000000000000000001") + ": it has a fraction"),
                ),
                (
                    "\"7\"",
                    &(expected("\"7\"") + ": a number in quotes, as quoted_numbers = 'accept' takes them"),
                ),
                ("\"seven\"", &expected("\"seven\"")),
                ("true", &expected("true")),
                ("{}", &expected("an object")),
                ("[1]", &expected("an array")),
            ],
        );
    }
    // Beyond what a double can tell apart.
    takes(&T::Int64, &[("9007199254740993", "9007199254740993")]);
}

#[test]
fn floating_point() {
    use ColumnType as T;
    takes(
        &T::Float64,
        &[
            ("1.5", "1.5"),
            ("-1e-7", "-1e-7"),
            ("3", "3.0"),
            ("0.1", "0.1"),
            ("1e-400", "0.0"),
        ],
    );
    takes(&T::Float32, &[("1.5", "1.5"), ("16777217", "16777216.0")]);
    refuses(
        &T::Float64,
        &[
            ("1e400", "expected DOUBLE, found 1e400: it is out of range"),
            (
                "\"1.5\"",
                "expected DOUBLE, found \"1.5\": a number in quotes, as quoted_numbers = 'accept' takes them",
            ),
        ],
    );
    refuses(
        &T::Float32,
        &[("1e39", "expected REAL, found 1e39: it is out of range")],
    );
    assert!(value(&T::Float64, "NaN", NONE).unwrap_err().starts_with("not JSON: "));
}

#[test]
fn decimals() {
    let money = ColumnType::Decimal { precision: 5, scale: 2 };
    takes(
        &money,
        &[
            ("1", "1.00"),
            ("-999.99", "-999.99"),
            ("1.500", "1.50"),
            ("\"12.34\"", "12.34"),
            ("1e2", "100.00"),
        ],
    );
    refuses(
        &money,
        &[
            (
                "1000",
                "expected DECIMAL(5, 2), found 1000: it has too many digits before the point",
            ),
            (
                "1.005",
                "expected DECIMAL(5, 2), found 1.005: it has too many digits behind the point",
            ),
            ("\"ten\"", "expected DECIMAL(5, 2), found \"ten\": it is no number"),
            ("\"\"", "expected DECIMAL(5, 2), found \"\": it is no number"),
            ("false", "expected DECIMAL(5, 2), found false"),
        ],
    );
    let long = ColumnType::Decimal {
        precision: 38,
        scale: 10,
    };
    let digits = "1234567890123456789012345678.0123456789";
    takes(&long, &[(digits, digits)]);
}

#[test]
fn truth_values_and_text() {
    use ColumnType as T;
    takes(&T::Boolean, &[("true", "true"), ("false", "false")]);
    refuses(
        &T::Boolean,
        &[
            ("1", "expected BOOLEAN, found 1"),
            ("\"true\"", "expected BOOLEAN, found \"true\""),
        ],
    );
    takes(
        &T::Text,
        &[
            ("\"\"", ""),
            ("\"a\"", "a"),
            (r#""\u00e9\n\"\ud83d\ude00""#, "é\n\"😀"),
            // What is no text is kept as it is written.
            ("1.50", "1.50"),
            ("true", "true"),
            (r#"{"a": [1, 2]}"#, r#"{"a": [1, 2]}"#),
            ("[ ]", "[ ]"),
        ],
    );
    let said = value(&T::Text, r#""\ud800""#, NONE).unwrap_err();
    assert!(
        said.starts_with(r#"field "x": expected VARCHAR, found "\ud800", which cannot be read: "#),
        "{said}"
    );
    let long = format!("\"{}\"", "é".repeat(100));
    let said = value(&T::Int8, &long, NONE).unwrap_err();
    assert!(said.ends_with('…') && said.len() < 200, "{said}");
}

#[test]
fn days_and_times() {
    use ColumnType as T;
    takes(
        &T::Date,
        &[
            ("\"2026-01-31\"", "2026-01-31"),
            ("20543", "2026-03-31"),
            ("-1", "1969-12-31"),
        ],
    );
    refuses(
        &T::Date,
        &[
            (
                "\"2026-02-30\"",
                "expected DATE, found \"2026-02-30\": a date is written YYYY-MM-DD",
            ),
            ("1.5", "expected DATE, found 1.5: it has a fraction"),
            ("1e9", "expected DATE, found 1e9: it is outside of the years 1 to 9999"),
        ],
    );
    let eight = "2026-01-31T08:00:00";
    takes(
        &T::Timestamp,
        &[
            ("\"2026-01-31T08:00:00Z\"", eight),
            ("\"2026-01-31T09:00:00+01:00\"", eight),
            ("\"2026-01-31 08:00:00\"", eight),
            ("1769846400000", eight),
            ("1769846400000.5", "2026-01-31T08:00:00.000500"),
        ],
    );
    refuses(
        &T::Timestamp,
        &[
            (
                "\"soon\"",
                "expected TIMESTAMP, found \"soon\": a time is written as in RFC 3339, such as 2026-01-31T08:00:00.25Z",
            ),
            (
                "1769846400000000",
                "expected TIMESTAMP, found 1769846400000000: it is outside of the years 1 to 9999",
            ),
            ("true", "expected TIMESTAMP, found true"),
        ],
    );
    for (unit, json) in [
        ("s", "1769846400"),
        ("us", "1769846400000000"),
        ("ns", "1769846400000000999"),
    ] {
        assert_eq!(
            value(&T::Timestamp, json, &[("timestamp_unit", None, unit)]).as_deref(),
            Ok(eight)
        );
        assert_eq!(
            value(&T::Timestamp, json, &[("timestamp_unit", Some("x"), unit)]).as_deref(),
            Ok(eight)
        );
        let list = value(
            &array(T::Timestamp),
            &format!("[{json}]"),
            &[("timestamp_unit", Some("x"), unit)],
        );
        assert_eq!(list, Ok(format!("[{eight}]")));
    }
}

#[test]
fn quoted_numbers_are_taken_if_the_pipe_says_so() {
    use ColumnType as T;
    let accept = &[("quoted_numbers", None, "accept")];
    assert_eq!(value(&T::Int64, "\"-12\"", accept).as_deref(), Ok("-12"));
    assert_eq!(value(&T::Float64, "\"1.5\"", accept).as_deref(), Ok("1.5"));
    assert_eq!(
        value(&T::Timestamp, "\"1769846400000\"", accept).as_deref(),
        Ok("2026-01-31T08:00:00")
    );
    assert_eq!(value(&T::Text, "\"12\"", accept).as_deref(), Ok("12"));
    let said = value(&T::Int64, "\"twelve\"", accept).unwrap_err();
    assert_eq!(said, "field \"x\": expected BIGINT, found \"twelve\": it is no number");
    assert!(value(&T::Float64, "\"NaN\"", accept).is_err());
    assert!(value(&T::Float64, "\"inf\"", accept).is_err());
    assert!(value(&T::Boolean, "\"true\"", accept).is_err());
}

#[test]
fn nested_values() {
    use ColumnType as T;
    let user = structure(&[("name", T::Text), ("age", T::Int32)]);
    takes(
        &user,
        &[
            (r#"{"name":"a","age":1}"#, "{name: a, age: 1}"),
            (r#"{"age":1}"#, "{name: , age: 1}"),
            (r#"{"more":[{}],"age":null}"#, "{name: , age: }"),
            ("{}", "{name: , age: }"),
        ],
    );
    takes(&array(T::Int32), &[("[]", "[]"), ("[1,null,3]", "[1, , 3]")]);
    takes(&array(array(T::Text)), &[(r#"[["a"],[],null]"#, "[[a], [], ]")]);
    takes(
        &map(T::Float64),
        &[("{}", "{}"), (r#"{"a":1,"b":null}"#, "{a: 1.0, b: }")],
    );
    takes(&array(user.clone()), &[(r#"[{"age":1},null]"#, "[{name: , age: 1}, ]")]);
    let user_type = "STRUCT<name VARCHAR, age INT>";
    refuses(
        &user,
        &[
            ("1.5", &format!("expected {user_type}, found 1.5")),
            ("-1", &format!("expected {user_type}, found -1")),
            ("1", &format!("expected {user_type}, found 1")),
            ("\"{}\"", &format!("expected {user_type}, found \"{{}}\"")),
            ("false", &format!("expected {user_type}, found false")),
            ("[]", &format!("expected {user_type}, found an array")),
        ],
    );
    let path = |json: &str, data_type: &ColumnType| value(data_type, json, NONE).unwrap_err();
    assert_eq!(
        path(r#"{"age":3.5}"#, &user),
        "field \"x.age\": expected INT, found 3.5: it has a fraction"
    );
    assert_eq!(
        path(r#"[{"age":1},{"age":"1"}]"#, &array(user.clone())),
        "field \"x[1].age\": expected INT, found \"1\": a number in quotes, as quoted_numbers = 'accept' takes them"
    );
    assert_eq!(
        path(r#"{"k":[[1],[2,true]]}"#, &map(array(array(T::Int8)))),
        "field \"x.k[1][1]\": expected TINYINT, found true"
    );
    assert_eq!(
        path("{}", &array(T::Int8)),
        "field \"x\": expected ARRAY<TINYINT>, found an object"
    );
    assert_eq!(
        path("[]", &map(T::Int8)),
        "field \"x\": expected MAP<VARCHAR, TINYINT>, found an array"
    );
}
