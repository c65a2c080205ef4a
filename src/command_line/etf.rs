//! The external term format of erl_ext_dist, as far as a client needs it: a reader of every term
//! that a node sends, one item at a time and without copying, and a writer of what it is sent. Pure.
//!
//! A node that knows the cookie may still send anything, so the reader allocates nothing by a length
//! that it has read, and does not recurse. That, and results of many megabytes, are why it is not one
//! of the crates that decode to a tree: those take memory for as many elements as a term claims to
//! have, and stack for as deep as it is nested.

use std::borrow::Cow;
use std::fmt;
use std::str;

/// Stands before every term.
const VERSION: u8 = 131;

const NATIVE_RECORD: u8 = 67;
const NEW_FLOAT: u8 = 70;
const BIT_BINARY: u8 = 77;
const NEW_PID: u8 = 88;
const NEW_PORT: u8 = 89;
const NEWER_REFERENCE: u8 = 90;
const SMALL_INTEGER: u8 = 97;
const INTEGER: u8 = 98;
const ATOM: u8 = 100;
const SMALL_TUPLE: u8 = 104;
const LARGE_TUPLE: u8 = 105;
const NIL: u8 = 106;
const STRING: u8 = 107;
const LIST: u8 = 108;
const BINARY: u8 = 109;
const SMALL_BIG: u8 = 110;
const LARGE_BIG: u8 = 111;
const NEW_FUN: u8 = 112;
const EXPORT: u8 = 113;
const SMALL_ATOM: u8 = 115;
const MAP: u8 = 116;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;
const V4_PORT: u8 = 120;

/// Words of the longest reference (version 4 of node containers).
const MAX_REFERENCE_WORDS: usize = 5;

