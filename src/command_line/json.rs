//! Translates terms to JSON, as described in [`MAPPING`]. Does no I/O, but reads the clock.
//!
//! The bytes of a term are translated in one pass, without a tree in memory. A malicious term can make its JSON
//! grow: in maps whose keys are maps, each level of escaping doubles the one within it. So a translation has a
//! limit of bytes, and the deadline of the whole command.

use crate::escape;
use crate::etf::{Item, Malformed, Reader};
use std::fmt::{self, Write};
use std::mem;
use std::str;
use std::time::Instant;

/// A description of the mapping, for people.
pub const MAPPING: &str = "\
Integers and floats become numbers (large integers keep all their digits), the atoms true and false
become booleans, null, nil and undefined become null, other atoms and binaries of UTF-8 become strings,
lists and tuples become arrays (the tail of an improper list is the last element), and maps and native
records become objects. Terms that JSON lacks become strings, as the node's shell prints them: pids,
ports, references, funs, bitstrings and binaries that are not text. Charlists are lists; convert them to
binaries to get strings. A key that is neither an atom nor a binary becomes the text of its JSON.";

/// Deepest nesting of arrays and objects. Common JSON parsers accept this.
const MAX_DEPTH: usize = 500;

/// Number of bytes after which the translation checks the time again. Writing them takes less than a millisecond.
const CHECK_INTERVAL: usize = 1 << 16;

/// Limits of a translation.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of JSON.
    pub bytes: usize,
    /// The time at which it has to be complete.
    pub deadline: Instant,
}

/// The reason why a term cannot be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untranslatable {
    /// It is not a valid term.
    Malformed(Malformed),
    /// It is nested more deeply than common JSON parsers accept.
    TooDeep,
    /// Its JSON has more than this number of bytes.
    TooLong(usize),
    /// The deadline has passed.
    TimedOut,
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
            Untranslatable::TooLong(bytes) => write!(f, "its JSON has more than {bytes} bytes"),
            Untranslatable::TimedOut => f.write_str("its translation to JSON takes too long"),
        }
    }
}

type Result<T> = std::result::Result<T, Untranslatable>;

/// Translates the next term.
pub fn translate(term: &mut Reader<'_>, limits: &Limits) -> Result<String> {
    let mut out = Out {
        text: String::new(),
        limits,
        unchecked: CHECK_INTERVAL,
        spare: String::new(),
    };
    value(term, &mut out, 0)?;
    Ok(out.text)
}

/// Formats a text as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for_each_part(text, |part| {
        out.push_str(part);
        Ok(())
    })
    .expect("a string takes everything");
    out.push('"');
    out
}

/// The JSON written so far, with its limits.
struct Out<'a> {
    text: String,
    limits: &'a Limits,
    /// Number of bytes since the time was last checked.
    unchecked: usize,
    /// A buffer for short texts, which is reused.
    spare: String,
}

impl Out<'_> {
    fn push(&mut self, text: &str) -> Result<()> {
        if text.len() > self.limits.bytes - self.text.len() {
            return Err(Untranslatable::TooLong(self.limits.bytes));
        }
        self.text.push_str(text);
        self.unchecked += text.len();
        if self.unchecked >= CHECK_INTERVAL {
            self.unchecked = 0;
            self.check_time()?;
        }
        Ok(())
    }

    /// Appends a short formatted text, such as a number.
    fn append(&mut self, short: fmt::Arguments<'_>) -> Result<()> {
        let mut text = mem::take(&mut self.spare);
        text.clear();
        text.write_fmt(short).expect("a string takes everything");
        let pushed = self.push(&text);
        self.spare = text;
        pushed
    }

    fn comma(&mut self, index: usize) -> Result<()> {
        match index {
            0 => Ok(()),
            _ => self.push(","),
        }
    }

    fn string(&mut self, text: &str) -> Result<()> {
        self.push("\"")?;
        for_each_part(text, |part| self.push(part))?;
        self.push("\"")
    }

    fn check_time(&self) -> Result<()> {
        match Instant::now() < self.limits.deadline {
            true => Ok(()),
            false => Err(Untranslatable::TimedOut),
        }
    }
}

