//! The properties of a channel: fixed by whoever creates it, compared when others open it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::memory::memfd::{HugePages, page_size};
use crate::ring::{mpsc, single};

/// Who meets whom on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Kind {
    /// One publication, one subscription.
    Spsc,
    /// Many publications, one subscription, one total order.
    Mpsc,
    /// Many publications, many subscriptions; order is kept per publication.
    #[default]
    Broadcast,
}

/// What a publication does when a subscription falls a whole ring behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Overflow {
    /// It is told so (back pressure), and nothing is lost.
    #[default]
    Block,
    /// It overwrites the oldest messages, and the subscription is told exactly how many it lost.
    Lossy,
}

impl Overflow {
    pub(crate) fn overwrite(self) -> single::Overwrite {
        match self {
            Self::Block => single::Overwrite::Never,
            Self::Lossy => single::Overwrite::Oldest,
        }
    }
}

macro_rules! names {
    ($type:ident, $what:literal: $($variant:ident = $name:literal),*) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),* })
            }
        }

        impl FromStr for $type {
            type Err = InvalidChannel;

            fn from_str(name: &str) -> Result<Self, InvalidChannel> {
                match name {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(InvalidChannel::Unknown { what: $what.to_owned(), value: name.to_owned(), known: [$($name),*].join(", ") }),
                }
            }
        }
    };
}

names!(Kind, "kind": Spsc = "spsc", Mpsc = "mpsc", Broadcast = "broadcast");
names!(Overflow, "overflow": Block = "block", Lossy = "lossy");

/// A channel's name: segments of `[A-Za-z0-9._-]` joined by `/`, 255 bytes at most.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelName(String);

impl ChannelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChannelName {
    type Err = InvalidChannel;

    fn from_str(name: &str) -> Result<Self, InvalidChannel> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_segment = |segment: &str| !segment.is_empty() && segment.bytes().all(is_allowed);
        if name.len() > 255 || !name.split('/').all(is_segment) {
            // What was asked for may be long or full of control characters.
            let shown: String = name.chars().take(300).collect::<String>().escape_debug().to_string();
            return Err(InvalidChannel::Name { name: shown });
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for ChannelName {
    type Error = InvalidChannel;

    fn try_from(name: String) -> Result<Self, InvalidChannel> {
        name.parse()
    }
}

impl From<ChannelName> for String {
    fn from(name: ChannelName) -> Self {
        name.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who may do something on a channel, besides its creator's uid.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grant {
    /// User ids.
    pub uids: Vec<u32>,
    /// Group ids, primary or supplementary.
    pub gids: Vec<u32>,
}

impl Grant {
    fn permits(&self, uid: u32, groups: &[u32]) -> bool {
        self.uids.contains(&uid) || groups.iter().any(|gid| self.gids.contains(gid))
    }

    fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

/// Who may publish and who may subscribe, besides the creator's uid.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Access {
    /// Who may publish.
    pub publish: Grant,
    /// Who may subscribe.
    pub subscribe: Grant,
}

/// What a client wants of a channel: `None` is "whatever it has", and the default if it does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Properties {
    /// See [`Kind`]; default `broadcast`.
    pub kind: Option<Kind>,
    /// See [`Overflow`]; default `block`.
    pub overflow: Option<Overflow>,
    /// Bytes of data in a ring: a power of two from a page to 4 GiB; default 4 MiB.
    pub capacity: Option<u64>,
    /// See [`Access`]; default nobody but the creator's uid.
    pub access: Option<Access>,
    /// Which pages hold the data; default pages of the usual size.
    pub huge_pages: Option<HugePages>,
    /// Touch all pages when attaching; default no.
    pub prefault: Option<bool>,
    /// `mlock` all pages when attaching; default no.
    pub lock: Option<bool>,
}

/// A channel, all said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSpec {
    /// Its name.
    pub name: ChannelName,
    /// Its kind.
    pub kind: Kind,
    /// What happens when a ring is full.
    pub overflow: Overflow,
    /// Bytes of data in a ring.
    pub capacity: u64,
    /// The uid that created it.
    pub owner: u32,
    /// Who else may use it.
    pub access: Access,
    /// Which pages hold the data.
    pub huge_pages: HugePages,
    /// Touch all pages when attaching.
    pub prefault: bool,
    /// `mlock` all pages when attaching.
    pub lock: bool,
}

/// Default of [`Properties::capacity`].
pub const DEFAULT_CAPACITY: u64 = 4 << 20;
/// Most bytes of data in a ring.
pub const MAX_CAPACITY: u64 = 4 << 30;

impl ChannelSpec {
    /// The channel that `owner` would create with these properties.
    ///
    /// # Errors
    ///
    /// [`InvalidChannel`] if no channel can be like that.
    pub fn new(name: ChannelName, owner: u32, properties: &Properties) -> Result<Self, InvalidChannel> {
        let spec = Self {
            name,
            kind: properties.kind.unwrap_or_default(),
            overflow: properties.overflow.unwrap_or_default(),
            capacity: properties.capacity.unwrap_or(DEFAULT_CAPACITY),
            owner,
            access: properties.access.clone().unwrap_or_default(),
            huge_pages: properties.huge_pages.unwrap_or_default(),
            prefault: properties.prefault.unwrap_or(false),
            lock: properties.lock.unwrap_or(false),
        };
        spec.check()?;
        Ok(spec)
    }

