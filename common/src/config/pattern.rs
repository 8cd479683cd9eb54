//! Which objects a feed takes: `s3://bucket/prefix/dt={dt}/**.avro`.

use std::fmt;

use regex::Regex;

/// What a feed takes that reads records out of messages instead of objects. It stands where other
/// records have their bucket; no bucket can be named so.
pub const MESSAGES: &str = "messages:";

/// A bucket and a pattern over keys: `*` spans anything but `/`, `**` also spans `/`, and
/// `{name}` captures one non-empty part between slashes. Or [`MESSAGES`].
#[derive(Clone)]
pub struct ObjectPattern {
    text: String,
    bucket: String,
    key: Regex,
    captures: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatternError {
    #[error(
        "`{text}` is neither s3://BUCKET/KEY-PATTERN nor `{MESSAGES}`, for records in messages"
    )]
    NotS3 { text: String },
    #[error("`{text}`: the bucket must be named in full, as S3 allows, without patterns")]
    BucketPattern { text: String },
    #[error("`{text}`: `{{` without a name and `}}`; captures are written {{name}}")]
    BadCapture { text: String },
    #[error("`{text}`: the capture `{name}` occurs twice")]
    DuplicateCapture { text: String, name: String },
    #[error("`{text}`: the pattern is too large")]
    TooLarge { text: String },
}

impl ObjectPattern {
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let own = || text.to_owned();
        if text == MESSAGES {
            let key = Regex::new("").expect("the empty pattern matches everything");
            return Ok(ObjectPattern { text: own(), bucket: own(), key, captures: Vec::new() });
        }
        let (bucket, key) = text
            .strip_prefix("s3://")
            .and_then(|rest| rest.split_once('/'))
            .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
            .ok_or_else(|| PatternError::NotS3 { text: own() })?;
        if bucket.contains(['*', '{', '}', '?', ':']) {
            return Err(PatternError::BucketPattern { text: own() });
        }
        let mut regex = String::from("^(?s:");
        let mut captures = Vec::new();
        let mut rest = key;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("**") {
                regex.push_str(".*");
                rest = after;
            } else if let Some(after) = rest.strip_prefix('*') {
                regex.push_str("[^/]*");
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let (name, after) = after
                    .split_once('}')
                    .filter(|(name, _)| is_capture_name(name))
                    .ok_or_else(|| PatternError::BadCapture { text: own() })?;
                if captures.iter().any(|known| known == name) {
                    let name = name.to_owned();
                    return Err(PatternError::DuplicateCapture { text: own(), name });
                }
                captures.push(name.to_owned());
                regex.push_str("([^/]+)");
                rest = after;
            } else {
                regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
                rest = &rest[c.len_utf8()..];
            }
        }
        regex.push_str(")$");
        let key = Regex::new(&regex).map_err(|_| PatternError::TooLarge { text: own() })?;
        Ok(ObjectPattern { text: own(), bucket: bucket.to_owned(), key, captures })
    }

    /// [`MESSAGES`] where there is none.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Whether the feed's records come in messages, so that there is no bucket to look into.
    pub fn is_messages(&self) -> bool {
        self.bucket == MESSAGES
    }

    /// The names of the captures, in the order of the pattern.
    pub fn captures(&self) -> &[String] {
        &self.captures
    }

    pub fn matches(&self, bucket: &str, key: &str) -> bool {
        self.bucket == bucket && self.key.is_match(key)
    }

    /// The values of the captures, in the order of [`ObjectPattern::captures`]; `None` when the
    /// object is not this feed's.
    pub fn capture_values<'k>(&self, bucket: &str, key: &'k str) -> Option<Vec<&'k str>> {
        if self.bucket != bucket {
            return None;
        }
        let found = self.key.captures(key)?;
        Some(found.iter().skip(1).map(|part| part.map_or("", |part| part.as_str())).collect())
    }

    /// The key up to the first `*` or `{`: what a listing may start from.
    pub fn prefix(&self) -> &str {
        if self.is_messages() {
            return "";
        }
        let key = &self.text["s3://".len() + self.bucket.len() + 1..];
        &key[..key.find(['*', '{']).unwrap_or(key.len())]
    }
}

fn is_capture_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= super::IDENTIFIER_BYTES_MAX
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What Spark and Hadoop leave beside the data: markers and checksums, never rows.
pub fn is_leftover(key: &str, size: u64) -> bool {
    let name = key.rsplit('/').next().unwrap_or(key);
    (size == 0 && name.is_empty())
        || key.split('/').any(|part| part == "_temporary")
        || key.ends_with("_$folder$")
        || matches!(name, "_SUCCESS" | "_committed" | "_started" | "_metadata" | "_common_metadata")
        || name.starts_with("_committed_")
        || name.starts_with("_started_")
        || name.ends_with(".crc")
}

impl fmt::Display for ObjectPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ObjectPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectPattern({})", self.text)
    }
}

impl PartialEq for ObjectPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ObjectPattern {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_captures() {
        let pattern = ObjectPattern::parse("s3://b/imp/dt={dt}/h={hour}/**.avro").unwrap();
        assert_eq!(pattern.captures(), ["dt", "hour"]);
        assert_eq!(pattern.prefix(), "imp/dt=");
        for (key, values) in [
            ("imp/dt=2026-03-01/h=07/part-0.avro", Some(vec!["2026-03-01", "07"])),
            ("imp/dt=2026-03-01/h=07/a/b/part-0.avro", Some(vec!["2026-03-01", "07"])),
            ("imp/dt=2026-03-01/h=07/part-0.json", None),
            ("imp/dt=/h=07/part-0.avro", None),
            ("imp/dt=a/b/h=07/x.avro", None),
            ("ximp/dt=a/h=07/x.avro", None),
        ] {
            assert_eq!(pattern.capture_values("b", key), values, "{key}");
            assert_eq!(pattern.matches("b", key), values.is_some(), "{key}");
        }
        assert!(!pattern.matches("other", "imp/dt=1/h=07/x.avro"));

        let flat = ObjectPattern::parse("s3://b/a.b/*.avro").unwrap();
        assert!(flat.matches("b", "a.b/x.avro"));
        assert!(!flat.matches("b", "a.b/c/x.avro") && !flat.matches("b", "aXb/x.avro"));
    }

    #[test]
    fn records_in_messages_are_no_bucket() {
        let pattern = ObjectPattern::parse("messages:").unwrap();
        assert!(pattern.is_messages() && pattern.matches(MESSAGES, "8f1e"));
        assert_eq!((pattern.to_string().as_str(), pattern.prefix()), ("messages:", ""));
        assert!(!pattern.matches("b", "8f1e"));
        assert!(!ObjectPattern::parse("s3://b/**").unwrap().matches(MESSAGES, "8f1e"));
        assert!(ObjectPattern::parse("s3://messages:x/**").is_err());
    }

    #[test]
    fn bad_patterns_say_why() {
        for text in
            ["b/x", "s3://b", "s3:///x", "s3://b*/x", "s3://b/{}/x", "s3://b/{a", "s3://b/{a}{a}"]
        {
            assert!(ObjectPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn leftovers() {
        for (key, size) in [
            ("a/_SUCCESS", 0),
            ("a/_temporary/0/part.avro", 9),
            ("a/.part.avro.crc", 12),
            ("a/b/", 0),
            ("a_$folder$", 0),
        ] {
            assert!(is_leftover(key, size), "{key}");
        }
        for (key, size) in [("a/part.avro", 0), ("a/part.avro", 9), ("a/b/", 9)] {
            assert!(!is_leftover(key, size), "{key}");
        }
    }
}