fn value(term: &mut Reader<'_>, out: &mut Out<'_>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Untranslatable::TooDeep);
    }
    match term.item()? {
        Item::List(length) => list(length, term, out, depth + 1),
        Item::Tuple(arity) => {
            out.push("[")?;
            elements(arity, term, out, depth + 1)?;
            out.push("]")
        }
        Item::Map(size) => map(size, term, out, depth + 1),
        Item::Record { count, fields } => record(count, fields, term, out, depth + 1),
        item => leaf(item, out),
    }
}

fn list(length: usize, term: &mut Reader<'_>, out: &mut Out<'_>, depth: usize) -> Result<()> {
    out.push("[")?;
    elements(length, term, out, depth)?;
    if !ends_here(term)? {
        out.comma(length)?;
        value(term, out, depth)?;
    }
    out.push("]")
}

fn elements(count: usize, term: &mut Reader<'_>, out: &mut Out<'_>, depth: usize) -> Result<()> {
    for index in 0..count {
        out.comma(index)?;
        value(term, out, depth)?;
    }
    Ok(())
}

fn map(size: usize, term: &mut Reader<'_>, out: &mut Out<'_>, depth: usize) -> Result<()> {
    out.push("{")?;
    for index in 0..size {
        out.comma(index)?;
        key(term, out, depth)?;
        out.push(":")?;
        value(term, out, depth)?;
    }
    out.push("}")
}

fn record(
    count: usize,
    mut fields: Reader<'_>,
    term: &mut Reader<'_>,
    out: &mut Out<'_>,
    depth: usize,
) -> Result<()> {
    out.push("{")?;
    for index in 0..count {
        out.comma(index)?;
        out.string(&fields.atom("field")?)?;
        out.push(":")?;
        value(term, out, depth)?;
    }
    out.push("}")
}

/// Writes a term that has no elements.
fn leaf(item: Item<'_>, out: &mut Out<'_>) -> Result<()> {
    match item {
        Item::Integer(integer) => out.append(format_args!("{integer}")),
        Item::Big {
            negative,
            magnitude,
        } => {
            out.push(if negative { "-" } else { "" })?;
            decimal(magnitude, out)
        }
        // This format has the fewest digits from which the same float can be read.
        Item::Float(float) => out.append(format_args!("{float:?}")),
        Item::Atom(name) => match name.as_ref() {
            "true" | "false" => out.push(&name),
            "null" | "nil" | "undefined" => out.push("null"),
            _ => out.string(&name),
        },
        Item::Binary(bytes) => match str::from_utf8(bytes) {
            Ok(text) => out.string(text),
            Err(_) => bitstring(bytes, 8, out),
        },
        Item::Bits(bytes, bits) => bitstring(bytes, bits, out),
        Item::Nil => out.push("[]"),
        Item::Bytes(bytes) => {
            out.push("[")?;
            numbers(bytes, out)?;
            out.push("]")
        }
        Item::Pid { id: (id, serial) } => out.append(format_args!("\"<0.{id}.{serial}>\"")),
        Item::Port { id } => out.append(format_args!("\"#Port<0.{id}>\"")),
        Item::Reference { words } => {
            out.push("\"#Ref<0")?;
            for word in words.iter().rev() {
                out.append(format_args!(".{word}"))?;
            }
            out.push(">\"")
        }
        Item::Export {
            module,
            function,
            arity,
        } => out.string(&format!("fun {module}:{function}/{arity}")),
        Item::Fun {
            module,
            index,
            unique,
        } => out.string(&format!("#Fun<{module}.{index}.{unique}>")),
        Item::List(_) | Item::Tuple(_) | Item::Map(_) | Item::Record { .. } => {
            unreachable!("it has elements")
        }
    }
}

