//! The byte buffer of the port: bytes are appended at the end and taken from the front. No I/O.

/// A queue of bytes that is contiguous in memory.
#[derive(Debug)]
pub struct Buffer {
    /// `bytes[start..end]` is the content; `start <= end <= bytes.len()`. The rest is scratch space.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty buffer with room for `capacity` bytes before it has to grow.
    pub fn with_capacity(capacity: usize) -> Buffer {
        Buffer {
            bytes: vec![0; capacity],
            start: 0,
            end: 0,
        }
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Number of bytes in the buffer.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// True if the buffer is empty.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Scratch space for exactly `count` bytes after the content. [`filled`](Self::filled) makes them part
    /// of it. If necessary, the content is moved or the buffer grows.
    pub fn space(&mut self, count: usize) -> &mut [u8] {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        if self.bytes.len() - self.end < count {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let needed = self.end + count;
            if needed > self.bytes.len() {
                self.bytes.resize(needed, 0);
            }
        }
        &mut self.bytes[self.end..self.end + count]
    }

    /// Appends the first `count` bytes of [`space`](Self::space) to the content.
    ///
    /// # Panics
    /// If `count` exceeds the space.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end);
        self.end += count;
    }

    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
        self.filled(bytes.len());
    }

    /// Removes and returns the first `count` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn take(&mut self, count: usize) -> &[u8] {
        assert!(count <= self.len());
        let start = self.start;
        self.start += count;
        &self.bytes[start..self.start]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.append(b"abc");
        assert_eq!(buffer.take(2), b"ab");
        // This moves the "c" to the start.
        buffer.append(b"def");
        assert_eq!(buffer.bytes(), b"cdef");
        // This makes the buffer grow.
        buffer.append(b"g");
        assert_eq!(buffer.take(5), b"cdefg");
        assert!(buffer.is_empty());
    }

    #[test]
    fn space_becomes_content_only_once_filled() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.space(4).copy_from_slice(b"abcd");
        assert_eq!(buffer.len(), 0);
        buffer.filled(2);
        assert_eq!(buffer.bytes(), b"ab");
    }

    #[test]
    fn space_is_as_long_as_requested() {
        let mut buffer = Buffer::with_capacity(8);
        for count in [3, 8, 20] {
            assert_eq!(buffer.space(count).len(), count);
        }
    }
}
