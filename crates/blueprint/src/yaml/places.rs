//! From character counts to spans.

use moat_model::Span;
use std::cell::Cell;

/// Characters between two remembered offsets.
const STRIDE: usize = 32;

/// Knows where the characters and lines of a text are; every answer takes logarithmic time, whatever the text, and constant time
/// near the answer before.
#[derive(Debug)]
pub(crate) struct Places<'t> {
    /// The line of the last answer, from 0.
    last: Cell<usize>,
    /// Byte offset of every [`STRIDE`]th character; empty for ASCII, where bytes are characters.
    offsets: Vec<usize>,
    /// Character index of each line's first character.
    lines: Vec<usize>,
    /// Characters in all.
    chars: usize,
    /// The text without its byte order mark.
    text: &'t str,
    /// Bytes of the mark.
    skipped: usize,
}

const MARK: char = '\u{feff}';

impl<'t> Places<'t> {
    /// Indexes a text. A byte order mark at its beginning counts as no character.
    pub(crate) fn new(text: &'t str) -> Self {
        let whole = text.len();
        let text = text.strip_prefix(MARK).unwrap_or(text);
        let mut offsets = Vec::new();
        let mut lines = vec![0];
        let mut chars = 0;
        let mut after_return = false;
        if text.is_ascii() {
            // Bytes are characters.
            for (at, byte) in text.bytes().enumerate() {
                if byte == b'\n' || after_return {
                    lines.push(if byte == b'\n' { at + 1 } else { at });
                }
                after_return = byte == b'\r';
            }
            if after_return {
                lines.push(text.len());
            }
            return Self { last: Cell::new(0), offsets, lines, chars: text.len(), text, skipped: whole - text.len() };
        }
        for (offset, c) in text.char_indices() {
            if chars % STRIDE == 0 {
                offsets.push(offset);
            }
            if after_return && c != '\n' {
                lines.push(chars);
            }
            after_return = c == '\r';
            chars += 1;
            if c == '\n' {
                lines.push(chars);
            }
        }
        if after_return {
            lines.push(chars);
        }
        Self { last: Cell::new(0), offsets, lines, chars, text, skipped: whole - text.len() }
    }

    /// The text without its mark.
    pub(crate) const fn text(&self) -> &'t str {
        self.text
    }

    /// The byte offset of the character with this index, or the text's length past the last.
    pub(crate) fn byte(&self, index: usize) -> usize {
        if index >= self.chars {
            return self.text.len();
        }
        let Some(&start) = self.offsets.get(index / STRIDE) else {
            return index;
        };
        let rest = self.text.get(start..).unwrap_or_default();
        let step = rest.char_indices().nth(index % STRIDE).map_or(rest.len(), |(offset, _)| offset);
        start + step
    }

    /// The index of the character that starts at or holds this byte.
    pub(crate) fn index(&self, byte: usize) -> usize {
        if byte >= self.text.len() {
            return self.chars;
        }
        if self.offsets.is_empty() {
            return byte;
        }
        let block = self.offsets.partition_point(|&o| o <= byte).saturating_sub(1);
        let start = self.offsets.get(block).copied().unwrap_or_default();
        let rest = self.text.get(start..).unwrap_or_default();
        let inside = rest.char_indices().take_while(|(offset, _)| start + offset <= byte).count();
        block * STRIDE + inside.saturating_sub(1)
    }

    /// The span from one character index to another, cut to the text.
    pub(crate) fn span(&self, start: usize, end: usize) -> Span {
        let start = start.min(self.chars);
        let line = self.line(start);
        let first = self.lines.get(line).copied().unwrap_or_default();
        let start_byte = self.byte(start);
        Span {
            start: start_byte + self.skipped,
            end: self.byte(end).max(start_byte) + self.skipped,
            line: u32::try_from(line + 1).unwrap_or(u32::MAX),
            column: u32::try_from(start - first + 1).unwrap_or(u32::MAX),
        }
    }

    /// The line, from 0, that holds the character with this index. A reader goes from line to line.
    fn line(&self, index: usize) -> usize {
        /// How many lines further on are looked at before all are searched.
        const NEAR: usize = 8;
        let from = self.last.get();
        let begins = |line: usize| self.lines.get(line).copied();
        let near = begins(from).is_some_and(|first| first <= index);
        let found = near.then(|| (from..from + NEAR).find(|line| begins(line + 1).is_none_or(|next| next > index))).flatten();
        let line = found.unwrap_or_else(|| self.lines.partition_point(|&first| first <= index).saturating_sub(1));
        self.last.set(line);
        line
    }

    /// The place after the last character.
    pub(crate) fn end(&self) -> Span {
        self.span(self.chars, self.chars)
    }

    /// The piece of the text that a span covers.
    pub(crate) fn piece(&self, span: Span) -> &'t str {
        let from = span.start.saturating_sub(self.skipped);
        let to = span.end.saturating_sub(self.skipped);
        self.text.get(from..to).unwrap_or_default()
    }

    /// The span of a byte range.
    pub(crate) fn bytes(&self, start: usize, end: usize) -> Span {
        self.span(self.index(start), self.index(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_characters() {
        let text = "añb\r\ncd\re\n\u{1f980}x";
        let places = Places::new(text);
        for (needle, line, column) in [("a", 1, 1), ("b", 1, 3), ("d", 2, 2), ("e", 3, 1), ("x", 4, 2)] {
            let at = text.find(needle).unwrap();
            let span = places.bytes(at, at + 1);
            assert_eq!((span.line, span.column), (line, column), "{needle}");
            assert_eq!(&text[span.start..span.end], needle);
        }
        let end = places.span(999, 1000);
        assert_eq!((end.start, end.end), (text.len(), text.len()));
    }

    #[test]
    fn lines_are_found_near_and_far_forwards_and_backwards() {
        let text = "ab\n\n".repeat(40);
        let places = Places::new(&text);
        for at in [0, 1, 2, 3, 4, 40, 7, 159, 0, 158, 160, 161] {
            let line = text[..at.min(text.len())].matches('\n').count() + 1;
            assert_eq!(places.span(at, at).line as usize, line, "{at}");
        }
    }

    #[test]
    fn a_mark_is_skipped_and_counted_in_bytes() {
        let places = Places::new("\u{feff}ab");
        let span = places.span(1, 2);
        assert_eq!((span.start, span.column), (4, 2));
        assert_eq!(places.piece(span), "b");
    }

    #[test]
    fn long_texts_use_the_remembered_offsets() {
        let text = "é".repeat(1000) + "x";
        let places = Places::new(&text);
        assert_eq!(places.byte(1000), 2000);
        assert_eq!(places.index(2000), 1000);
        assert_eq!(places.index(1999), 999);
        assert_eq!(places.span(1000, 1001).column, 1001);
    }
}
