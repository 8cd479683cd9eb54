use std::collections::BTreeSet;

use super::schema::{Schema, Shape, TypeId};

/// CRC-64-AVRO (Rabin) of `bytes`, as in the specification's section "Schema Fingerprints".
pub(crate) fn rabin(bytes: &[u8]) -> i64 {
    bytes.iter().fold(EMPTY, |fingerprint, byte| {
        (fingerprint >> 8) ^ TABLE[((fingerprint ^ u64::from(*byte)) & 0xff) as usize]
    }) as i64
}

const EMPTY: u64 = 0xc15d_213a_a4d7_a795;

const TABLE: [u64; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u64;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ (EMPTY & (value & 1).wrapping_neg());
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

impl Schema {
    /// The CRC-64-AVRO fingerprint of the parsing canonical form: what single-object encoding
    /// carries and the ledger keys schemas by.
    pub fn fingerprint(&self) -> i64 {
        rabin(self.canonical().as_bytes())
    }

    /// The parsing canonical form of the specification.
    pub fn canonical(&self) -> String {
        let mut out = String::new();
        self.write_canonical(self.root(), &mut BTreeSet::new(), &mut out);
        out
    }

    fn write_canonical(&self, id: TypeId, defined: &mut BTreeSet<TypeId>, out: &mut String) {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        match &self.get(id).shape {
            Shape::Null => out.push_str("\"null\""),
            Shape::Boolean => out.push_str("\"boolean\""),
            Shape::Int => out.push_str("\"int\""),
            Shape::Long => out.push_str("\"long\""),
            Shape::Float => out.push_str("\"float\""),
            Shape::Double => out.push_str("\"double\""),
            Shape::Bytes => out.push_str("\"bytes\""),
            Shape::String => out.push_str("\"string\""),
            Shape::Array(items) => {
                out.push_str("{\"type\":\"array\",\"items\":");
                self.write_canonical(*items, defined, out);
                out.push('}');
            }
            Shape::Map(values) => {
                out.push_str("{\"type\":\"map\",\"values\":");
                self.write_canonical(*values, defined, out);
                out.push('}');
            }
            Shape::Union(branches) => {
                for (index, branch) in branches.iter().enumerate() {
                    out.push(if index == 0 { '[' } else { ',' });
                    self.write_canonical(*branch, defined, out);
                }
                out.push_str(if branches.is_empty() { "[]" } else { "]" });
            }
            Shape::Record(record) if defined.insert(id) => {
                out.push_str(&format!("{{\"name\":{},", quote(&record.name.full)));
                out.push_str("\"type\":\"record\",\"fields\":[");
                for (index, field) in record.fields.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    out.push_str(&format!("{comma}{{\"name\":{},\"type\":", quote(&field.name)));
                    self.write_canonical(field.schema, defined, out);
                    out.push('}');
                }
                out.push_str("]}");
            }
            Shape::Enum(symbols) if defined.insert(id) => {
                out.push_str(&format!("{{\"name\":{},", quote(&symbols.name.full)));
                let list: Vec<_> = symbols.symbols.iter().map(|symbol| quote(symbol)).collect();
                out.push_str(&format!("\"type\":\"enum\",\"symbols\":[{}]}}", list.join(",")));
            }
            Shape::Fixed(fixed) if defined.insert(id) => {
                let (name, size) = (quote(&fixed.name.full), fixed.size);
                out.push_str(&format!("{{\"name\":{name},\"type\":\"fixed\",\"size\":{size}}}"));
            }
            Shape::Record(record) => out.push_str(&quote(&record.name.full)),
            Shape::Enum(symbols) => out.push_str(&quote(&symbols.name.full)),
            Shape::Fixed(fixed) => out.push_str(&quote(&fixed.name.full)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::*;

    #[test]
    fn rabin_vectors() {
        // The specification's test vectors (share/test/data/schema-tests.txt).
        assert_eq!(rabin(b"\"null\""), 7195948357588979594);
        assert_eq!(rabin(b"\"int\""), 8247732601305521295);
        assert_eq!(rabin(b"hello world"), 2906301498937520992);
    }

    #[test]
    fn canonical_form() {
        let json = r#"{"fields":[{"type":{"type":"int","logicalType":"date"},"doc":"x","name":"d"},
            {"name":"k","type":["null",{"symbols":["A"],"name":"K","type":"enum"}]},
            {"name":"l","type":["null","n.R"]}],
            "name":"R","namespace":"n","type":"record","aliases":["Q"]}"#;
        let schema = Schema::parse(json, &Limits::default()).unwrap();
        assert_eq!(
            schema.canonical(),
            r#"{"name":"n.R","type":"record","fields":[{"name":"d","type":"int"},{"name":"k","type":["null",{"name":"n.K","type":"enum","symbols":["A"]}]},{"name":"l","type":["null","n.R"]}]}"#
        );
        // apache-avro 0.22 leaves {"type":"int"} around what had a logical type; the
        // specification's rule [PRIMITIVES] does not.
        let plain =
            json.replace(r#","logicalType":"date""#, "").replace(r#"{"type":"int"}"#, r#""int""#);
        let reference = apache_avro::Schema::parse_str(&plain).unwrap();
        assert_eq!(schema.canonical(), reference.canonical_form());
    }
}
