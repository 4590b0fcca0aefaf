//! Numbers to give out: slots of a join table, lines of a page, producers of an mpsc ring.

use std::collections::BTreeSet;

/// Numbers below a limit. A number that was given back is given out again as late as possible.
#[derive(Debug)]
pub(crate) struct Slots {
    used: BTreeSet<u32>,
    next: u32,
    limit: u32,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: BTreeSet::new(), next: 0, limit: u32::try_from(limit).unwrap_or(u32::MAX) }
    }

    /// The next free number.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let number = (self.next..self.limit).chain(0..self.next).find(|number| !self.used.contains(number))?;
        self.used.insert(number);
        self.next = (number + 1) % self.limit;
        Some(number)
    }

    /// A number that was given out by a former driver. `false` if it cannot be.
    pub(crate) fn take_this(&mut self, number: u32) -> bool {
        number < self.limit && self.used.insert(number)
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        self.used.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_late_as_possible() {
        let mut slots = Slots::new(3);
        assert_eq!([slots.take(), slots.take()], [Some(0), Some(1)]);
        slots.give_back(0);
        assert_eq!([slots.take(), slots.take(), slots.take()], [Some(2), Some(0), None]);
        assert!(!slots.take_this(3) && !slots.take_this(1));
        slots.give_back(1);
        assert!(slots.take_this(1));
    }
}
