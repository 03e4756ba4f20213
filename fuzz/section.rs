#![no_main]

libfuzzer_sys::fuzz_target!(|input: &str| rocket_replicated::internals::laws::section(input));
