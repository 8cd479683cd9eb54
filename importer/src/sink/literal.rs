//! Values as they stand in the text of a PostgreSQL statement. Several statements fit into one round
//! trip only without parameters.

use std::fmt::Display;

/// With escapes, so that it means the same whatever `standard_conforming_strings` says. PostgreSQL
/// cannot hold NUL, and would take it for the end of the statement: it becomes U+FFFD.
pub(super) fn text(value: &str) -> String {
    let mut literal = String::with_capacity(value.len() + 4);
    literal.push_str("E'");
    for character in value.chars() {
        match character {
            '\'' | '\\' => literal.extend([character, character]),
            '\0' => literal.push('\u{fffd}'),
            _ => literal.push(character),
        }
    }
    literal.push('\'');
    literal
}

/// An array of whatever the statement casts it to.
pub(super) fn array<T: Display>(values: impl IntoIterator<Item = Option<T>>) -> String {
    let mut elements = String::from("{");
    for value in values {
        if elements.len() > 1 {
            elements.push(',');
        }
        let Some(value) = value else {
            elements.push_str("NULL");
            continue;
        };
        elements.push('"');
        for character in value.to_string().chars() {
            if matches!(character, '"' | '\\') {
                elements.push('\\');
            }
            elements.push(character);
        }
        elements.push('"');
    }
    elements.push('}');
    text(&elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_a_literal_early() {
        assert_eq!(text(r"a'b\c"), r"E'a''b\\c'");
        assert_eq!(text("\0"), "E'\u{fffd}'");
        assert_eq!(array([Some("a"), None, Some("")]), r#"E'{"a",NULL,""}'"#);
        assert_eq!(array([Some(r#"'"\"#)]), r#"E'{"''\\"\\\\"}'"#);
        assert_eq!(array([Some(1), None]), r#"E'{"1",NULL}'"#);
        assert_eq!(array::<i64>([]), "E'{}'");
    }
}
