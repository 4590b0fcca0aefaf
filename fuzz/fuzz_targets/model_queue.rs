//! The rings beside models of them: see `tests/model`. The first byte says which ring, then four bytes are one operation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringbus::ring::single::Overwrite;
use ringbus_fuzz::mpsc::Mpsc;
use ringbus_fuzz::operation::decode;
use ringbus_fuzz::single::Single;

fuzz_target!(|input: &[u8]| {
    let Some((&which, operations)) = input.split_first() else { return };
    if which % 3 == 2 {
        let mut ring = Mpsc::new();
        decode(operations).for_each(|operation| ring.apply(operation));
    } else {
        let mut ring = Single::new(if which % 3 == 0 { Overwrite::Never } else { Overwrite::Oldest });
        decode(operations).for_each(|operation| ring.apply(operation));
    }
});