/// Reads the tail of a list if it is the empty list, which makes it a proper list; false otherwise.
fn ends_here(term: &mut Reader<'_>) -> Result<bool> {
    let mut ahead = term.clone();
    let is_nil = ahead.item()? == Item::Nil;
    if is_nil {
        *term = ahead;
    }
    Ok(is_nil)
}

/// Writes a key, which has to be a string in JSON.
fn key(term: &mut Reader<'_>, out: &mut Out<'_>, depth: usize) -> Result<()> {
    let mut ahead = term.clone();
    if let Item::Atom(name) = ahead.item()? {
        *term = ahead;
        return out.string(&name);
    }
    let start = out.text.len();
    value(term, out, depth)?;
    if !out.text[start..].starts_with('"') {
        let text = out.text.split_off(start);
        out.string(&text)?;
    }
    Ok(())
}

/// Splits a text into parts that can be in a JSON string unchanged, and escape sequences for the rest.
fn for_each_part(text: &str, mut part: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut rest = text;
    let is_special = |character| matches!(character, '"' | '\\') || escape::is_active(character);
    while let Some(at) = rest.find(is_special) {
        part(&rest[..at])?;
        let mut after = rest[at..].chars();
        match after.next().expect("it was found") {
            '"' => part("\\\"")?,
            '\\' => part("\\\\")?,
            '\n' => part("\\n")?,
            '\r' => part("\\r")?,
            '\t' => part("\\t")?,
            other => part(&format!("\\u{:04x}", u32::from(other)))?,
        }
        rest = after.as_str();
    }
    part(rest)
}

/// Writes a bitstring as the Erlang shell prints it. Only the highest `bits` bits of its last byte are used.
fn bitstring(bytes: &[u8], bits: u8, out: &mut Out<'_>) -> Result<()> {
    let whole = bytes.len() - usize::from(bits < 8);
    out.push("\"<<")?;
    numbers(&bytes[..whole], out)?;
    if let [last] = bytes[whole..] {
        out.comma(whole)?;
        out.append(format_args!("{}:{bits}", last >> (8 - bits)))?;
    }
    out.push(">>\"")
}

fn numbers(bytes: &[u8], out: &mut Out<'_>) -> Result<()> {
    for (index, byte) in bytes.iter().enumerate() {
        out.comma(index)?;
        out.append(format_args!("{byte}"))?;
    }
    Ok(())
}

/// Writes an integer in decimal. Its bytes come least significant first. This takes time proportional to the
/// square of its length.
fn decimal(magnitude: &[u8], out: &mut Out<'_>) -> Result<()> {
    const DIGITS: usize = 19;
    const BASE: u128 = 10u128.pow(DIGITS as u32);
    let length = magnitude.iter().rposition(|byte| *byte != 0);
    let magnitude = &magnitude[..length.map_or(0, |last| last + 1)];
    // Each byte except the last makes more than two digits, so it is known early if there is not enough room.
    if magnitude.len() * 2 > out.limits.bytes {
        return Err(Untranslatable::TooLong(out.limits.bytes));
    }
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
        for part in limbs.chunks_mut(CHECK_INTERVAL).rev() {
            for limb in part.iter_mut().rev() {
                let dividend = remainder << 64 | u128::from(*limb);
                // Both fit: the remainder is less than the base, so the quotient is less than 2^64.
                *limb = (dividend / BASE) as u64;
                remainder = dividend % BASE;
            }
            out.check_time()?;
        }
        groups.push(remainder as u64);
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
        if limbs.is_empty() {
            break;
        }
    }
    for (index, group) in groups.iter().rev().enumerate() {
        match index {
            0 => out.append(format_args!("{group}"))?,
            _ => out.append(format_args!("{group:0DIGITS$}"))?,
        }
    }
    Ok(())
}
