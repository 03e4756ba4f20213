#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| rocket_replicated::internals::laws::positions(input));
