//! Escapes text from others, so that neither the name of a file nor the answer of a node can move the cursor,
//! forge a line or hide the text beside it. Pure.

use std::fmt::Write;
use std::iter;

/// Escapes a text that is part of one line, including newlines and tabs.
pub fn line(text: &str) -> String {
    let mut out = String::new();
    append(&mut out, text, |_| false);
    out
}

/// Escapes bytes that should be text in several lines; newlines and tabs are kept. Yields pieces of limited
/// size, because the whole text may be long.
pub fn lines(mut bytes: &[u8]) -> impl Iterator<Item = String> {
    const PIECE: usize = 1 << 16;
    const CHARACTER: usize = 4;
    iter::from_fn(move || {
        let mut end = bytes.len();
        if end > PIECE {
            // Do not cut within a character.
            let begins = |at: &usize| bytes[*at] & 0b1100_0000 != 0b1000_0000;
            end = (PIECE - CHARACTER..PIECE)
                .rev()
                .find(begins)
                .unwrap_or(PIECE);
        }
        let (piece, rest) = bytes.split_at(end);
        bytes = rest;
        let mut out = String::new();
        append_bytes(&mut out, piece, |character| {
            matches!(character, '\n' | '\t')
        });
        (!out.is_empty()).then_some(out)
    })
}

/// Escapes a name of arbitrary bytes for one line. Backslashes are escaped too, so that different names look
/// different.
pub fn name(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (index, part) in bytes.split(|byte| *byte == b'\\').enumerate() {
        if index > 0 {
            out.push_str("\\\\");
        }
        append_bytes(&mut out, part, |_| false);
    }
    out
}

fn append_bytes(out: &mut String, bytes: &[u8], stays: impl Fn(char) -> bool) {
    for chunk in bytes.utf8_chunks() {
        append(out, chunk.valid(), &stays);
        for byte in chunk.invalid() {
            escape(out, format_args!("\\x{byte:02x}"));
        }
    }
}

fn append(out: &mut String, text: &str, stays: impl Fn(char) -> bool) {
    for character in text.chars() {
        match character {
            _ if stays(character) || !is_active(character) => out.push(character),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x7f' => escape(out, format_args!("\\x{:02x}", u32::from(character))),
            _ => escape(out, format_args!("\\x{{{:x}}}", u32::from(character))),
        }
    }
}

fn escape(out: &mut String, code: std::fmt::Arguments<'_>) {
    out.write_fmt(code).expect("a string takes everything");
}

/// True for control characters (C0, DEL and C1, whose U+009B also begins escape sequences), line separators,
/// and characters that change the direction of the text around them. All of these are below U+10000.
pub fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}
