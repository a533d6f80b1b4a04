//! How many columns a text takes on a terminal. Covers East Asian wide characters, emoji and
//! combining marks by range (Unicode 16, EastAsianWidth.txt, rounded to whole blocks); a terminal's
//! own opinion on joined emoji may differ.

/// Columns of one character: 0, 1 or 2.
pub fn of_char(c: char) -> usize {
    match u32::from(c) {
        0x20..=0x7e => 1,
        0..=0x1f | 0x7f..=0x9f => 0,
        0x300..=0x36f | 0x483..=0x489 | 0x591..=0x5bd | 0x610..=0x61a | 0x64b..=0x65f => 0,
        0x1ab0..=0x1aff | 0x1dc0..=0x1dff | 0x200b..=0x200f | 0x20d0..=0x20ff => 0,
        0xfe00..=0xfe0f | 0xfe20..=0xfe2f | 0xe0100..=0xe01ef => 0,
        0x1100..=0x115f | 0x2e80..=0x303e | 0x3041..=0x4dbf | 0x4e00..=0xa4cf | 0xa960..=0xa97f => 2,
        0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0xffe0..=0xffe6 => 2,
        0x1f300..=0x1f64f | 0x1f680..=0x1f6ff | 0x1f900..=0x1f9ff | 0x1fa70..=0x1faff => 2,
        0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Columns of a text without control characters.
pub fn of(text: &str) -> usize {
    text.chars().map(of_char).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_and_combining_characters() {
        assert_eq!(of("name"), 4);
        assert_eq!(of("größe"), 5);
        assert_eq!(of("e\u{301}"), 1);
        assert_eq!(of("名前"), 4);
        assert_eq!(of("🌊"), 2);
    }
}