/// A term without elements, or the head of one, whose elements are the next items.
#[derive(Debug, Clone, PartialEq)]
pub enum Item<'a> {
    /// An integer of at most 32 bits.
    Integer(i32),
    /// Any other integer.
    Big {
        /// Below zero.
        negative: bool,
        /// Bytes of its absolute value, least significant first.
        magnitude: &'a [u8],
    },
    /// Never infinite, never not a number.
    Float(f64),
    /// An atom.
    Atom(Cow<'a, str>),
    /// A binary.
    Binary(&'a [u8]),
    /// A bitstring whose last byte has only so many bits, from 1 to 7, its highest ones.
    Bits(&'a [u8], u8),
    /// The empty list.
    Nil,
    /// A list of small integers.
    Bytes(&'a [u8]),
    /// A list: so many elements, and then its tail.
    List(usize),
    /// A tuple of so many elements.
    Tuple(usize),
    /// A map of so many keys, each followed by its value.
    Map(usize),
    /// A native record of OTP 29: a value follows for each of these fields.
    Record(Vec<Cow<'a, str>>),
    /// A process.
    Pid {
        /// Number and serial number.
        id: (u32, u32),
    },
    /// A port.
    Port {
        /// Its number.
        id: u64,
    },
    /// A reference.
    Reference {
        /// Its words, least significant first.
        words: Vec<u32>,
    },
    /// `fun module:function/arity`.
    Export {
        /// Of the function.
        module: Cow<'a, str>,
        /// Its name.
        function: Cow<'a, str>,
        /// Its number of arguments.
        arity: i32,
    },
    /// A fun that is part of a module.
    Fun {
        /// Of the fun.
        module: Cow<'a, str>,
        /// Which of the module's funs.
        index: i32,
        /// Of the module's code.
        unique: i32,
    },
}

/// What is wrong with bytes that should have been a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// They end within this.
    Truncated(&'static str),
    /// No term begins with this byte.
    Tag(u8),
    /// This has a value that it cannot have.
    Invalid(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Truncated(field) => write!(f, "a term ends within its {field}"),
            Malformed::Tag(tag) => write!(f, "a term has the unknown tag {tag}"),
            Malformed::Invalid(field) => write!(f, "a term has an invalid {field}"),
        }
    }
}

type Result<T> = std::result::Result<T, Malformed>;

/// Reads terms from bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The bytes begin with the version, as every term on a connection does.
    pub fn new(bytes: &'a [u8]) -> Result<Reader<'a>> {
        let mut reader = Reader(bytes);
        match reader.u8("version")? {
            VERSION => Ok(reader),
            _ => Err(Malformed::Invalid("version")),
        }
    }

    /// The bytes are a part of a term, as [`Reader::rest`] is.
    pub fn within(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next term, or the head of one.
    pub fn item(&mut self) -> Result<Item<'a>> {
        Ok(match self.u8("tag")? {
            SMALL_INTEGER => Item::Integer(self.u8("integer")?.into()),
            INTEGER => Item::Integer(i32::from_be_bytes(self.array("integer")?)),
            SMALL_BIG => {
                let length = self.u8("length")?;
                self.big(length.into())?
            }
            LARGE_BIG => {
                let length = self.length()?;
                self.big(length)?
            }
            NEW_FLOAT => match f64::from_be_bytes(self.array("float")?) {
                float if float.is_finite() => Item::Float(float),
                _ => return Err(Malformed::Invalid("float")),
            },
            tag @ (ATOM | SMALL_ATOM | ATOM_UTF8 | SMALL_ATOM_UTF8) => {
                Item::Atom(self.atom_of(tag)?)
            }
            BINARY => {
                let length = self.length()?;
                Item::Binary(self.take(length, "binary")?)
            }
            BIT_BINARY => {
                let length = self.length()?;
                let bits = self.u8("number of bits")?;
                match (self.take(length, "bitstring")?, bits) {
                    (bytes, 8) => Item::Binary(bytes),
                    (bytes @ [_, ..], 1..=7) => Item::Bits(bytes, bits),
                    _ => return Err(Malformed::Invalid("number of bits")),
                }
            }
            NIL => Item::Nil,
            STRING => {
                let length = self.u16("length")?;
                Item::Bytes(self.take(length.into(), "string")?)
            }
            LIST => Item::List(self.length()?),
            SMALL_TUPLE => Item::Tuple(self.u8("arity")?.into()),
            LARGE_TUPLE => Item::Tuple(self.length()?),
            MAP => Item::Map(self.length()?),
            NATIVE_RECORD => {
                let length = self.length()?;
                self.u8("flags")?;
                self.atom("module")?;
                self.atom("name")?;
                // Not by `length`: the vector grows as fields are there.
                let mut fields = Vec::new();
                for _ in 0..length {
                    fields.push(self.atom("field")?);
                }
                Item::Record(fields)
            }
            NEW_PID => {
                self.atom("node")?;
                let id = (self.u32("pid")?, self.u32("pid")?);
                self.u32("creation")?;
                Item::Pid { id }
            }
            tag @ (NEW_PORT | V4_PORT) => {
                self.atom("node")?;
                let id = match tag {
                    NEW_PORT => self.u32("port")?.into(),
                    _ => u64::from_be_bytes(self.array("port")?),
                };
                self.u32("creation")?;
                Item::Port { id }
            }
            NEWER_REFERENCE => {
                let length: usize = self.u16("length")?.into();
                if length > MAX_REFERENCE_WORDS {
                    return Err(Malformed::Invalid("length"));
                }
                self.atom("node")?;
                self.u32("creation")?;
                let words = (0..length).map(|_| self.u32("reference"));
                Item::Reference {
                    words: words.collect::<Result<_>>()?,
                }
            }
            EXPORT => Item::Export {
                module: self.atom("module")?,
                function: self.atom("function")?,
                arity: self.integer("arity")?,
            },
            NEW_FUN => self.fun()?,
            tag => return Err(Malformed::Tag(tag)),
        })
    }

    /// The next term, which has to be an atom.
    pub fn atom(&mut self, field: &'static str) -> Result<Cow<'a, str>> {
        match self.item()? {
            Item::Atom(name) => Ok(name),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// The next term, which has to be an integer of at most 32 bits.
    pub fn integer(&mut self, field: &'static str) -> Result<i32> {
        match self.item()? {
            Item::Integer(integer) => Ok(integer),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// The next term, which has to be a binary.
    pub fn binary(&mut self, field: &'static str) -> Result<&'a [u8]> {
        match self.item()? {
            Item::Binary(bytes) => Ok(bytes),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// The head of the next term, which has to be a tuple; its elements follow.
    pub fn tuple(&mut self, field: &'static str) -> Result<usize> {
        match self.item()? {
            Item::Tuple(arity) => Ok(arity),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// Passes over the next term with all its elements.
    pub fn skip(&mut self) -> Result<()> {
        let mut left: usize = 1;
        while left > 0 {
            // No overflow: a length has 32 bits, and is followed by as many bytes or the end.
            left = left - 1
                + match self.item()? {
                    Item::List(length) => length + 1,
                    Item::Tuple(arity) => arity,
                    Item::Map(size) => 2 * size,
                    Item::Record(fields) => fields.len(),
                    _ => 0,
                };
        }
        Ok(())
    }

    fn big(&mut self, length: usize) -> Result<Item<'a>> {
        let negative = match self.u8("sign")? {
            0 => false,
            1 => true,
            _ => return Err(Malformed::Invalid("sign")),
        };
        let magnitude = self.take(length, "integer")?;
        Ok(Item::Big {
            negative,
            magnitude,
        })
    }

    fn atom_of(&mut self, tag: u8) -> Result<Cow<'a, str>> {
        let length = match tag {
            SMALL_ATOM | SMALL_ATOM_UTF8 => self.u8("length")?.into(),
            _ => self.u16("length")?.into(),
        };
        let name = self.take(length, "atom")?;
        match tag {
            ATOM | SMALL_ATOM => Ok(name.iter().map(|&latin1| char::from(latin1)).collect()),
            _ => str::from_utf8(name)
                .map(Cow::Borrowed)
                .map_err(|_| Malformed::Invalid("atom")),
        }
    }

    /// Its size says where it ends, whatever its environment is.
    fn fun(&mut self) -> Result<Item<'a>> {
        const SIZE: usize = 4;
        const ARITY_UNIQ_INDEX_FREE: usize = 1 + 16 + 4 + 4;
        let size = self.length()?;
        let body = size.checked_sub(SIZE).ok_or(Malformed::Invalid("size"))?;
        let mut body = Reader(self.take(body, "fun")?);
        body.take(ARITY_UNIQ_INDEX_FREE, "fun")?;
        Ok(Item::Fun {
            module: body.atom("module")?,
            index: body.integer("index")?,
            unique: body.integer("unique value")?,
        })
    }

    fn length(&mut self) -> Result<usize> {
        Ok(self.u32("length")? as usize)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8> {
        let [byte] = self.array(field)?;
        Ok(byte)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        let (array, rest) = self
            .0
            .split_first_chunk()
            .ok_or(Malformed::Truncated(field))?;
        self.0 = rest;
        Ok(*array)
    }

    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(Malformed::Truncated(field))?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Appends terms to bytes. The elements of a tuple or a list are the terms written after it.
#[derive(Debug)]
pub struct Writer<'a>(&'a mut Vec<u8>);

/// A process or a reference of ours belongs to the name that the node has given us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Our node name.
    pub node: String,
    /// Tells us from earlier nodes of this name.
    pub creation: u32,
}

impl<'a> Writer<'a> {
    /// Begins a term.
    pub fn new(bytes: &'a mut Vec<u8>) -> Writer<'a> {
        bytes.push(VERSION);
        Writer(bytes)
    }

    /// An atom, of 255 characters at most.
    pub fn atom(&mut self, name: &str) -> &mut Self {
        let length = u16::try_from(name.len()).expect("an atom of at most 255 characters");
        self.0.push(ATOM_UTF8);
        self.0.extend(length.to_be_bytes());
        self.0.extend(name.as_bytes());
        self
    }

    /// An integer.
    pub fn integer(&mut self, value: i32) -> &mut Self {
        self.0.push(INTEGER);
        self.0.extend(value.to_be_bytes());
        self
    }

    /// A binary of less than 4 GiB.
    pub fn binary(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.push(BINARY);
        self.length(bytes.len());
        self.0.extend(bytes);
        self
    }

    /// A list of the characters, as ASCII texts are sent by old functions.
    pub fn charlist(&mut self, text: &str) -> &mut Self {
        let length = u16::try_from(text.len()).expect("a short text");
        debug_assert!(text.is_ascii());
        self.0.push(STRING);
        self.0.extend(length.to_be_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    /// A tuple of the next terms.
    pub fn tuple(&mut self, arity: u8) -> &mut Self {
        self.0.extend([SMALL_TUPLE, arity]);
        self
    }

    /// A list of the next terms, and of [`Writer::nil`] after them.
    pub fn list(&mut self, length: usize) -> &mut Self {
        self.0.push(LIST);
        self.length(length);
        self
    }

    /// The empty list, or the end of a list.
    pub fn nil(&mut self) -> &mut Self {
        self.0.push(NIL);
        self
    }

    /// Our only process.
    pub fn pid(&mut self, of: &Identity) -> &mut Self {
        const ID: u32 = 1;
        const SERIAL: u32 = 0;
        self.0.push(NEW_PID);
        self.atom(&of.node);
        self.numbers(&[ID, SERIAL, of.creation])
    }

    /// The reference of our only request.
    pub fn reference(&mut self, of: &Identity) -> &mut Self {
        const WORDS: [u32; 3] = [1, 0, 0];
        self.0.push(NEWER_REFERENCE);
        self.0.extend((WORDS.len() as u16).to_be_bytes());
        self.atom(&of.node);
        self.numbers(&[of.creation]).numbers(&WORDS)
    }

    fn numbers(&mut self, numbers: &[u32]) -> &mut Self {
        self.0
            .extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
        self
    }

    fn length(&mut self, length: usize) {
        let length = u32::try_from(length).expect("a length of 32 bits");
        self.0.extend(length.to_be_bytes());
    }
}
