use serde_json::Value;

use super::limits::Limits;
use super::schema::{Schema, Shape, TypeId};

/// A field's default, as the schema's JSON has it, in binary encoding. Fails with what is wrong.
pub(crate) fn encode_default(
    schema: &Schema,
    id: TypeId,
    json: &Value,
    limits: &Limits,
) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    encode(schema, id, json, limits.value_depth, &mut out)?;
    Ok(out)
}

fn encode(
    schema: &Schema,
    id: TypeId,
    json: &Value,
    depth: u32,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    // A recursive record may have itself as its default.
    let depth = depth.checked_sub(1).ok_or("the default nests too deep")?;
    let bad = || format!("the default {json} does not fit the type");
    match (&schema.get(id).shape, json) {
        (Shape::Null, Value::Null) => {}
        (Shape::Boolean, Value::Bool(value)) => out.push(u8::from(*value)),
        (Shape::Int, Value::Number(number)) => {
            let value = number.as_i64().and_then(|value| i32::try_from(value).ok());
            put_long(i64::from(value.ok_or_else(bad)?), out);
        }
        (Shape::Long, Value::Number(number)) => put_long(number.as_i64().ok_or_else(bad)?, out),
        (Shape::Float, number) => {
            out.extend_from_slice(&(real(number).ok_or_else(bad)? as f32).to_le_bytes());
        }
        (Shape::Double, number) => {
            out.extend_from_slice(&real(number).ok_or_else(bad)?.to_le_bytes());
        }
        (Shape::String, Value::String(text)) => put_bytes(text.as_bytes(), out),
        (Shape::Bytes, Value::String(text)) => put_bytes(&latin1(text).ok_or_else(bad)?, out),
        (Shape::Fixed(fixed), Value::String(text)) => {
            let bytes = latin1(text).filter(|bytes| bytes.len() == fixed.size).ok_or_else(bad)?;
            out.extend_from_slice(&bytes);
        }
        (Shape::Enum(symbols), Value::String(text)) => {
            let index = symbols.symbols.iter().position(|symbol| symbol == text);
            put_long(index.ok_or_else(bad)? as i64, out);
        }
        (Shape::Array(items), Value::Array(list)) => {
            put_count(list.len(), out);
            for item in list {
                encode(schema, *items, item, depth, out)?;
            }
            out.push(0);
        }
        (Shape::Map(values), Value::Object(map)) => {
            put_count(map.len(), out);
            for (key, value) in map {
                put_bytes(key.as_bytes(), out);
                encode(schema, *values, value, depth, out)?;
            }
            out.push(0);
        }
        (Shape::Record(record), Value::Object(map)) => {
            for field in &record.fields {
                let value = map.get(&field.name).or(field.default.as_ref()).ok_or_else(bad)?;
                encode(schema, field.schema, value, depth, out)?;
            }
        }
        // "The first schema that matches in the union."
        (Shape::Union(branches), _) => {
            let start = out.len();
            for (index, branch) in branches.iter().enumerate() {
                put_long(index as i64, out);
                if encode(schema, *branch, json, depth, out).is_ok() {
                    return Ok(());
                }
                out.truncate(start);
            }
            return Err(bad());
        }
        _ => return Err(bad()),
    }
    Ok(())
}

/// A number; writers with NaN as a default write it as a string.
fn real(json: &Value) -> Option<f64> {
    match json {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// Bytes stand in JSON as the characters of their values.
fn latin1(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|char| u8::try_from(char).ok()).collect()
}

fn put_count(count: usize, out: &mut Vec<u8>) {
    if count > 0 {
        put_long(count as i64, out);
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

fn put_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = (value << 1) as u64 ^ (value >> 63) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schema: &str, default: &str) -> Result<Vec<u8>, String> {
        let limits = Limits::default();
        let schema = Schema::parse(schema, &limits).unwrap();
        let json = serde_json::from_str(default).unwrap();
        encode_default(&schema, schema.root(), &json, &limits)
    }

    #[test]
    fn defaults() {
        assert_eq!(check("\"long\"", "-1"), Ok(vec![1]));
        assert_eq!(check("\"bytes\"", "\"\\u00ff\""), Ok(vec![2, 0xff]));
        assert_eq!(check(r#"["null","string"]"#, "\"a\""), Ok(vec![2, 2, b'a']));
        assert_eq!(check(r#"{"type":"array","items":"int"}"#, "[1]"), Ok(vec![2, 2, 0]));
        assert!(check("\"int\"", "3000000000").is_err());
        let recursive =
            r#"{"type":"record","name":"R","fields":[{"name":"r","type":"R","default":{}}]}"#;
        assert!(check(recursive, "{}").is_err());
    }
}
