//! The two ends of flow control, by the rule of [`protocol`](crate::port::protocol). No I/O.
//!
//! *A sender has at most a window of bytes of a connection sent and not acknowledged. The receiver
//! acknowledges bytes when it has passed them on, at the latest when a quarter of the window waits
//! for its acknowledgement.*

/// The other side violated the rule of flow control. Nothing that it sends afterwards can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleBroken;

/// The sender's end of a window.
#[derive(Debug)]
pub struct SendWindow {
    /// `unacknowledged <= size`
    unacknowledged: u32,
    size: u32,
}

impl SendWindow {
    /// A window of `size` bytes, all of which may be sent.
    pub fn new(size: u32) -> Self {
        SendWindow {
            unacknowledged: 0,
            size,
        }
    }

    /// Number of bytes that may be sent now.
    pub fn available(&self) -> u32 {
        self.size - self.unacknowledged
    }

    /// Most bytes that may be sent and not acknowledged.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Number of bytes that were sent and not acknowledged.
    pub fn unacknowledged(&self) -> u32 {
        self.unacknowledged
    }

    /// Records that `count` bytes were sent.
    ///
    /// # Panics
    /// If `count` exceeds [`available`](Self::available).
    pub fn sent(&mut self, count: u32) {
        assert!(count <= self.available());
        self.unacknowledged += count;
    }

    /// Records that the receiver acknowledged `count` bytes.
    ///
    /// # Errors
    /// If that is more than was sent and not acknowledged.
    pub fn acknowledged(&mut self, count: u32) -> Result<(), RuleBroken> {
        self.unacknowledged = self.unacknowledged.checked_sub(count).ok_or(RuleBroken)?;
        Ok(())
    }

    /// Enlarges the window to `size` bytes; it never shrinks.
    pub fn widen(&mut self, size: u32) {
        self.size = self.size.max(size);
    }
}

/// The receiver's end of a window.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// Bytes received and not acknowledged; `passed_on <= unacknowledged <= size`.
    unacknowledged: u32,
    passed_on: u32,
    size: u32,
}

impl ReceiveWindow {
    /// A window of `size` bytes, none of which has been received.
    pub fn new(size: u32) -> Self {
        ReceiveWindow {
            unacknowledged: 0,
            passed_on: 0,
            size,
        }
    }

    /// True if the sender may send `count` more bytes.
    pub fn admits(&self, count: usize) -> bool {
        count <= (self.size - self.unacknowledged) as usize
    }

    /// Records that `count` bytes were received.
    ///
    /// # Errors
    /// If they exceed the window.
    pub fn received(&mut self, count: usize) -> Result<(), RuleBroken> {
        if !self.admits(count) {
            return Err(RuleBroken);
        }
        self.unacknowledged += count as u32;
        Ok(())
    }

    /// Records that `count` of the received bytes were passed on.
    ///
    /// # Panics
    /// If that is more than was received and not passed on.
    pub fn passed_on(&mut self, count: usize) {
        assert!(count <= (self.unacknowledged - self.passed_on) as usize);
        self.passed_on += count as u32;
    }

    /// The number of bytes to acknowledge now, if an acknowledgement is due. They count as acknowledged.
    pub fn take_acknowledgement(&mut self) -> Option<u32> {
        if self.passed_on < self.size / 4 {
            return None;
        }
        let count = std::mem::take(&mut self.passed_on);
        self.unacknowledged -= count;
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_stops_at_exactly_a_window() {
        let mut window = SendWindow::new(100);
        window.sent(99);
        assert_eq!(window.available(), 1);
        window.sent(1);
        assert_eq!(window.available(), 0);
        assert_eq!(window.acknowledged(1), Ok(()));
        assert_eq!(window.available(), 1);
    }

    #[test]
    fn sender_rejects_an_acknowledgement_of_bytes_it_never_sent() {
        let mut window = SendWindow::new(100);
        window.sent(10);
        assert_eq!(window.acknowledged(11), Err(RuleBroken));
        assert_eq!(window.acknowledged(10), Ok(()));
        assert_eq!(window.acknowledged(1), Err(RuleBroken));
    }

    #[test]
    fn sender_keeps_its_count_when_the_window_widens() {
        let mut window = SendWindow::new(10);
        window.sent(10);
        window.widen(100);
        assert_eq!(window.available(), 90);
        window.widen(5);
        assert_eq!(window.available(), 90);
    }

    #[test]
    fn receiver_accepts_exactly_a_window() {
        let mut window = ReceiveWindow::new(100);
        assert_eq!(window.received(101), Err(RuleBroken));
        assert_eq!(window.received(100), Ok(()));
        assert_eq!(window.received(1), Err(RuleBroken));
    }

    #[test]
    fn receiver_acknowledges_at_a_quarter_and_not_before() {
        let mut window = ReceiveWindow::new(100);
        assert_eq!(window.received(100), Ok(()));
        window.passed_on(24);
        assert_eq!(window.take_acknowledgement(), None);
        window.passed_on(1);
        assert_eq!(window.take_acknowledgement(), Some(25));
        assert_eq!(window.take_acknowledgement(), None);
        assert_eq!(window.received(25), Ok(()));
        assert_eq!(window.received(1), Err(RuleBroken));
    }

    #[test]
    fn a_full_window_is_never_stuck() {
        // When everything has been passed on, less than a quarter is unacknowledged.
        let mut sender = SendWindow::new(7);
        let mut receiver = ReceiveWindow::new(7);
        for _ in 0..100 {
            let count = sender.available();
            assert!(count > 0);
            sender.sent(count);
            assert_eq!(receiver.received(count as usize), Ok(()));
            receiver.passed_on(count as usize);
            if let Some(count) = receiver.take_acknowledgement() {
                assert_eq!(sender.acknowledged(count), Ok(()));
            }
        }
    }
}