    /// Whether a channel can be like that.
    ///
    /// # Errors
    ///
    /// [`InvalidChannel`] if not.
    pub fn check(&self) -> Result<(), InvalidChannel> {
        let capacity = self.capacity;
        if !capacity.is_power_of_two() || !(page_size()..=MAX_CAPACITY).contains(&capacity) {
            let smallest = page_size();
            let suggestion = capacity.clamp(smallest, MAX_CAPACITY).next_power_of_two();
            return Err(InvalidChannel::Capacity { capacity, smallest, largest: MAX_CAPACITY, suggestion });
        }
        if self.kind == Kind::Mpsc && self.overflow == Overflow::Lossy {
            return Err(InvalidChannel::LossyMpsc);
        }
        // A producer of another uid could punch a hole into the ring, and the page that is missing then would be a SIGBUS.
        if self.kind == Kind::Mpsc && self.huge_pages != HugePages::Never && !self.is_of_one_uid() {
            return Err(InvalidChannel::HugeMpsc);
        }
        const MOST_GRANTS: usize = 256;
        for grant in [&self.access.publish, &self.access.subscribe] {
            if grant.uids.len() + grant.gids.len() > MOST_GRANTS {
                return Err(InvalidChannel::Grants { most: MOST_GRANTS });
            }
        }
        Ok(())
    }

    /// Compares with what another client wants, and names the first property that differs: `(property, the channel's, the client's)`.
    pub fn mismatch(&self, wanted: &Properties) -> Option<(&'static str, String, String)> {
        fn differs<T: PartialEq + fmt::Debug>(
            property: &'static str,
            have: &T,
            want: Option<&T>,
            show: impl Fn(&T) -> String,
        ) -> Option<(&'static str, String, String)> {
            want.filter(|&want| want != have).map(|want| (property, show(have), show(want)))
        }
        differs("kind", &self.kind, wanted.kind.as_ref(), ToString::to_string)
            .or_else(|| differs("overflow", &self.overflow, wanted.overflow.as_ref(), ToString::to_string))
            .or_else(|| differs("capacity", &self.capacity, wanted.capacity.as_ref(), ToString::to_string))
            .or_else(|| differs("access", &self.access, wanted.access.as_ref(), |access| format!("{access:?}")))
            .or_else(|| differs("huge pages", &self.huge_pages, wanted.huge_pages.as_ref(), |huge| format!("{huge:?}")))
            .or_else(|| differs("prefault", &self.prefault, wanted.prefault.as_ref(), ToString::to_string))
            .or_else(|| differs("lock", &self.lock, wanted.lock.as_ref(), ToString::to_string))
    }

    /// Whether somebody of this uid and these groups may publish.
    pub fn may_publish(&self, uid: u32, groups: &[u32]) -> bool {
        uid == self.owner || self.access.publish.permits(uid, groups)
    }

    /// Whether somebody of this uid and these groups may subscribe.
    pub fn may_subscribe(&self, uid: u32, groups: &[u32]) -> bool {
        uid == self.owner || self.access.subscribe.permits(uid, groups)
    }

    /// Whether all parties are of one uid, and so could do to each other what they like anyway. Only then do they sleep on futexes: whoever maps a
    /// futex word, even read-only, can move its sleepers elsewhere with `FUTEX_REQUEUE`.
    pub fn is_of_one_uid(&self) -> bool {
        let others = |grant: &Grant| !grant.gids.is_empty() || grant.uids.iter().any(|&uid| uid != self.owner);
        (self.access.publish.is_empty() && self.access.subscribe.is_empty())
            || !(others(&self.access.publish) || others(&self.access.subscribe))
    }

