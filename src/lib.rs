#![doc = include_str!("../README.md")]

pub mod ring;
pub mod wait;

#[cfg(not(loom))]
pub mod memory;
