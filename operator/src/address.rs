//! `s3://bucket/prefix` as people write it on a command line.

use std::fmt;
use std::str::FromStr;

/// A bucket and the beginning of keys; the beginning may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("s3://").ok_or_else(|| {
            format!("`{text}` is not an S3 address; write s3://BUCKET/ or s3://BUCKET/PREFIX/")
        })?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(format!("`{text}` names no bucket; write s3://BUCKET/PREFIX/"));
        }
        Ok(Address { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// Whether `text` is what `pattern` describes: `*` stands for any run of characters, slashes
/// included; without a `*` the pattern is a prefix.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return text.starts_with(pattern) };
    let Some(mut left) = text.strip_prefix(head) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    let (last, middle) = parts.split_last().expect("split gives at least one part");
    for part in middle {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_bucket_and_nothing_else() {
        for (text, bucket, key) in
            [("s3://b", "b", ""), ("s3://b/", "b", ""), ("s3://b/a/ü.avro", "b", "a/ü.avro")]
        {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.bucket.as_str(), address.key.as_str()), (bucket, key));
        }
        for text in ["b/x", "s3:///x", "s3://", "S3://b/x"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn globs_and_prefixes() {
        for (pattern, text, matches) in [
            ("s3://b/2026/", "s3://b/2026/03/x.avro", true),
            ("s3://b/2026/", "s3://b/2025/x.avro", false),
            ("s3://b/*/x.avro", "s3://b/2026/03/x.avro", true),
            ("*x.avro", "s3://b/x.avro", true),
            ("*x.avro", "s3://b/x.avro.bak", false),
            ("s3://b/a*a", "s3://b/a", false),
            ("a*b*c", "a1b2b3c", true),
            ("a**c", "abc", true),
            ("*", "", true),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }
}
