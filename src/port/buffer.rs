//! Bytes between one who appends and one who takes: the one byte cursor of the port. No I/O.

/// A queue of bytes that is always one slice.
#[derive(Debug)]
pub struct Buffer {
    /// `bytes[start..end]` waits; `start <= end <= bytes.len()`. What stands behind `end` is scratch
    /// space.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Nothing waits; there is room for `capacity` bytes before the buffer has to grow.
    pub fn with_capacity(capacity: usize) -> Buffer {
        Buffer {
            bytes: vec![0; capacity],
            start: 0,
            end: 0,
        }
    }

    /// What waits.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Number of the bytes that wait.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room for exactly `count` bytes behind those that wait. They begin to wait with
    /// [`filled`](Self::filled). What waits is moved, or the buffer grows, if that is necessary.
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

    /// The first `count` bytes of [`space`](Self::space) have been filled, and wait.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end);
        self.end += count;
    }

    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
        self.filled(bytes.len());
    }

    /// Takes the first `count` bytes out.
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
        // Moves the c.
        buffer.append(b"def");
        assert_eq!(buffer.bytes(), b"cdef");
        // Grows.
        buffer.append(b"g");
        assert_eq!(buffer.take(5), b"cdefg");
        assert!(buffer.is_empty());
    }

    #[test]
    fn space_waits_only_when_it_is_filled() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.space(4).copy_from_slice(b"abcd");
        assert_eq!(buffer.len(), 0);
        buffer.filled(2);
        assert_eq!(buffer.bytes(), b"ab");
    }

    #[test]
    fn space_is_what_was_asked_for() {
        let mut buffer = Buffer::with_capacity(8);
        for count in [3, 8, 20] {
            assert_eq!(buffer.space(count).len(), count);
        }
    }
}
