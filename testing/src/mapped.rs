//! What this process has mapped of ringbus, as the kernel tells it.

use std::fs;

/// A mapping of one of ringbus's objects.
#[derive(Debug)]
pub struct Mapped {
    /// Where it begins.
    pub address: usize,
    /// Its bytes.
    pub length: usize,
    /// As in `/proc/self/maps`: `rw-s` for example.
    pub permissions: String,
    /// Where in the object it begins.
    pub offset: usize,
    /// The object's name, from `/memfd:ringbus-` on.
    pub object: String,
}

impl Mapped {
    /// Whether this process may write it.
    pub fn is_writable(&self) -> bool {
        self.permissions.contains('w')
    }

    /// Whether it is a ring.
    pub fn is_ring(&self) -> bool {
        self.object.starts_with("/memfd:ringbus-ring")
    }

    /// Whether it is a subscription's page.
    pub fn is_subscription_page(&self) -> bool {
        self.object.starts_with("/memfd:ringbus-page")
    }

    /// Whether it is what the subscriptions of a publication share.
    pub fn is_sleep_page(&self) -> bool {
        self.object.starts_with("/memfd:ringbus-sleeps")
    }
}

/// All mappings of rings and pages.
pub fn mappings() -> Vec<Mapped> {
    let maps = fs::read_to_string("/proc/self/maps").expect("it is mounted");
    let number = |text: &str| usize::from_str_radix(text, 16).expect("a number");
    let mapping = |line: &str| {
        let mut words = line.split_whitespace();
        let (range, permissions, offset) = (words.next()?, words.next()?, words.next()?);
        let (start, end) = range.split_once('-')?;
        let object = line[line.find("/memfd:ringbus-")?..].to_owned();
        let (address, length) = (number(start), number(end) - number(start));
        Some(Mapped { address, length, permissions: permissions.to_owned(), offset: number(offset), object })
    };
    maps.lines().filter_map(mapping).collect()
}
