//! The external term format of erl_ext_dist, as far as a client needs it. The reader handles every term that a
//! node can send, one item at a time and without copying; the writer handles the terms that we send. Pure.
//!
//! A node that knows the cookie can still send anything, so the reader never allocates memory for a length that
//! it has read, and does not recurse. That, and results of many megabytes, are the reasons for not using a crate
//! that decodes to a tree: such a crate allocates memory for as many elements as a term claims to have, and uses
//! stack for every level of nesting.

use std::borrow::Cow;
use std::fmt;
use std::str;

/// First byte of every external term.
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

/// Most words in a reference (version 4 of node containers).
const MAX_REFERENCE_WORDS: usize = 5;

/// A term without elements, or the head of a term whose elements are the next items.
#[derive(Debug, Clone, PartialEq)]
pub enum Item<'a> {
    /// An integer of at most 32 bits.
    Integer(i32),
    /// Any other integer.
    Big {
        /// True if it is less than zero.
        negative: bool,
        /// The bytes of its absolute value, least significant first.
        magnitude: &'a [u8],
    },
    /// A finite float.
    Float(f64),
    /// An atom.
    Atom(Cow<'a, str>),
    /// A binary.
    Binary(&'a [u8]),
    /// A bitstring. Of its last byte, only this number of the highest bits are used, from 1 to 7.
    Bits(&'a [u8], u8),
    /// The empty list.
    Nil,
    /// A list of integers from 0 to 255.
    Bytes(&'a [u8]),
    /// A list with this number of elements, which are followed by its tail.
    List(usize),
    /// A tuple with this number of elements.
    Tuple(usize),
    /// A map with this number of keys, each of which is followed by its value.
    Map(usize),
    /// A native record of OTP 29, followed by a value for each field.
    Record {
        /// Number of fields.
        count: usize,
        /// The names of the fields, as atoms.
        fields: Reader<'a>,
    },
    /// A process.
    Pid {
        /// Its number and its serial number.
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
        /// The module of the function.
        module: Cow<'a, str>,
        /// The name of the function.
        function: Cow<'a, str>,
        /// The number of its arguments.
        arity: i32,
    },
    /// A fun that is part of a module.
    Fun {
        /// The module of the fun.
        module: Cow<'a, str>,
        /// The index of the fun in its module.
        index: i32,
        /// A hash of the module's code.
        unique: i32,
    },
}

/// The reason why bytes are not a valid term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// They end within this field.
    Truncated(&'static str),
    /// No term begins with this byte.
    Tag(u8),
    /// This field has an invalid value.
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
#[derive(Debug, Clone, PartialEq)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader for bytes that begin with the version, as all terms on a connection do.
    pub fn new(bytes: &'a [u8]) -> Result<Reader<'a>> {
        let mut reader = Reader(bytes);
        match reader.u8("version")? {
            VERSION => Ok(reader),
            _ => Err(Malformed::Invalid("version")),
        }
    }

    /// A reader for bytes from within a term, such as those of [`Reader::rest`].
    pub fn within(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// The bytes that have not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Reads the next term, or its head.
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
                let count = self.length()?;
                self.u8("flags")?;
                self.atom("module")?;
                self.atom("name")?;
                // Read twice instead of kept: a name takes two bytes here, and many more in a vector.
                let fields = self.clone();
                for _ in 0..count {
                    self.atom("field")?;
                }
                Item::Record { count, fields }
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

    /// Reads an atom. Any other term is an error.
    pub fn atom(&mut self, field: &'static str) -> Result<Cow<'a, str>> {
        match self.item()? {
            Item::Atom(name) => Ok(name),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// Reads an integer of at most 32 bits. Any other term is an error.
    pub fn integer(&mut self, field: &'static str) -> Result<i32> {
        match self.item()? {
            Item::Integer(integer) => Ok(integer),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// Reads a binary. Any other term is an error.
    pub fn binary(&mut self, field: &'static str) -> Result<&'a [u8]> {
        match self.item()? {
            Item::Binary(bytes) => Ok(bytes),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// Reads the head of a tuple, and returns the number of elements that follow. Any other term is an error.
    pub fn tuple(&mut self, field: &'static str) -> Result<usize> {
        match self.item()? {
            Item::Tuple(arity) => Ok(arity),
            _ => Err(Malformed::Invalid(field)),
        }
    }

    /// Skips the next term with all its elements.
    pub fn skip(&mut self) -> Result<()> {
        let mut left: usize = 1;
        while left > 0 {
            // This cannot overflow: a length has 32 bits, and is followed by at least as many bytes or by the end.
            left = left - 1
                + match self.item()? {
                    Item::List(length) => length + 1,
                    Item::Tuple(arity) => arity,
                    Item::Map(size) => 2 * size,
                    Item::Record { count, .. } => count,
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

    /// Reads a fun. Its size tells where it ends, so its environment need not be parsed.
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

/// Appends terms to bytes. The elements of a tuple or a list are the terms that are written after it.
#[derive(Debug)]
pub struct Writer<'a>(&'a mut Vec<u8>);

/// The identity of this command, which its pid and its reference contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name that the node has given us.
    pub node: String,
    /// Distinguishes us from earlier nodes of the same name.
    pub creation: u32,
}

impl<'a> Writer<'a> {
    /// Begins a term at the end of these bytes.
    pub fn new(bytes: &'a mut Vec<u8>) -> Writer<'a> {
        bytes.push(VERSION);
        Writer(bytes)
    }

    /// Writes an atom of at most 255 characters.
    pub fn atom(&mut self, name: &str) -> &mut Self {
        let length = u16::try_from(name.len()).expect("an atom of at most 255 characters");
        self.0.push(ATOM_UTF8);
        self.0.extend(length.to_be_bytes());
        self.0.extend(name.as_bytes());
        self
    }

    /// Writes an integer.
    pub fn integer(&mut self, value: i32) -> &mut Self {
        self.0.push(INTEGER);
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Writes a binary of less than 4 GiB.
    pub fn binary(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.push(BINARY);
        self.length(bytes.len());
        self.0.extend(bytes);
        self
    }

    /// Writes an ASCII text as a list of characters.
    pub fn charlist(&mut self, text: &str) -> &mut Self {
        let length = u16::try_from(text.len()).expect("a short text");
        debug_assert!(text.is_ascii());
        self.0.push(STRING);
        self.0.extend(length.to_be_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    /// Writes the head of a tuple, whose elements are the next terms.
    pub fn tuple(&mut self, arity: u8) -> &mut Self {
        self.0.extend([SMALL_TUPLE, arity]);
        self
    }

    /// Writes the head of a list, whose elements are the next terms. [`Writer::nil`] has to follow them.
    pub fn list(&mut self, length: usize) -> &mut Self {
        self.0.push(LIST);
        self.length(length);
        self
    }

    /// Writes the empty list, or the end of a list.
    pub fn nil(&mut self) -> &mut Self {
        self.0.push(NIL);
        self
    }

    /// Writes the pid of our only process.
    pub fn pid(&mut self, of: &Identity) -> &mut Self {
        const ID: u32 = 1;
        const SERIAL: u32 = 0;
        self.0.push(NEW_PID);
        self.atom(&of.node);
        self.numbers(&[ID, SERIAL, of.creation])
    }

    /// Writes the reference of our only request.
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