    /// Whether each publication has a page that its subscriptions share, see [`SleepPage`](crate::ring::layout::SleepPage): where there can be several, and each could do to the
    /// others what it likes anyway.
    pub fn has_sleep_page(&self) -> bool {
        self.kind == Kind::Broadcast && self.is_of_one_uid()
    }

    /// Largest payload in bytes.
    pub fn max_payload(&self) -> u64 {
        match self.kind {
            Kind::Mpsc => mpsc::max_payload(self.capacity),
            Kind::Spsc | Kind::Broadcast => single::max_payload(self.capacity, self.overflow.overwrite()),
        }
    }
}

/// Why there can be no such channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum InvalidChannel {
    /// The name is malformed.
    #[error("bad channel name \"{name}\": it must be segments of A-Z a-z 0-9 . _ - joined by /, 255 bytes at most")]
    Name {
        /// The name, shortened and escaped.
        name: String,
    },
    /// The capacity is none.
    #[error("bad capacity {capacity}: it must be a power of two from {smallest} to {largest} bytes, for example {suggestion}")]
    Capacity {
        /// What was asked for.
        capacity: u64,
        /// The smallest there is.
        smallest: u64,
        /// The largest there is.
        largest: u64,
        /// The next that would do.
        suggestion: u64,
    },
    /// `mpsc` cannot be lossy.
    #[error("an mpsc channel cannot be lossy; use kind broadcast with overflow lossy, which has many publishers, too")]
    LossyMpsc,
    /// `mpsc` between uids cannot have huge pages.
    #[error("an mpsc channel of several uids cannot have huge pages, as one party could crash another by punching holes")]
    HugeMpsc,
    /// Too many uids and gids.
    #[error("more than {most} uids and gids may not be listed; use a group")]
    Grants {
        /// The most there may be.
        most: usize,
    },
    /// No such word.
    #[error("unknown {what} \"{value}\": it is one of {known}")]
    Unknown {
        /// What the word is for.
        what: String,
        /// The word.
        value: String,
        /// The words there are.
        known: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "a/b", "Prices.eu-1/top_of_book", &"x".repeat(255)] {
            assert_eq!(good.parse::<ChannelName>().unwrap().as_str(), good);
        }
        for bad in ["", "/", "a/", "/a", "a//b", "a b", "ä", "a\n", "a\0", &"x".repeat(256)] {
            assert!(bad.parse::<ChannelName>().is_err(), "{bad:?}");
        }
    }

    fn spec(properties: Properties) -> Result<ChannelSpec, InvalidChannel> {
        ChannelSpec::new("a".parse().unwrap(), 1000, &properties)
    }

    #[test]
    fn capacities_are_checked_and_a_good_one_is_suggested() {
        for bad in [0, 1, 2048, 65537, 100_000, 8 << 30, u64::MAX] {
            let error = spec(Properties { capacity: Some(bad), ..Default::default() }).unwrap_err();
            let InvalidChannel::Capacity { suggestion, .. } = error else { panic!("{error}") };
            spec(Properties { capacity: Some(suggestion), ..Default::default() }).unwrap();
        }
    }

    #[test]
    fn a_mismatch_names_the_property_and_both_sides() {
        let have = spec(Properties::default()).unwrap();
        assert_eq!(have.mismatch(&Properties::default()), None);
        let wanted = Properties { kind: Some(Kind::Spsc), ..Default::default() };
        assert_eq!(have.mismatch(&wanted), Some(("kind", "broadcast".into(), "spsc".into())));
    }

    #[test]
    fn only_the_owner_and_the_listed_have_access() {
        let access = Access { publish: Grant { uids: vec![5], gids: vec![] }, subscribe: Grant { uids: vec![], gids: vec![7] } };
        let spec = spec(Properties { access: Some(access), ..Default::default() }).unwrap();
        assert!(spec.may_publish(1000, &[]) && spec.may_subscribe(1000, &[]));
        assert!(spec.may_publish(5, &[]) && !spec.may_subscribe(5, &[6]));
        assert!(!spec.may_publish(6, &[7]) && spec.may_subscribe(6, &[6, 7]));
        assert!(!spec.is_of_one_uid());
    }
}
