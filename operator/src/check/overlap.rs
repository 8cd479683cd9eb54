//! Whether two object patterns can take the same object. Pure.

/// One step of a pattern, as `ObjectPattern` understands its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Is(char),
    /// `*`: any run without slashes.
    Run,
    /// `**`: any run.
    Any,
    /// One character of a `{capture}`: anything but a slash.
    Part,
}

fn steps(pattern: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = if let Some(after) = rest.strip_prefix("**") {
            steps.push(Step::Any);
            after
        } else if let Some(after) = rest.strip_prefix('*') {
            steps.push(Step::Run);
            after
        } else if let Some((_, after)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
            // A capture is one character or more.
            steps.extend([Step::Part, Step::Run]);
            after
        } else {
            steps.push(Step::Is(c));
            &rest[c.len_utf8()..]
        };
    }
    steps
}

/// Walks both patterns at once: `reachable[j]` says that some text leads to here in the first and
/// to `j` in the second.
pub(super) fn overlap(one: &str, two: &str) -> bool {
    let (one, two) = (steps(one), steps(two));
    let mut reachable = vec![vec![false; two.len() + 1]; one.len() + 1];
    reachable[0][0] = true;
    for i in 0..=one.len() {
        for j in 0..=two.len() {
            if !reachable[i][j] {
                continue;
            }
            let (a, b) = (one.get(i).copied(), two.get(j).copied());
            // A run may be empty.
            if a.is_some_and(repeats) {
                reachable[i + 1][j] = true;
            }
            if b.is_some_and(repeats) {
                reachable[i][j + 1] = true;
            }
            if let (Some(a), Some(b)) = (a, b)
                && share_a_character(a, b)
            {
                // A run stays where it is; two runs at once lead nowhere new.
                reachable[i + usize::from(!repeats(a))][j + usize::from(!repeats(b))] = true;
            }
        }
    }
    reachable[one.len()][two.len()]
}

fn repeats(step: Step) -> bool {
    matches!(step, Step::Run | Step::Any)
}

fn share_a_character(a: Step, b: Step) -> bool {
    match (a, b) {
        (Step::Is(a), Step::Is(b)) => a == b,
        (Step::Is(c), Step::Run | Step::Part) | (Step::Run | Step::Part, Step::Is(c)) => c != '/',
        (Step::Is(_), Step::Any) | (Step::Any, Step::Is(_)) => true,
        (Step::Run | Step::Any | Step::Part, Step::Run | Step::Any | Step::Part) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_share_an_object() {
        for (one, two, shared) in [
            ("s3://b/a/**", "s3://b/a/x.avro", true),
            ("s3://b/a/**", "s3://b/c/**", false),
            ("s3://b/a/*.avro", "s3://b/a/b/*.avro", false),
            ("s3://b/a/**.avro", "s3://b/a/b/*.avro", true),
            ("s3://b/**.avro", "s3://b/**.json", false),
            ("s3://b/dt={dt}/*", "s3://b/dt=2026/x", true),
            ("s3://b/dt={dt}/*", "s3://b/dt=/x", false),
            ("s3://b/{a}/x", "s3://b/*/x", true),
            ("s3://b/*a", "s3://b/b*", true),
            ("s3://b/x", "s3://c/x", false),
            ("s3://b/**/z", "s3://b/*", false),
            ("s3://b/**/z/z", "s3://b/*/y", false),
        ] {
            assert_eq!(overlap(one, two), shared, "{one} {two}");
            assert_eq!(overlap(two, one), shared, "{two} {one}");
        }
    }
}
