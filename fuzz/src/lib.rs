//! What the fuzz targets share. The memory and the models are the ones of `tests/model`, which `cargo test` runs with random operations.

#[path = "../../tests/model/memory.rs"]
pub mod memory;
#[path = "../../tests/model/mpsc.rs"]
pub mod mpsc;
#[path = "../../tests/model/operation.rs"]
pub mod operation;
pub mod packets;
#[path = "../../tests/model/single.rs"]
pub mod single;
