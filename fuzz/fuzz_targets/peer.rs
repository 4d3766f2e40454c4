#![no_main]

#[global_allocator]
static ALLOCATOR: tillsync::testkit::alloc::Counting = tillsync::testkit::alloc::Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| tillsync::testkit::peer(input));
