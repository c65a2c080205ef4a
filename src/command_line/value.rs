//! What a node answers to a question of ours, in memory: for `status` and `peers`, which lay it out for
//! people or print it as JSON. Results of the user's own calls, which may be large, are [`crate::json`]'s.
//! Pure.
//!
//! Keys keep the order in which they come. So an object is sent as a list of pairs, which the terms of
//! other maps are too.

use crate::etf::{Item, Malformed, Reader};
use crate::json;

/// Lists within lists: more than any answer has.
const MAX_DEPTH: usize = 8;

/// Values in an answer: as many as a hundred thousand connections have.
const MAX_VALUES: usize = 2_000_000;

/// An answer, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// It is not known, or does not apply.
    Null,
    /// `true` or `false`.
    Boolean(bool),
    /// An integer.
    Number(i64),
    /// A binary or an atom.
    Text(String),
    /// In order.
    List(Vec<Value>),
    /// Keys and values, in order.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Reads a term: of integers, binaries, atoms, lists, maps with atoms as keys, and lists of pairs
    /// that begin with an atom.
    pub fn read(term: &mut Reader<'_>) -> Result<Value, Malformed> {
        read(term, 0, &mut MAX_VALUES.clone())
    }

    /// The value of a key; null if there is none.
    pub fn at(&self, key: &str) -> &Value {
        let Value::Object(pairs) = self else {
            return &Value::Null;
        };
        let found = pairs.iter().find(|(name, _)| name == key);
        found.map_or(&Value::Null, |(_, value)| value)
    }

    /// A number that counts something.
    pub fn count(&self) -> Option<u64> {
        match self {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list.
    pub fn elements(&self) -> &[Value] {
        match self {
            Value::List(elements) => elements,
            _ => &[],
        }
    }

    /// The keys and values of an object.
    pub fn pairs(&self) -> &[(String, Value)] {
        match self {
            Value::Object(pairs) => pairs,
            _ => &[],
        }
    }

    /// On one line.
    pub fn json(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Boolean(boolean) => boolean.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) => json::quoted(text),
            Value::List(elements) => {
                let elements: Vec<_> = elements.iter().map(Value::json).collect();
                format!("[{}]", elements.join(","))
            }
            Value::Object(pairs) => {
                let pairs = pairs
                    .iter()
                    .map(|(key, value)| format!("{}:{}", json::quoted(key), value.json()));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
            }
        }
    }
}

/// No memory is taken for elements that only have been announced.
fn read(term: &mut Reader<'_>, depth: usize, left: &mut usize) -> Result<Value, Malformed> {
    *left = left.checked_sub(1).ok_or(Malformed::Invalid("length"))?;
    if depth > MAX_DEPTH {
        return Err(Malformed::Invalid("depth"));
    }
    Ok(match term.item()? {
        Item::Integer(number) => Value::Number(number.into()),
        Item::Big {
            negative,
            magnitude,
        } => Value::Number(number(negative, magnitude)?),
        Item::Atom(name) => match name.as_ref() {
            "true" => Value::Boolean(true),
            "false" => Value::Boolean(false),
            "null" | "nil" | "undefined" => Value::Null,
            _ => Value::Text(name.into()),
        },
        Item::Binary(bytes) => Value::Text(String::from_utf8_lossy(bytes).into()),
        Item::Nil => Value::List(Vec::new()),
        Item::Bytes(bytes) => {
            let numbers = bytes.iter().map(|&byte| Value::Number(byte.into()));
            Value::List(numbers.collect())
        }
        Item::Map(size) => {
            let mut pairs = Vec::new();
            for _ in 0..size {
                pairs.push(pair(term, depth, left)?);
            }
            Value::Object(pairs)
        }
        Item::List(length) => {
            let value = list(length, term, depth, left)?;
            match term.item()? {
                Item::Nil => value,
                _ => return Err(Malformed::Invalid("tail")),
            }
        }
        _ => return Err(Malformed::Invalid("value")),
    })
}

fn list(
    length: usize,
    term: &mut Reader<'_>,
    depth: usize,
    left: &mut usize,
) -> Result<Value, Malformed> {
    let is_object = matches!(term.clone().item()?, Item::Tuple(2));
    if is_object {
        let mut pairs = Vec::new();
        for _ in 0..length {
            term.tuple("pair")?;
            pairs.push(pair(term, depth, left)?);
        }
        return Ok(Value::Object(pairs));
    }
    let mut elements = Vec::new();
    for _ in 0..length {
        elements.push(read(term, depth + 1, left)?);
    }
    Ok(Value::List(elements))
}

fn pair(
    term: &mut Reader<'_>,
    depth: usize,
    left: &mut usize,
) -> Result<(String, Value), Malformed> {
    let key = term.atom("key")?.into();
    Ok((key, read(term, depth + 1, left)?))
}

/// The bytes of its absolute value come least significant first.
fn number(negative: bool, magnitude: &[u8]) -> Result<i64, Malformed> {
    let mut bytes = [0; 16];
    let room = bytes.get_mut(..magnitude.len());
    room.ok_or(Malformed::Invalid("integer"))?
        .copy_from_slice(magnitude);
    let absolute = i128::from_le_bytes(bytes);
    let number = if negative { -absolute } else { absolute };
    i64::try_from(number).map_err(|_| Malformed::Invalid("integer"))
}
