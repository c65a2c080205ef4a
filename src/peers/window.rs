//! The two ends of flow control, as [`protocol`](crate::protocol) words it. Pure.
//!
//! *A sender has at most a window of bytes of a connection sent and not acknowledged. The receiver
//! acknowledges bytes when it has passed them on, at the latest when a quarter of the window waits
//! for its acknowledgement.*

/// The other side broke the rule; what it sends next cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleBroken;

/// The sender's end.
#[derive(Debug)]
pub struct SendWindow {
    /// `unacknowledged <= size`
    unacknowledged: u32,
    size: u32,
}

impl SendWindow {
    /// Nothing sent yet.
    pub fn new(size: u32) -> Self {
        SendWindow {
            unacknowledged: 0,
            size,
        }
    }

    /// Bytes that may be sent now.
    pub fn available(&self) -> u32 {
        self.size - self.unacknowledged
    }

    /// Bytes that were sent and not acknowledged.
    pub fn unacknowledged(&self) -> u32 {
        self.unacknowledged
    }

    /// `count` bytes, [`available`](Self::available) at most, are on their way.
    pub fn sent(&mut self, count: u32) {
        assert!(count <= self.available());
        self.unacknowledged += count;
    }

    /// The receiver has passed on `count` bytes.
    pub fn acknowledged(&mut self, count: u32) -> Result<(), RuleBroken> {
        self.unacknowledged = self.unacknowledged.checked_sub(count).ok_or(RuleBroken)?;
        Ok(())
    }

    /// The window is larger from now on.
    pub fn widen(&mut self, size: u32) {
        self.size = self.size.max(size);
    }
}

/// The receiver's end.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// Received and not acknowledged; `passed_on <= unacknowledged <= size`.
    unacknowledged: u32,
    passed_on: u32,
    size: u32,
}

impl ReceiveWindow {
    /// Nothing received yet.
    pub fn new(size: u32) -> Self {
        ReceiveWindow {
            unacknowledged: 0,
            passed_on: 0,
            size,
        }
    }

    /// True if `count` bytes may come in.
    pub fn admits(&self, count: usize) -> bool {
        count <= (self.size - self.unacknowledged) as usize
    }

    /// `count` bytes came in.
    pub fn received(&mut self, count: usize) -> Result<(), RuleBroken> {
        if !self.admits(count) {
            return Err(RuleBroken);
        }
        self.unacknowledged += count as u32;
        Ok(())
    }

    /// `count` of them went on.
    pub fn passed_on(&mut self, count: usize) {
        assert!(count <= (self.unacknowledged - self.passed_on) as usize);
        self.passed_on += count as u32;
    }

    /// What to acknowledge now, if it is time to.
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
    fn sender_rejects_acknowledgement_of_what_it_never_sent() {
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
    fn receiver_takes_exactly_a_window() {
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
        // With everything passed on, less than a quarter can be unacknowledged.
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
