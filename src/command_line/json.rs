//! Terms as JSON. [`MAPPING`] says how. Pure.
//!
//! The bytes of a term are translated in one pass: there is no tree of it in memory.

use crate::etf::{Item, Malformed, Reader};
use std::fmt::{self, Write};
use std::str;

/// The mapping, for people.
pub const MAPPING: &str = "\
Integers and floats are numbers (large integers with all their digits), the atoms true and false are
themselves, null, nil and undefined are null, other atoms are strings, binaries of UTF-8 are strings,
lists and tuples are arrays (an improper list has its tail as last element), maps and native records
are objects. What JSON lacks is a string as the shell of its node prints it: pids, ports, references,
funs, bitstrings and binaries that are no text. Charlists are lists: make a binary of what is to be a
string. A key that is not an atom or a binary is the text of its JSON.";

/// Arrays within arrays: what readers of JSON take.
const MAX_DEPTH: usize = 500;

/// Why a term has no JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untranslatable {
    /// It is no term.
    Malformed(Malformed),
    /// It is nested deeper than readers of JSON accept.
    TooDeep,
}

impl From<Malformed> for Untranslatable {
    fn from(malformed: Malformed) -> Self {
        Untranslatable::Malformed(malformed)
    }
}

impl fmt::Display for Untranslatable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Untranslatable::Malformed(malformed) => malformed.fmt(f),
            Untranslatable::TooDeep => write!(f, "it is nested deeper than {MAX_DEPTH} levels"),
        }
    }
}

type Result<T> = std::result::Result<T, Untranslatable>;

/// Translates the next term.
pub fn translate(term: &mut Reader<'_>) -> Result<String> {
    let mut out = String::new();
    value(term, &mut out, 0)?;
    Ok(out)
}

/// A text as a string of JSON.
pub fn quoted(text: &str) -> String {
    let mut out = String::new();
    string(&mut out, text);
    out
}

fn value(term: &mut Reader<'_>, out: &mut String, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Untranslatable::TooDeep);
    }
    match term.item()? {
        Item::Integer(integer) => append(out, format_args!("{integer}")),
        Item::Big {
            negative,
            magnitude,
        } => {
            out.push_str(if negative { "-" } else { "" });
            out.push_str(&decimal(magnitude));
        }
        // With the fewest digits that are read as the same float.
        Item::Float(float) => append(out, format_args!("{float:?}")),
        Item::Atom(name) => match name.as_ref() {
            "true" | "false" => out.push_str(&name),
            "null" | "nil" | "undefined" => out.push_str("null"),
            _ => string(out, &name),
        },
        Item::Binary(bytes) => match str::from_utf8(bytes) {
            Ok(text) => string(out, text),
            Err(_) => string(out, &bitstring(bytes, 8)),
        },
        Item::Bits(bytes, bits) => string(out, &bitstring(bytes, bits)),
        Item::Nil => out.push_str("[]"),
        Item::Bytes(bytes) => {
            out.push('[');
            separated(out, bytes, |out, byte| append(out, format_args!("{byte}")));
            out.push(']');
        }
        Item::List(length) => {
            out.push('[');
            for index in 0..length {
                comma(out, index);
                value(term, out, depth + 1)?;
            }
            if !ends_here(term)? {
                comma(out, length);
                value(term, out, depth + 1)?;
            }
            out.push(']');
        }
        Item::Tuple(arity) => {
            out.push('[');
            for index in 0..arity {
                comma(out, index);
                value(term, out, depth + 1)?;
            }
            out.push(']');
        }
        Item::Map(size) => {
            out.push('{');
            for index in 0..size {
                comma(out, index);
                key(term, out, depth)?;
                out.push(':');
                value(term, out, depth + 1)?;
            }
            out.push('}');
        }
        Item::Record(fields) => {
            out.push('{');
            for (index, field) in fields.iter().enumerate() {
                comma(out, index);
                string(out, field);
                out.push(':');
                value(term, out, depth + 1)?;
            }
            out.push('}');
        }
        Item::Pid { id: (id, serial) } => string(out, &format!("<0.{id}.{serial}>")),
        Item::Port { id } => string(out, &format!("#Port<0.{id}>")),
        Item::Reference { words } => {
            let words = words.iter().rev().map(|word| format!(".{word}"));
            string(out, &format!("#Ref<0{}>", words.collect::<String>()));
        }
        Item::Export {
            module,
            function,
            arity,
        } => string(out, &format!("fun {module}:{function}/{arity}")),
        Item::Fun {
            module,
            index,
            unique,
        } => string(out, &format!("#Fun<{module}.{index}.{unique}>")),
    }
    Ok(())
}

/// After the last element of a list: a proper one has the empty list as its tail.
fn ends_here(term: &mut Reader<'_>) -> Result<bool> {
    let mut ahead = term.clone();
    let is_nil = ahead.item()? == Item::Nil;
    if is_nil {
        *term = ahead;
    }
    Ok(is_nil)
}

/// A key has to be a string.
fn key(term: &mut Reader<'_>, out: &mut String, depth: usize) -> Result<()> {
    let mut ahead = term.clone();
    if let Item::Atom(name) = ahead.item()? {
        *term = ahead;
        string(out, &name);
        return Ok(());
    }
    let start = out.len();
    value(term, out, depth + 1)?;
    if !out[start..].starts_with('"') {
        let text = out.split_off(start);
        string(out, &text);
    }
    Ok(())
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f' | '\x7f' => append(out, format_args!("\\u{:04x}", character as u32)),
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// As the Erlang shell prints it. The last byte has so many bits, its highest ones.
fn bitstring(bytes: &[u8], bits: u8) -> String {
    let mut out = String::from("<<");
    let whole = bytes.len() - usize::from(bits < 8);
    separated(&mut out, &bytes[..whole], |out, byte| {
        append(out, format_args!("{byte}"));
    });
    if let [last] = bytes[whole..] {
        comma(&mut out, whole);
        append(&mut out, format_args!("{}:{bits}", last >> (8 - bits)));
    }
    out.push_str(">>");
    out
}

fn separated<T>(out: &mut String, elements: &[T], mut write: impl FnMut(&mut String, &T)) {
    for (index, element) in elements.iter().enumerate() {
        comma(out, index);
        write(out, element);
    }
}

fn comma(out: &mut String, index: usize) {
    if index > 0 {
        out.push(',');
    }
}

fn append(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes everything");
}

/// Digits of a number whose bytes come least significant first.
fn decimal(magnitude: &[u8]) -> String {
    const DIGITS: usize = 19;
    const BASE: u128 = 10u128.pow(DIGITS as u32);
    let mut limbs: Vec<u64> = magnitude
        .chunks(8)
        .map(|chunk| {
            let mut limb = [0; 8];
            limb[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(limb)
        })
        .collect();
    let mut groups = Vec::new();
    loop {
        let mut remainder: u128 = 0;
        for limb in limbs.iter_mut().rev() {
            let dividend = remainder << 64 | u128::from(*limb);
            // Both fit: the remainder is less than the base, and so the quotient less than 2^64.
            *limb = (dividend / BASE) as u64;
            remainder = dividend % BASE;
        }
        groups.push(remainder);
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
        if limbs.is_empty() {
            break;
        }
    }
    let mut digits = String::new();
    for (index, group) in groups.iter().rev().enumerate() {
        match index {
            0 => append(&mut digits, format_args!("{group}")),
            _ => append(&mut digits, format_args!("{group:0DIGITS$}")),
        }
    }
    digits
}
