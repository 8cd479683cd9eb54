//! How values look to people: spans, counts, columns, colours. Pure.

use std::time::Duration;

/// Whether output is coloured: only on terminals, and never against `NO_COLOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paint {
    pub(crate) colour: bool,
}

impl Paint {
    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `850ms`, `4.2s`, `3m 20s`, `2h 5m`, `3d 4h`: two units at most.
pub(crate) fn span(span: Duration) -> String {
    let ms = span.as_millis();
    let seconds = span.as_secs();
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit} {small}{small_unit}"),
    };
    match seconds {
        _ if ms < 1_000 => format!("{ms}ms"),
        0..10 if ms % 1_000 >= 100 => format!("{seconds}.{}s", ms % 1_000 / 100),
        0..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// `1,234,567`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 letter`, `2 letters`.
pub(crate) fn plural(number: usize, noun: &str) -> String {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `512 B`, `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1_024.0;
    let mut unit = 0;
    while size >= 1_024.0 && unit + 1 < units.len() {
        size /= 1_024.0;
        unit += 1;
    }
    format!("{size:.1} {}", units[unit])
}

/// Text from outside made safe for a terminal and for one line: bodies and error details are
/// whatever a producer sent, escape sequences included.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Cut in the end, with a sign that it was.
pub(crate) fn cut(text: &str, width_max: usize) -> String {
    if text.chars().count() <= width_max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width_max.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Aligned columns under a header. Cells are plain text; the last column is never padded.
#[derive(Debug)]
pub(crate) struct Columns {
    header: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    pub(crate) fn new(header: &[(&'static str, Align)]) -> Self {
        Columns { header: header.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.header.len(), "one cell per column");
        self.rows.push(cells);
    }

    pub(crate) fn render(&self, paint: Paint) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.header[column].0.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let line = |cells: &[&str]| {
            let mut line = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                let last = column + 1 == cells.len();
                match self.header[column].1 {
                    Align::Right => line.extend([&pad, *cell]),
                    Align::Left if last => line.push_str(cell),
                    Align::Left => line.extend([cell, pad.as_str()]),
                }
                if !last {
                    line.push_str("  ");
                }
            }
            line
        };
        let header: Vec<&str> = self.header.iter().map(|(name, _)| *name).collect();
        let mut text = paint.dim(&line(&header));
        text.push('\n');
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            text.push_str(line(&cells).trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_counts_read_as_people_say_them() {
        for (ms, shown) in [
            (0, "0ms"),
            (850, "850ms"),
            (1_000, "1s"),
            (4_260, "4.2s"),
            (42_900, "42s"),
            (200_000, "3m 20s"),
            (300_000, "5m"),
            (7_500_000, "2h 5m"),
            (273_600_000, "3d 4h"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), shown);
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "letter"), "1 letter");
        assert_eq!(plural(2_000, "letter"), "2,000 letters");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1_572_864), "1.5 MiB");
    }

    #[test]
    fn columns_line_up() {
        let mut columns =
            Columns::new(&[("N", Align::Right), ("FEED", Align::Left), ("X", Align::Left)]);
        columns.row(vec!["7".into(), "impressions".into(), "one".into()]);
        columns.row(vec!["120".into(), "é".into(), "".into()]);
        assert_eq!(
            columns.render(Paint { colour: false }),
            "  N  FEED         X\n  7  impressions  one\n120  é\n"
        );
    }

    #[test]
    fn hostile_text_cannot_steer_the_terminal() {
        assert_eq!(one_line("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb c");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abc", 4), "abc");
    }
}
