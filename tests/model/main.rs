//! The rings beside models of them: random sequences of operations, on one thread, so that every answer is known beforehand: what is read, what is lost, when
//! there is back pressure, whom the consumer is done with. The fuzz target `model_queue` is the same, with inputs that the coverage leads to.

mod memory;
mod mpsc;
mod operation;
mod single;

use proptest::collection::vec;
use proptest::prelude::*;
use ringbus::ring::single::Overwrite;

use operation::{Operation, decode};

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    // Somebody is there from the start; most sequences would otherwise do nothing for long.
    let join = [13, 0, 0, 0];
    vec(any::<[u8; 4]>(), 0..300).prop_map(move |bytes| std::iter::once(join).chain(bytes).map(Operation::from).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::WithSource("regressions"))), ..ProptestConfig::default() })]

    #[test]
    fn a_blocking_ring_does_what_its_model_says(operations in operations()) {
        let mut ring = single::Single::new(Overwrite::Never);
        operations.into_iter().for_each(|operation| ring.apply(operation));
    }

    #[test]
    fn a_lossy_ring_does_what_its_model_says(operations in operations()) {
        let mut ring = single::Single::new(Overwrite::Oldest);
        operations.into_iter().for_each(|operation| ring.apply(operation));
    }

    #[test]
    fn a_ring_of_many_producers_does_what_its_model_says(operations in operations()) {
        let mut ring = mpsc::Mpsc::new();
        operations.into_iter().for_each(|operation| ring.apply(operation));
    }

    #[test]
    fn any_input_of_the_fuzzer_is_operations(input in vec(any::<u8>(), 0..64)) {
        assert_eq!(decode(&input).count(), input.len() / 4);
    }
}
