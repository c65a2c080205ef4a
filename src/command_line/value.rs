//! The answers of a node to our own questions, in memory. `status` and `peers` format them for people or print
//! them as JSON. Results of the user's calls can be large, and are translated by [`crate::json`]. Pure.
//!
//! Keys keep their order. So the node sends an object as a list of pairs, because a map has no order.

use crate::etf::{Item, Malformed, Reader};
use crate::json;

/// Deepest nesting of lists and objects. No answer reaches it.
const MAX_DEPTH: usize = 8;

/// Most values in an answer. This is enough for a hundred thousand connections.
const MAX_VALUES: usize = 2_000_000;

/// An answer, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A value that is not known or does not apply.
    Null,
    /// `true` or `false`.
    Boolean(bool),
    /// An integer.
    Number(i64),
    /// A binary or an atom.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// Keys and values, in order.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Reads a term that consists of integers, binaries, atoms, lists, maps with atoms as keys, and lists of pairs
    /// whose first elements are atoms.
    ///
    /// # Errors
    /// If it contains anything else, or exceeds a limit.
    pub fn read(term: &mut Reader<'_>) -> Result<Value, Malformed> {
        read(term, 0, &mut MAX_VALUES.clone())
    }

    /// The value of a key; null if the key does not exist.
    pub fn at(&self, key: &str) -> &Value {
        let Value::Object(pairs) = self else {
            return &Value::Null;
        };
        let found = pairs.iter().find(|(name, _)| name == key);
        found.map_or(&Value::Null, |(_, value)| value)
    }

    /// The value as a number that is not negative.
    pub fn count(&self) -> Option<u64> {
        match self {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The value as a text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list; none for other values.
    pub fn elements(&self) -> &[Value] {
        match self {
            Value::List(elements) => elements,
            _ => &[],
        }
    }

    /// The keys and values of an object; none for other values.
    pub fn pairs(&self) -> &[(String, Value)] {
        match self {
            Value::Object(pairs) => pairs,
            _ => &[],
        }
    }

    /// The value as JSON, on one line.
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

/// Allocates no memory for elements that were announced but have not arrived.
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

/// Converts an integer whose absolute value is given in bytes, least significant first.
fn number(negative: bool, magnitude: &[u8]) -> Result<i64, Malformed> {
    let mut bytes = [0; 16];
    let room = bytes.get_mut(..magnitude.len());
    room.ok_or(Malformed::Invalid("integer"))?
        .copy_from_slice(magnitude);
    let absolute = i128::from_le_bytes(bytes);
    let number = if negative { -absolute } else { absolute };
    i64::try_from(number).map_err(|_| Malformed::Invalid("integer"))
}
