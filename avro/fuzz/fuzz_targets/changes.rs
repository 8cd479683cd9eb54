#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weirgate_avro_fuzz::changes(input));
